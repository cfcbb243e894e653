"""The README is short, its snippets run as they stand, and what it says of its results is so."""

import re

import torch

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
