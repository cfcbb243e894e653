"""CAMSalience: a class activation map made binary in two ways."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sip_plugin.cam import class_activation_maps
from sip_plugin.salience import CAMSalience
from tests.adapters.test_contract import everything, same
from tests.salience.passes import convolutions
from tests.salience.test_selection import plain
from tests.test_cam import KINDS, plain_map


def plain_maps(network, images, kind):
    return torch.stack([plain_map(network, image, kind) for image in images])[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mass", [None, 0.2])
def test_a_map_holds_the_fewest_pixels_for_the_mass(mass, kind, network, images):
    chosen = CAMSalience(network, kind, mass=mass)(images)
    assert chosen.dtype == torch.bool
    assert chosen.shape == images.shape
    maps = class_activation_maps(network, images, kind)
    expected = torch.stack([plain(image, 0.5 if mass is None else mass) for image in maps])
    assert torch.equal(chosen, expected.expand_as(images))
    alone = torch.stack([plain(image, 0.5 if mass is None else mass) for image in plain_maps(network, images, kind)])
    assert (chosen[:, :1] != alone).float().mean() < 0.01  # but for rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7])
def test_or_the_pixels_above_the_threshold_of_a_map_from_0_to_1(threshold, kind, network, images):
    chosen = CAMSalience(network, kind, threshold=threshold)(images)
    assert torch.equal(chosen, (class_activation_maps(network, images, kind) > threshold).expand_as(images))
    assert ((plain_maps(network, images, kind) > threshold) != chosen[:, :1]).float().mean() < 0.01
    assert 0 < chosen.float().mean() < 1


def test_the_default_is_half_of_gradcam(network, images):
    mask_fn = CAMSalience(network)
    assert (mask_fn.cam, mask_fn.mass, mask_fn.threshold) == ("gradcam", 0.5, None)
    assert torch.equal(mask_fn(images), CAMSalience(network, "gradcam", mass=0.5)(images))
    thresholded = CAMSalience(network, threshold=0.3)
    assert (thresholded.mass, thresholded.threshold) == (None, 0.3)


def test_the_true_class_and_the_layer_are_options(network, images, labels):
    other = (labels + 1) % 10
    chosen = CAMSalience(network, target="true", layer="1")(images, other)
    maps = class_activation_maps(network, images, layer="1", classes=other)
    assert torch.equal(chosen, torch.stack([plain(image, 0.5) for image in maps]).expand_as(images))
    assert not torch.equal(chosen, CAMSalience(network, layer="1")(images))
    assert not torch.equal(chosen, CAMSalience(network, target="true")(images, other))
    assert torch.equal(CAMSalience(network)(images, other), CAMSalience(network)(images))  # labels are not used
    with pytest.raises(ValueError, match="needs labels"):
        CAMSalience(network, target="true")(images)
    with pytest.raises(ValueError, match="below 10"):
        CAMSalience(network, target="true")(images, labels + 10)


def test_one_forward_and_one_backward_to_the_layer_and_no_gradient_of_the_weights(network, images):
    assert convolutions(lambda: CAMSalience(network)(images)) == (2, 0, 0)  # the layer is the last convolution stage
    assert convolutions(lambda: CAMSalience(network, layer="1")(images)) == (2, 1, 0)
    passes = []
    network.register_forward_hook(lambda *_: passes.append("forward"))
    network[9].register_full_backward_hook(lambda *_: passes.append("backward"))
    CAMSalience(network)(images)
    assert passes == ["forward", "backward"]


@pytest.mark.parametrize("fails", [False, True])
def test_teacher_and_images_are_left_as_they_were(fails, network, images):
    mask_fn = CAMSalience(network)
    expected = mask_fn(images)
    network.train()
    network[4].eval()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    given = images.clone()
    handle = network[9].register_forward_hook(lambda *_: 1 / 0 if fails else None)
    before = everything(network)
    if fails:
        with pytest.raises(ZeroDivisionError):
            mask_fn(given)
    else:
        assert torch.equal(mask_fn(given), expected)  # in eval mode, whatever its mode was
    same(before, everything(network))
    assert torch.equal(given, images)
    assert not given.requires_grad
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_can_be_made_where_gradients_are_off(mode, network, images, labels):
    mask_fn = CAMSalience(network, target="true")
    expected = mask_fn(images, labels)
    with mode():
        inside = mask_fn(images * 1, labels * 1)
    assert torch.equal(inside, expected)


def test_maps_can_be_made_under_autocast_and_of_a_compiled_teacher(network, images):
    expected = CAMSalience(network)(images)
    for layer in (None, "3"):
        assert torch.equal(CAMSalience(torch.compile(network, backend="eager"), layer=layer)(images), expected)
    assert torch.equal(CAMSalience(nn.DataParallel(network))(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        inside = CAMSalience(network)(images)
    assert (inside != expected).float().mean() < 0.1


def test_a_constant_class_activation_map_gives_an_empty_map(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(network[0].weight)
    nn.init.ones_(network[0].bias)
    assert not CAMSalience(network)(images).any()
    assert not CAMSalience(network, threshold=0)(images).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("choice", [{"mass": 0.5}, {"threshold": 0.2}])
def test_a_map_that_is_not_finite_is_an_error_that_names_the_image(value, choice, network, images):
    place = [torch.tensor(index) for index in (2, 3, 1, 1)]
    network[4].register_forward_hook(lambda module, inputs, output: output.index_put(place, torch.tensor(value)))
    with pytest.raises(ValueError, match=r"CAMSalience.* NaN or infinite for image\(s\) \[2\]"):
        CAMSalience(network, layer="4", **choice)(images)


def test_a_source_can_be_copied_and_pickled(network, images):
    mask_fn = CAMSalience(network, threshold=0.4)
    expected = mask_fn(images)
    for copied in (copy.deepcopy(mask_fn), pickle.loads(pickle.dumps(mask_fn))):
        assert torch.equal(copied(images), expected)
        assert copied.teacher is not network


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cam": "gradcam++"}, "'layercam'"),
        ({"mass": 0.0}, r"\(0, 1\]"),
        ({"mass": 0.5, "threshold": 0.5}, "not both"),
        ({"threshold": 1.0}, r"\[0, 1\)"),
        ({"threshold": -0.1}, r"\[0, 1\)"),
        ({"threshold": float("nan")}, r"\[0, 1\)"),
        ({"target": "loss"}, "predicted"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says, network):
    with pytest.raises(ValueError, match=says):
        CAMSalience(**{"teacher": network, **arguments})


def test_what_gives_no_map_is_a_clear_error(network, images):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        CAMSalience(network)(images * 255)
    with pytest.raises(ValueError, match="No stage"):
        CAMSalience(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))(images)
    with pytest.raises(ValueError, match=r"has no layer 'layer4'.* 4, "):
        CAMSalience(network, layer="layer4")(images)
    with pytest.raises(ValueError, match="logits"):
        CAMSalience(network[:3])(images)


def test_the_repr_says_what_made_the_maps(network):
    assert repr(CAMSalience(network, "layercam", threshold=0.2, layer="4", target="true")) == (
        "CAMSalience(Sequential, cam='layercam', threshold=0.2, mass=None, target='true', layer='4', reshape=None)"
    )


def test_a_layer_may_be_given_as_the_module_itself(network, images):
    by_name, by_module = CAMSalience(network, layer="2"), CAMSalience(network, layer=network[2])
    assert torch.equal(by_name(images), by_module(images))
    assert repr(by_name) == repr(by_module)
    with pytest.raises(ValueError, match="no part of"):
        CAMSalience(network, layer=nn.ReLU())
