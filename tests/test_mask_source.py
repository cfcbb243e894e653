"""A source of maps is called as its signature says."""

import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin.mask_source import check_mask_source, compute_mask
from sip_plugin.salience import GradientSalience


class Takes:
    def __call__(self, images, labels):
        return ("both", images, labels)


class Network(nn.Module):
    def forward(self, images):
        return ("one", images)


@pytest.mark.parametrize(
    ("source", "with_labels"),
    [
        (lambda images: ("one", images), False),
        (lambda images, labels: ("both", images, labels), True),
        (lambda images, labels=None: ("both", images, labels), True),
        (lambda images, target=None: ("both", images, target), True),
        (lambda images, threshold=0.5: ("one", images), False),
        (lambda images, *, labels=None: ("both", images, labels), True),
        (lambda images, *, threshold=0.5: ("one", images), False),
        (lambda images, y_true=None: ("both", images, y_true), True),
        (lambda images, threshold=0.5, labels=None: ("both", images, labels), True),
        (lambda images, y: ("both", images, y), True),
        (lambda *both: ("both", *both), True),
        (Takes(), True),
        (Takes().__call__, True),
        (Network(), False),
    ],
)
def test_labels_are_given_to_the_functions_that_take_them(source, with_labels):
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    kind, given, *rest = compute_mask(source, images, labels)
    assert kind == ("both" if with_labels else "one")
    assert torch.equal(given, images)
    assert not with_labels or rest[0] is labels


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_function_may_compute_a_gradient_and_write_into_its_images_wherever_it_is_called(mode):
    def by_gradient(images):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad((images**2).sum(), images)
        images.detach().zero_()
        return gradient > 1

    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    with mode():
        made = compute_mask(by_gradient, images * 1, None)
    assert torch.equal(made, before > 0.5)
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_a_map_is_its_own_source():
    for mask in (torch.zeros(3, 3), np.zeros((3, 3))):
        assert compute_mask(mask, None, None) is mask


def test_no_source_is_an_error_that_says_where_to_give_one():
    with pytest.raises(ValueError, match=r"mask_fn.*mask="):
        compute_mask(None, None, None)


@pytest.mark.parametrize("source", ["map.png", 3, [[0, 1]]])
def test_what_cannot_be_a_source_is_refused_at_once(source):
    with pytest.raises(TypeError, match="callable"):
        check_mask_source(source)


def test_the_gradient_salience_is_a_source(network):
    assert isinstance(check_mask_source(GradientSalience(network)), GradientSalience)
