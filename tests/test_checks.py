"""Bad images, labels and settings are an error that says what to do."""

import math

import pytest
import torch

from sip_plugin.checks import check_eps, check_images, check_int, check_labels


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (lambda x: x.numpy(), TypeError, "torch.Tensor"),
        (lambda x: (x * 255).byte(), TypeError, "255"),
        (lambda x: x[0], ValueError, r"\[None\]"),
        (lambda x: x[:0], ValueError, "at least one"),
        (lambda x: x * 255, ValueError, r"\[0, 1\]"),
        (lambda x: x - 0.5, ValueError, r"\[0, 1\]"),
        (
            lambda x: x.clone().index_put_((torch.tensor([2]),), torch.tensor(math.nan)),
            ValueError,
            "finite",
        ),
        (lambda x: x.clone().index_put_((torch.tensor([2]),), torch.tensor(math.inf)), ValueError, r"\[0, 1\]"),
    ],
)
def test_bad_images_are_an_error_that_says_what_to_do(bad, kind, says, images):
    with pytest.raises(kind, match=says):
        check_images(bad(images))


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        ([1, 2, 3, 4, 5, 6], TypeError, "torch.Tensor"),
        (torch.zeros(6), TypeError, "int64"),
        (torch.zeros(6, dtype=torch.bool), TypeError, "int64"),
        (torch.zeros(5, dtype=torch.int64), ValueError, r"\(6,\), got \(5,\)"),
        (torch.zeros(6, 10, dtype=torch.int64), ValueError, r"\(6,\)"),
        (torch.tensor(3), ValueError, r"\(6,\)"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), ValueError, "-1"),
    ],
)
def test_bad_labels_are_an_error_that_says_what_to_do(bad, kind, says, images):
    with pytest.raises(kind, match=says):
        check_labels(bad, images)


def test_labels_of_any_integer_dtype_become_int64(images):
    assert check_labels(torch.arange(6, dtype=torch.uint8), images).dtype == torch.int64


@pytest.mark.parametrize(
    ("eps", "norm", "says"),
    [
        (8, "Linf", "8/255"),
        (-0.1, "Linf", "negative"),
        (math.nan, "L2", "finite"),
        (math.inf, "L2", "finite"),
    ],
)
def test_a_bad_radius_is_an_error(eps, norm, says):
    with pytest.raises(ValueError, match=says):
        check_eps(eps, norm)


@pytest.mark.parametrize("steps", [2.5, True, "3", -1])
def test_a_bad_number_of_steps_is_an_error(steps):
    with pytest.raises(ValueError, match="steps must"):
        check_int(steps, "steps", 0)
