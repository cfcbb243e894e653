"""GradientSalience: eq. 7 and 8, exactly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin.salience import GradientSalience
from sip_plugin.salience.selection import top_mass_mask
from tests.adapters.test_contract import everything, same
from tests.salience.passes import convolutions
from tests.salience.test_selection import plain


class Linear(nn.Module):
    """Logits whose gradients are known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)  # (classes, C, H, W)

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight)


@pytest.fixture
def teacher():
    return Linear(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def x():
    return torch.rand(7, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def test_the_default_is_the_gradient_of_the_predicted_classs_logit(teacher, x):
    predicted = teacher(x).argmax(1)
    expected = top_mass_mask(teacher.weight[predicted].abs().detach(), 0.5)
    assert torch.equal(GradientSalience(teacher)(x), expected)
    assert torch.equal(GradientSalience(teacher)(x, torch.zeros(7, dtype=torch.int64)), expected)  # labels are not used
    share = expected.float().mean().item()
    assert 0.05 < share < 0.5


def test_the_true_classs_logit_and_the_loss_are_options(teacher, x):
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    expected = top_mass_mask(teacher.weight[y].abs().detach(), 0.3)
    assert torch.equal(GradientSalience(teacher, 0.3, target="true")(x, y), expected)
    p = teacher(x).softmax(1) - F.one_hot(y, 4)
    gradient = torch.einsum("nk,kchw->nchw", p, teacher.weight).abs().detach()
    chosen = GradientSalience(teacher, target="loss")(x, y)
    assert all(abs(m.sum() - plain(g, 0.5).sum()) <= 1 for m, g in zip(chosen, gradient, strict=True))
    for image, map_ in zip(gradient, chosen, strict=True):
        assert image[map_].min() >= image[~map_].max() - 1e-6


@pytest.mark.parametrize("target", ["true", "loss"])
def test_those_options_need_two_classes(target, x):
    with pytest.raises(ValueError, match="2 classes or more"):
        GradientSalience(Linear(torch.randn(1, 3, 5, 5)), target=target)(x, torch.zeros(7, dtype=torch.int64))


@pytest.mark.parametrize("target", ["true", "loss"])
def test_those_options_say_that_they_need_labels(target, teacher, x):
    with pytest.raises(ValueError, match="needs labels"):
        GradientSalience(teacher, target=target)(x)


def test_per_pixel_maps_mark_all_channels_or_none(teacher, x):
    chosen = GradientSalience(teacher, per_pixel=True)(x)
    assert chosen.shape == x.shape
    assert torch.equal(chosen, chosen[:, :1].expand_as(chosen))
    summed = teacher.weight[teacher(x).argmax(1)].abs().sum(1, keepdim=True).detach()
    assert torch.equal(chosen[:, :1], top_mass_mask(summed, 0.5))


def test_each_image_has_the_map_it_has_alone(network, images):
    mask_fn = GradientSalience(network)
    together = mask_fn(images)
    shares = [(together[i] != mask_fn(images[i : i + 1])[0]).float().mean() for i in range(len(images))]
    assert max(shares) < 0.01  # but for rounding in the batched convolutions


def test_the_teacher_runs_in_eval_mode_and_comes_back_exactly_as_it_was(network, images):
    expected = GradientSalience(network)(images)
    network.train()
    network[1].eval()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    before = everything(network)
    assert torch.equal(GradientSalience(network)(images), expected)
    same(before, everything(network))


@pytest.mark.parametrize("target", ["predicted", "true", "loss"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_can_be_made_where_gradients_are_off(mode, target, network, images, labels):
    expected = GradientSalience(network, target=target)(images, labels)
    with mode():
        inside = GradientSalience(network, target=target)(images * 1, labels * 1)
    assert torch.equal(inside, expected)
    assert not images.requires_grad


def test_one_forward_and_one_backward_to_the_input_and_no_gradient_of_the_weights(network, images):
    assert convolutions(lambda: GradientSalience(network)(images)) == (2, 2, 0)
    passes = []
    network.register_forward_hook(lambda *_: passes.append("forward"))
    network[0].register_full_backward_hook(lambda *_: passes.append("backward"))
    GradientSalience(network)(images)
    assert passes == ["forward", "backward"]


@pytest.mark.parametrize("target", ["true", "loss"])
def test_a_class_that_the_teacher_does_not_have_is_a_clear_error(target, network, images, labels):
    with pytest.raises(ValueError, match="below 10, the network's number of classes, got 11"):
        GradientSalience(network, target=target)(images, torch.tensor([0, 1, 11, 3, 4, 5]))


def test_a_teacher_may_write_into_its_input(network, images):
    class Normalises(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.network, self.in_place = network, in_place

        def forward(self, x):
            return self.network(x.sub_(0.5) if self.in_place else x - 0.5)

    given = images.clone()
    found = GradientSalience(Normalises(True)).magnitude(given)
    assert torch.equal(found, GradientSalience(Normalises(False)).magnitude(images))
    assert torch.equal(given, images)


def test_an_image_without_gradient_has_an_empty_map(images):
    class Ignores(nn.Module):
        def forward(self, x):
            seen = torch.cat([x[:3], torch.zeros_like(x[3:])])
            return seen.flatten(1)[:, :10] + 0 * x.flatten(1)[:, :10]

    chosen = GradientSalience(Ignores())(images)
    assert chosen[:3].flatten(1).any(1).all()
    assert not chosen[3:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_image(value, images):
    class Breaks(nn.Module):
        def forward(self, x):
            scale = torch.ones(len(x), 1, 1, 1)
            scale[2] = value
            return (x * scale).flatten(1)[:, :10]

    with pytest.raises(ValueError, match=r"GradientSalience.* NaN or infinite for image\(s\) \[2\]"):
        GradientSalience(Breaks())(images)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mass": 0.0}, r"\(0, 1\]"),
        ({"mass": 1.5}, r"\(0, 1\]"),
        ({"mass": float("nan")}, r"\(0, 1\]"),
        ({"target": "logit"}, "predicted"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says, teacher):
    with pytest.raises(ValueError, match=says):
        GradientSalience(**{"teacher": teacher, **arguments})


def test_bad_images_are_a_clear_error(teacher, x):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        GradientSalience(teacher)(x * 255)


def test_the_repr_says_what_made_the_maps(teacher):
    assert repr(GradientSalience(teacher, 0.3, target="loss")) == (
        "GradientSalience(Linear, mass=0.3, target='loss', per_pixel=False)"
    )


def test_pixels_are_summed_without_overflow(images):
    class Teacher(nn.Module):
        def forward(self, x):
            return (x * 2.5e38).sum((1, 2, 3))[:, None]

    assert GradientSalience(Teacher(), per_pixel=True)(images)[:, 0].sum((1, 2)).tolist() == [128] * 6


@pytest.mark.parametrize("output", [lambda x: x.mean((1, 2, 3)), lambda x: {"logits": x}, lambda x: x])
def test_a_teacher_that_gives_no_logits_is_a_clear_error(output, images):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(ValueError, match=r"must give logits"):
        GradientSalience(Odd())(images)
