"""The examples for other people's training loops; they need Lightning and Accelerate."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.examples.test_examples import example


@pytest.mark.parametrize("loop", ["lightning", "accelerate", "fabric"])
def test_training_in_somebody_elses_loop(loop, tmp_path, monkeypatch):
    pytest.importorskip("accelerate" if loop == "accelerate" else "lightning", reason="not installed")
    monkeypatch.chdir(tmp_path)
    results = example(f"train_with_{loop}").main(epochs=5)
    assert results["clean"] > 0.8
    assert results["robust"] > 0.5


def test_training_in_a_compiled_network_under_autocast():
    # A backend without code generation: a user's machine may lack a compiler.
    assert example("train_fast").main(epochs=4, backend="aot_eager") > 0.8


def test_training_on_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(ROOT / "examples" / "train_with_ddp.py")
    run = subprocess.run([*command, script], capture_output=True, text=True, timeout=300, check=False)
    assert "2 processes, weights equal" in run.stdout, run.stderr[-2000:]
    assert float(run.stdout.rpartition("accuracy ")[2].rstrip("%\n")) > 80


@pytest.mark.parametrize("method", ["trades", "mart", "part", "sip-at"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_search_passes_fabrics_hook(method, precision, network, images, labels, salience):
    fabric_module = pytest.importorskip("lightning.fabric", reason="not installed")
    import torch

    from sip_plugin import AdversarialTrainer
    from sip_plugin.training import PART

    fabric = fabric_module.Fabric(accelerator="cpu", devices=1, precision=precision)
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.01))
    plain = AdversarialTrainer(network, PART(warmup=0) if method == "part" else method, salience=salience, steps=3)
    set_up = AdversarialTrainer(model, PART(warmup=0) if method == "part" else method, salience=salience, steps=3)
    torch.manual_seed(0)
    found = set_up.perturb(images, labels)
    if precision == "32-true":
        torch.manual_seed(0)
        assert torch.equal(found, plain.perturb(images, labels))
    model.train()
    modes = [module.training for module in network.modules()]
    fabric.backward(set_up(images, labels))
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
