"""The README is short, its snippets run as they stand, and what it says of its results is so."""

import re

import pytest
import torch

from benchmarks.paper import report
from benchmarks.paper.presets import PRESETS
from sip_plugin.evaluation import RobustnessReport
from tests.conftest import ROOT
from tests.evaluation.conftest import quick  # noqa: F401

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.encode()) <= 9000


def test_the_snippets_run_one_after_the_other(quick):  # noqa: F811
    setup, attack, loop, evaluation = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    torch.manual_seed(0)
    exec(setup, names)
    exec(attack, names)
    images, adv, salient = names["images"], names["adv"], names["mask_fn"](names["images"])
    assert torch.equal(adv[salient], images[salient])
    assert not torch.equal(adv, images)
    exec(loop, names)
    assert names["criterion"].metrics["adversarial_accuracy"] > 0.5
    exec(evaluation, names)
    report = names["report"]
    assert len(report) == len(images) == 20
    assert 0.2 < report.robust_accuracy[8 / 255] <= report.clean_accuracy > 0.5


@pytest.mark.results
def test_sip_s_and_the_random_control_differ_by_less_than_the_seeds():
    (runs,) = report.read_results(PRESETS["cifar10-cpu"], report.RESULTS / "cifar10-cpu").values()
    assert list(runs["sip-s"]) == list(runs["sip-random"]) == [0, 1, 2]
    rows = RobustnessReport.compare({name: list(runs[name].values()) for name in ("sip-s", "sip-random")}).rows
    gains = rows[0].gains_over(rows[1])
    assert all(abs(gains[eps].mean) < gains[eps].std for eps in (0.0, 8 / 255))
