"""The code of README and docs, and the calls of wrapped attacks, type-check for those who have the package installed."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]

# What pages take for granted: the reader's own network, data and reports.
ASSUMED = """
from collections.abc import Callable
from typing import Any
import numpy as np
import torch as torch
from torch import Tensor as Tensor, nn as nn
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader, Dataset
from sip_plugin import AdversarialTrainer as AdversarialTrainer, SIPWrapper as SIPWrapper
from sip_plugin.evaluation import RobustnessReport as RobustnessReport, evaluate_robustness as evaluate_robustness
from sip_plugin.salience import CAMSalience as CAMSalience, GradientSalience as GradientSalience

model: nn.Module
other_model: nn.Module
teacher: nn.Sequential
networks: list[nn.Module]
LogitPairing: Any  # of examples/own_method.py
mask_fn: Callable[[Tensor], Tensor]
criterion: AdversarialTrainer
images: Tensor
labels: Tensor
x: np.ndarray[Any, Any]
y: np.ndarray[Any, Any]
input_shape: tuple[int, ...]
dataset: Dataset[tuple[Tensor, int]]
loader: DataLoader[tuple[Tensor, Tensor]]
optimizer: Optimizer
epochs: int
report: RobustnessReport
standard_reports: list[RobustnessReport]
madry_reports: list[RobustnessReport]
sip_reports: list[RobustnessReport]
"""

# An attack's own type is what an editor completes from. mypy does not read libraries without type hints: to it they are Any.
CALLS = """
from functools import partial
from typing import Any
from typing_extensions import assert_type

import foolbox
import torchattacks
from art.attacks.evasion import HopSkipJump
from art.estimators.classification import PyTorchClassifier
from assumed import *
from pyautoattack import AutoAttack


class Own:
    strength = 3

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return images


def function(network: nn.Module, x: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    return x


classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), input_shape, 10)
fmodel = foolbox.PyTorchModel(model, bounds=(0, 1))
assert_type(SIPWrapper(torchattacks.PGD(model), mask_fn), torchattacks.PGD)
SIPWrapper(torchattacks.PGD(model))(images, labels, mask=images)
SIPWrapper(torchattacks.PGD(model)).epsilon  # pyright: ignore[reportAttributeAccessIssue]
assert_type(SIPWrapper(HopSkipJump(classifier), images), HopSkipJump)
SIPWrapper(HopSkipJump(classifier)).generate(x, y, salience=images)
attack = SIPWrapper(foolbox.attacks.LinfPGD(steps=10), mask_fn, one_by_one=True)
assert_type(attack, foolbox.attacks.LinfPGD)
assert_type(attack(fmodel, images, labels, epsilons=[0.1], mask=images), tuple[list[Tensor], list[Tensor], Tensor])
attack.generate(images)  # type: ignore[attr-defined]
SIPWrapper(AutoAttack(model)).run_standard_evaluation(images, labels, mask=images)
assert_type(SIPWrapper(Own(model), mask_fn)(images, labels, mask=images), Any)
SIPWrapper(partial(function, model), mask_fn)(images, labels, targeted=True, mask=images)
SIPWrapper(partial(function, network=model), mask_fn).one_by_one = True
SIPWrapper(len)  # type: ignore[call-overload]

RobustnessReport.compare({"a": report, "b": [report, report]})
RobustnessReport.compare({"ResNet": {"a": report, "b": [report]}, "DenseNet": {"a": (report, report)}})
RobustnessReport.compare([report, report], names=["a", "a"])
RobustnessReport.compare({"a": 1})  # type: ignore[dict-item]
"""

# Strict, but for hints of functions, which few readers write, and names that foolbox and torch 2.4 do not mark as exported.
# mypy takes a name that a page imports from `assumed` and binds anew later for one that is not bound yet.
MYPY = """
[mypy]
strict = True
disallow_untyped_defs = False
disallow_untyped_calls = False
allow_redefinition = True
disable_error_code = import-untyped, used-before-def
[mypy-foolbox.*,torch.optim.*]
implicit_reexport = True
"""
PYRIGHT = {
    "typeCheckingMode": "standard",
    "reportPrivateImportUsage": False,
    "reportUnnecessaryTypeIgnoreComment": True,
}


def code(page):
    """The Python blocks of a page, each line at the number that it has there; empty if there is none."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


@pytest.fixture
def folder(tmp_path):
    """A module for each page."""
    (tmp_path / "assumed.pyi").write_text(ASSUMED, encoding="utf-8")
    (tmp_path / "calls.py").write_text(CALLS, encoding="utf-8")
    for page in PAGES:
        if code(page).strip():
            name = "_".join(page.relative_to(ROOT).with_suffix("").parts)
            (tmp_path / f"{name}.py").write_text(
                "from assumed import *" * (page.name not in ("README.md", "start.md")) + code(page), encoding="utf-8"
            )
    return tmp_path


def check(folder, *command):
    found = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy(folder, request):
    pytest.importorskip("mypy", reason="needs mypy")
    (folder / "mypy.ini").write_text(MYPY)
    check(folder, "mypy", "--cache-dir", request.config.cache.mkdir("mypy"), ".")


def test_pyright(folder):
    pytest.importorskip("basedpyright", reason="needs basedpyright")
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    check(folder, "basedpyright", "--pythonpath", sys.executable)
