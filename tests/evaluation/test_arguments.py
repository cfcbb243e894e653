"""What an evaluation takes, and what it refuses before the work."""

import numpy as np
import pytest
import torch

from sip_plugin.evaluation.evaluate import collect, parse_eps
from tests.evaluation.test_evaluate import evaluate


@pytest.mark.parametrize(
    ("eps", "radii"),
    [
        ([0.08, 0.03, 0.08], (0.03, 0.08)),
        (np.array([0.08, 0.03]), (0.03, 0.08)),
        (0.05, (0.05,)),
        ([np.float32(0.1), 0.1, 0.05], (0.05, 0.1)),  # which a report calls the same
        (torch.tensor([0.05]), (0.05,)),
        ((radius for radius in (0.1, 0.05)), (0.05, 0.1)),
    ],
)
def test_eps_may_come_in_any_order_more_than_once_or_alone_and_of_any_kind(eps, radii):
    assert parse_eps(eps, "Linf") == pytest.approx(radii)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"eps": []}, ValueError, "one radius or more"),
        ({"eps": (0, 0.1)}, ValueError, "above 0"),
        ({"eps": 8}, ValueError, "8/255"),
        ({"norm": "L1"}, ValueError, "Linf or L2"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer from 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"max_images": 0}, ValueError, "max_images"),
        ({"version": "hard"}, ValueError, "standard, plus, rand"),
        ({"attack": "pgd"}, TypeError, '"autoattack" or a factory'),
    ],
)
def test_illegal_settings_are_errors_before_the_work(options, error, match, quick, network, evaluated):
    network.register_forward_pre_hook(lambda *_: pytest.fail("the network was used"))
    with pytest.raises(error, match=match):
        evaluate(network, evaluated, **options)


def test_images_and_labels_are_taken_from_a_pair_or_batches(evaluated):
    x, y = evaluated
    for data in ((x, y), [(x[:8], y[:8], "map"), (x[8:], y[8:])], iter([(x, y)])):
        images, labels = collect(data, None)
        assert torch.equal(images, x)
        assert torch.equal(labels, y)
    assert len(collect([(x[:8], y[:8]), (x[8:], y[8:])], 9)[1]) == 9


def test_illegal_data_are_errors_that_say_where(evaluated):
    x, y = evaluated
    for data, match in [
        ([(x[:4], y[:4]), (x[4:8] * 255, y[4:8])], "images of batch 1 must lie in"),
        ([(x[:4], y[:3])], r"labels of batch 0 must be one class index per image, \(4,\), got \(3,\)"),
        (zip(x, y, strict=True), r"images of batch 0 must have the four dimensions"),  # a data set, not a loader
    ]:
        with pytest.raises(ValueError, match=match):
            collect(data, None)
