"""Norms, and balls that hold their images exactly."""

import pytest
import torch

from sip_plugin.evaluation.balls import into_ball, into_nearest_ball, perturbation_norms, rounding

RADII = (1 / 255, 4 / 255, 8 / 255)


@pytest.fixture
def clean():
    return torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def direction(clean):
    return torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("eps", RADII)
def test_what_an_attack_computes_in_float32_is_put_exactly_into_the_linf_ball(clean, eps):
    attacked = (clean + eps * direction(clean).sign()).clamp(0, 1)
    assert (perturbation_norms(attacked, clean, "Linf") > eps).any()  # by rounding alone
    inside = into_nearest_ball(attacked, clean, RADII, "Linf")
    norms = perturbation_norms(inside, clean, "Linf")
    assert (norms <= eps).all()
    assert (norms >= eps - 2 * rounding(clean, "Linf")).all()
    assert inside.min() >= 0
    assert inside.max() <= 1


@pytest.mark.parametrize("eps", [0.1, 0.5, 2.0])
def test_what_an_attack_computes_in_float32_is_put_exactly_into_the_l2_ball(clean, eps):
    delta = direction(clean)
    attacked = clean + delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * eps
    assert (perturbation_norms(attacked, clean, "L2") > eps).any()
    norms = perturbation_norms(into_nearest_ball(attacked, clean, (eps,), "L2"), clean, "L2")
    assert (norms <= eps).all()
    assert (norms >= eps - 2 * rounding(clean, "L2")).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_is_outside_by_more_than_rounding_or_inside_stays_as_it_is(clean, norm):
    for scale in (0.3, 1.01, 1.9):
        delta = direction(clean)
        size = perturbation_norms(clean + delta, clean, norm).view(-1, 1, 1, 1)
        attacked = (clean.double() + delta.double() / size * scale * RADII[1]).float()
        assert torch.equal(into_nearest_ball(attacked, clean, RADII, norm), attacked)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection_to_a_ball_keeps_what_is_inside_and_moves_the_rest_to_its_surface(clean, norm):
    attacked = (clean + 0.1 * direction(clean)).clamp(0, 1)
    attacked[0] = clean[0]
    result = into_ball(attacked, clean, 0.05, norm)
    norms = perturbation_norms(result, clean, norm)
    assert torch.equal(result[0], clean[0])
    assert (norms <= 0.05).all()
    assert (norms[1:] > 0.05 - 1e-5).all()


def test_norms_are_those_of_the_definition():
    clean, attacked = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.3, -0.4]]], [[[0.0, 0.5]]]])
    assert perturbation_norms(attacked, clean, "Linf").tolist() == pytest.approx([0.4, 0.5])
    assert perturbation_norms(attacked, clean, "L2").tolist() == pytest.approx([0.5, 0.5])
