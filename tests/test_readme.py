"""The README is short, its snippets run as they stand, and what it says of its results is so."""

import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.paper import report
from benchmarks.paper.presets import PRESETS
from sip_plugin.evaluation import RobustnessReport
from tests.conftest import ROOT
from tests.evaluation.conftest import quick  # noqa: F401

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.encode()) <= 9000


def test_the_snippets_run_one_after_the_other(network, images, labels, digits, quick):  # noqa: F811
    attack, loop, evaluation = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {
        "model": network,
        "teacher": network,
        "images": images,
        "labels": labels,
        "loader": DataLoader(TensorDataset(digits[0][:40], digits[1][:40]), batch_size=20),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        "epochs": 2,
    }
    before = [p.detach().clone() for p in network.parameters()]
    exec(attack, names)
    salient = names["mask_fn"](images)
    assert torch.equal(names["adv"][salient], images[salient])
    assert not torch.equal(names["adv"], images)
    exec(loop, names)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    names["loader"] = [(part, network(part).argmax(1)) for part in images[:4].split(2)]
    exec(evaluation, names)
    assert len(names["report"]) == 4
    assert 0 <= names["report"].robust_accuracy[8 / 255] <= names["report"].clean_accuracy <= 1


@pytest.mark.results
def test_sip_s_and_the_random_control_differ_by_less_than_the_seeds():
    (runs,) = report.read_results(PRESETS["cifar10-cpu"], report.RESULTS / "cifar10-cpu").values()
    assert list(runs["sip-s"]) == list(runs["sip-random"]) == [0, 1, 2]
    rows = RobustnessReport.compare({name: list(runs[name].values()) for name in ("sip-s", "sip-random")}).rows
    gains = rows[0].gains_over(rows[1])
    assert all(abs(gains[eps].mean) < gains[eps].std for eps in (0.0, 8 / 255))
