"""A source of maps is called as its signature says."""

import numpy as np
import pytest
import torch

from sip_plugin.salience import GradientSalience
from sip_plugin.salience_source import call_mask_source, check_mask_source


class Takes:
    def __call__(self, images, labels):
        return ("both", images, labels)


@pytest.mark.parametrize(
    ("source", "with_labels"),
    [
        (lambda images: ("one", images), False),
        (lambda images, labels: ("both", images, labels), True),
        (lambda images, labels=None: ("both", images, labels), True),
        (lambda images, threshold=0.5: ("one", images), False),
        (lambda images, *, labels=None: ("one", images), False),
        (lambda images, y: ("both", images, y), True),
        (lambda *both: ("both", *both), True),
        (Takes(), True),
        (Takes().__call__, True),
    ],
)
def test_labels_are_given_to_the_functions_that_take_them(source, with_labels):
    assert call_mask_source(source, 1, 2) == (("both", 1, 2) if with_labels else ("one", 1))


def test_a_map_is_its_own_source():
    for mask in (torch.zeros(3, 3), np.zeros((3, 3))):
        assert call_mask_source(mask, None, None) is mask


def test_no_source_is_an_error_that_says_where_to_give_one():
    with pytest.raises(ValueError, match=r"mask_fn.*mask="):
        call_mask_source(None, None, None)


@pytest.mark.parametrize("source", ["map.png", 3, [[0, 1]]])
def test_what_cannot_be_a_source_is_refused_at_once(source):
    with pytest.raises(TypeError, match="callable"):
        check_mask_source(source)


def test_the_gradient_salience_is_a_source(network):
    assert isinstance(check_mask_source(GradientSalience(network)), GradientSalience)
