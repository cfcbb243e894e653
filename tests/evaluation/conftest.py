"""AutoAttack with so few iterations that a test can wait for it, and a set on which some images break at each ε."""

from types import SimpleNamespace

import pytest
import torch

pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")

EPS = (0.03, 0.05, 0.08)


class QuickAutoAttack(pyautoattack.AutoAttack):
    """The package's class; everything as it is but for the numbers of iterations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for member in (self.apgd, self.apgd_targeted):
            member.n_iter, member.n_iter_2, member.n_iter_min, member.size_decr = 6, 2, 1, 1
        self.fab.n_iter = 6
        self.square.n_queries = 30


QuickPackage = SimpleNamespace(__name__="pyautoattack", AutoAttack=QuickAutoAttack)


@pytest.fixture
def quick(monkeypatch):
    """Has evaluate_robustness use the quick AutoAttack, and gives it."""
    monkeypatch.setattr("sip_plugin.evaluation.autoattack.autoattack_package", lambda: QuickPackage)
    return QuickAutoAttack


@pytest.fixture
def evaluated(digits):
    """Twenty digits that the network was not trained on, and their labels, the second one's wrong."""
    x, y = digits[0][1500:1520].clone(), digits[1][1500:1520].clone()
    y[1] = (y[1] + 1) % 10
    return x, y


def same(a, b):
    """Two reports say the same of every image."""
    assert a.eps == b.eps
    assert a.attacks == b.attacks
    for name in ("labels", "norms", "assumed"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.warnings == b.warnings
    assert (a.adversarial is None) == (b.adversarial is None)
    for eps in a.adversarial or {}:
        assert torch.equal(a.adversarial[eps], b.adversarial[eps])
