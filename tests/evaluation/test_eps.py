"""Radii: how they are written, and found however they were computed."""

import json

import numpy as np
import pytest
import torch

from sip_plugin.evaluation.eps import EpsDict, distinct_eps, eps_labels
from tests.evaluation.random_reports import LINF, random_report


def test_an_eps_that_was_computed_another_way_is_found():
    accuracy = random_report().robust_accuracy
    for eps in (8 / 255, 8 * (1 / 255), np.float32(8 / 255), torch.tensor(8 / 255), 0.0313725490):
        assert accuracy[eps] == list(accuracy.values())[-1]
        assert eps in accuracy
        assert accuracy.get(eps) == accuracy[8 / 255]
    assert 0.0313 not in accuracy
    assert accuracy.get(0.0313, "nothing") == "nothing"
    assert isinstance(accuracy, dict)
    assert json.loads(json.dumps(accuracy)) == {str(eps): share for eps, share in accuracy.items()}


def test_an_eps_that_is_not_there_is_an_error_that_lists_those_that_are():
    accuracy = EpsDict.fromkeys(LINF, 0.5)
    with pytest.raises(KeyError, match=r"at eps = 0\.03, only at 1/255, 2/255, 4/255, 8/255\."):
        accuracy[0.03]


@pytest.mark.parametrize(
    ("eps", "labels"),
    [
        (LINF, ["1/255", "2/255", "4/255", "8/255"]),
        ((0.5 / 255, 16 / 255), ["0.5/255", "16/255"]),
        ((0.2, 0.4), ["0.2", "0.4"]),  # multiples of 1/255 too
        ((0.5, 1.0, 2.0), ["0.5", "1", "2"]),
        ((128 / 255,), ["128/255"]),
        ((0.3, 1 / 7), ["0.3", "0.142857"]),
        ((51 / 255, 52 / 255), ["51/255", "52/255"]),
    ],
)
def test_radii_are_written_in_255ths_where_they_are_such(eps, labels):
    assert eps_labels(eps) == labels
    assert eps_labels([float(np.float32(radius)) for radius in eps]) == labels
    assert distinct_eps([*eps, *(float(np.float32(radius)) for radius in reversed(eps))]) == pytest.approx(sorted(eps))
