"""Legal and illegal maps, projections, and the two feasible sets."""

import math

import numpy as np
import pytest
import torch

from sip_plugin.constraint import L2Ball, LinfBox, elementwise_budget, feasible_set, prepare_mask, project


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(16, 16), (6, 3, 16, 16), (1, 3, 16, 16), (6, 1, 16, 16), (1, 1, 1, 1), (6, 3, 1, 1)]
)
def test_every_legal_binary_form_becomes_the_same_bool_map(dtype, shape, images):
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(dtype)
    result = prepare_mask(mask, images)
    assert result.dtype == torch.bool
    expected = (mask != 0).expand_as(images)
    assert torch.equal(result.expand_as(images), expected)
    assert torch.equal(prepare_mask(mask.numpy(), images).expand_as(images), expected)


def test_numpy_views_with_negative_strides_and_no_write_access_are_legal(images):
    array = (np.arange(256).reshape(16, 16) % 3 == 0)[::-1, ::-1]
    array.flags.writeable = False
    assert torch.equal(prepare_mask(array, images)[0, 0], torch.from_numpy(array.copy()))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 16, 16), r"ambiguous.*mask\[None\].*mask\[:, None\]"),
        ((16, 1), r"\(16, 16\)"),
        ((8, 8), r"\(16, 16\).*got shape \(8, 8\)"),
        ((5, 3, 16, 16), r"\(6, 3, 16, 16\).*got shape \(5, 3, 16, 16\)"),
        ((6, 2, 16, 16), "got shape"),
        ((16,), "got shape"),
        ((), "got shape"),
        ((1, 6, 3, 16, 16), "got shape"),
        ((0, 3, 16, 16), "got shape"),
    ],
)
def test_a_map_of_a_wrong_or_ambiguous_shape_is_an_error_that_says_how_to_write_it(shape, says, images):
    with pytest.raises(ValueError, match=says):
        prepare_mask(torch.zeros(shape), images)


@pytest.mark.parametrize(
    ("values", "says"),
    [(0.5, "soft.*AdversarialTrainer"), (math.nan, "NaN"), (2.0, "0 and 1"), (-1.0, "0 and 1"), (math.inf, "0 and 1")],
)
def test_a_map_of_illegal_values_is_an_error(values, says, images):
    mask = torch.zeros(16, 16)
    mask[3, 4] = values
    with pytest.raises(ValueError, match=says):
        prepare_mask(mask, images)


def test_a_soft_map_is_legal_where_it_is_asked_for_and_comes_in_the_images_dtype(images):
    mask = torch.rand(16, 16, dtype=torch.float64)
    result = prepare_mask(mask, images, soft=True)
    assert result.dtype == images.dtype
    assert torch.equal(result[0, 0], mask.float())
    for bad in (math.nan, 1.5, -0.1):
        mask[0, 0] = bad
        with pytest.raises(ValueError, match=r"NaN|0 and 1"):
            prepare_mask(mask, images, soft=True)


def test_a_map_follows_the_layout_of_channels_last_images(images, salience):
    images = images.to(memory_format=torch.channels_last)
    assert prepare_mask(salience, images).is_contiguous(memory_format=torch.channels_last)


def test_projection_is_a_select_that_keeps_salient_elements_bit_for_bit(images, salience):
    candidate = images + 1e30 * torch.randn_like(images)
    candidate[0, 0, 0, 0] = math.nan
    result = project(candidate, images, salience)
    assert torch.equal(result[salience], images[salience])
    assert torch.equal(result[~salience].nan_to_num(), candidate[~salience].nan_to_num())


def test_the_gradient_of_the_projection_is_zero_on_salient_elements_only(images, salience):
    candidate = images.clone().requires_grad_()
    project(candidate, images, salience).sum().backward()
    assert torch.equal(candidate.grad, (~salience).float())


def test_projection_by_a_soft_map_shrinks_the_perturbation(images):
    soft = torch.full_like(images, 0.25)
    assert torch.allclose(project(images + 0.4, images, soft), images + 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_budget_is_exactly_zero_on_salient_elements_and_eps_elsewhere(dtype, images, salience):
    budget = elementwise_budget(images.to(dtype), 8 / 255, salience)
    assert budget.dtype == dtype
    assert (budget[salience] == 0).all()
    assert (budget[~salience] == torch.tensor(8 / 255, dtype=dtype)).all()
    assert elementwise_budget(images.to(dtype), 8 / 255).item() == torch.tensor(8 / 255, dtype=dtype).item()


def weird_budget(images, salience):
    """Zeros, ε and everything between, with one image that may not change at all."""
    torch.manual_seed(0)
    budget = elementwise_budget(images, 0.1, salience) * torch.rand_like(images)
    budget[0] = 0
    return budget


@pytest.mark.parametrize("random", [True, False])
def test_points_of_the_linf_box_keep_to_each_elements_budget_and_to_01(random, images, salience):
    budget = weird_budget(images, salience)
    box = LinfBox(images, budget)
    point = box.random_start() if random else images
    for _ in range(5):
        change = (point - images).abs()
        assert (change <= budget + 1e-7).all()
        assert torch.equal(point[budget == 0], images[budget == 0])
        assert point.min() >= 0
        assert point.max() <= 1
        point = box.ascend(point, torch.randn_like(images), 0.07)


@pytest.mark.parametrize("random", [True, False])
def test_points_of_the_l2_ball_keep_to_the_ellipsoid_and_to_01(random, images, salience):
    budget = weird_budget(images, salience)
    ball = L2Ball(images, budget)
    point = ball.random_start() if random else images
    for _ in range(5):
        scaled = torch.where(budget > 0, (point - images) / budget, 0.0)
        assert (scaled.flatten(1).norm(dim=1) <= 1 + 1e-3).all()
        assert torch.equal(point[budget == 0], images[budget == 0])
        assert point.min() >= 0
        assert point.max() <= 1
        point = ball.ascend(point, torch.randn_like(images), 0.07)


def test_a_long_step_of_the_l2_ball_ends_on_the_sphere_along_the_free_part_of_the_gradient(salience):
    images = torch.full((6, 3, 16, 16), 0.5)
    gradient = torch.randn_like(images)
    point = L2Ball(images, elementwise_budget(images, 0.3, salience)).ascend(images, gradient, 9.0)
    free = gradient.masked_fill(salience, 0)
    expected = 0.3 * free / free.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(point - images, expected, atol=1e-6)


def test_random_starts_of_the_l2_ball_fill_it_evenly():
    images = torch.full((4000, 1, 2, 1), 0.5)
    start = L2Ball(images, elementwise_budget(images, 0.1)).random_start()
    radius = (start - images).flatten(1).norm(dim=1) / 0.1
    assert radius.max() <= 1 + 1e-5
    # In two dimensions the share within radius r is r².
    assert (radius < 0.5).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_zero_gradient_leaves_the_point_where_it_is(images):
    for norm in ("Linf", "L2"):
        moved = feasible_set(images, elementwise_budget(images, 0.1), norm).ascend(
            images, torch.zeros_like(images), 0.05
        )
        assert torch.allclose(moved, images, atol=1e-7)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_projecting_keeps_the_candidates_layout(order):
    back = [order.index(axis) for axis in range(4)]
    images = torch.rand(4, 4, 4, 4)
    candidate = torch.rand(4, 4, 4, 4).permute(back).contiguous().permute(order).requires_grad_()
    for salience in (torch.rand(4, 4, 4, 4) < 0.5, torch.rand(4, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)):
        projected = project(candidate, images, salience)
        assert projected.stride() == candidate.stride()
        expected = images + (candidate - images) * (1 - salience.float())
        assert torch.allclose(projected, expected)
        (gradient,) = torch.autograd.grad(projected.sum(), candidate)
        assert torch.equal(gradient, (1 - salience.float()).expand_as(images))
