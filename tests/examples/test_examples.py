"""Every example runs, and does what it says."""

import importlib.util
import json
import sys

import pytest
import torch

from tests.conftest import ROOT


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def shortened(name, monkeypatch, epochs=5):
    """An example that trains for fewer epochs."""
    module = example(name)
    assert epochs < module.EPOCHS
    monkeypatch.setattr(module, "EPOCHS", epochs)
    return module


def once(train):
    """Trains at the first call and returns that network at each."""
    networks = []

    def trained(*data):
        if not networks:
            networks.append(train(*data))
        return networks[0]

    return trained


@pytest.fixture
def quick_autoattack(monkeypatch):
    """AutoAttack with few iterations; its strength is tested elsewhere."""
    from tests.evaluation.conftest import QuickPackage

    monkeypatch.setattr("sip_plugin.evaluation.autoattack.autoattack_package", lambda: QuickPackage)


def test_every_example_has_a_test():
    tested = {
        "art_attack",
        "art_trainer",
        "evaluate",
        "foolbox_attack",
        "look_at_salience",
        "quickstart",
        "salience_sources",
        "store_and_train",
        "train_sip_at",
        "wrap_attack",
    }
    tested |= {"human_salience", "own_method", "train_fast", "train_with_ddp"}  # in files beside this one
    tested |= {f"train_with_{loop}" for loop in ("lightning", "accelerate", "fabric")}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == tested


def test_wrap_attack(capsys):
    changed = example("wrap_attack").main()
    assert set(changed) == {"PGD", "PGDL2", "CW"}
    assert changed["PGD"] > 0.9
    assert "no salient element changed" in capsys.readouterr().out


def test_art_attack():
    left = example("art_attack").main()
    assert set(left) == {"ProjectedGradientDescent", "DeepFool", "HopSkipJump"}
    assert max(left.values()) < 0.6


def test_art_trainer():
    results = example("art_trainer").main(epochs=6)
    assert results["standard"][1] < min(results["Madry"][1], results["SIP-AT"][1])
    assert min(clean for clean, _ in results.values()) > 0.8


def test_foolbox_attack():
    left = example("foolbox_attack").main()
    assert len(left) == 3
    for accuracies in left.values():
        assert accuracies == sorted(accuracies, reverse=True)
    assert left["LinfProjectedGradientDescentAttack"][-1] < 0.6


def test_train_sip_at(monkeypatch):
    results = shortened("train_sip_at", monkeypatch).main()
    for clean, robust in results.values():
        assert clean > 0.85
        assert robust > 0.5


def test_store_and_train(capsys, monkeypatch):
    results = shortened("store_and_train", monkeypatch).main()
    assert 0.05 < results["salient"] < 0.5
    assert results["clean"] > 0.85
    assert results["robust"] > 0.45
    printed = capsys.readouterr().out
    assert "shape=(1400, 1, 8, 8), made by sip_plugin.salience.gradient.GradientSalience): 22592 bytes" in printed


def test_look_at_salience(tmp_path, capsys):
    path = tmp_path / "picture.png"
    found = example("look_at_salience").main(["--epochs", "2", "--out", str(path)])
    assert len(found) == 1497
    assert found.names == ("Madry", "standard")
    assert 0.5 <= found.mass_first.min() <= found.mass_first.max() < 0.6
    assert found.iou.mean() > found.expected_iou.mean() + 0.05  # both look at the strokes
    assert str(found) in capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")


def test_salience_sources(capsys):
    shares, agreement = example("salience_sources").main()
    assert len(shares) == 8
    for name, share in shares.items():
        assert 0.02 < share < 0.4
        assert agreement[name, name] == 1.0
        for other in shares:
            assert agreement[name, other] == agreement[other, name]
    # Captum's saliency is the gradient; smoothed it is still like it; what a convolution stage sees is something else.
    assert agreement["gradient", "saliency"] == 1.0
    assert agreement["gradient", "SmoothGrad"] > 0.5 > agreement["gradient", "Grad-CAM"]
    printed = capsys.readouterr().out
    assert all(f"\n{name}" in printed for name in shares)


@pytest.mark.slow
def test_evaluate(tmp_path, capsys, monkeypatch, quick_autoattack):
    evaluate = example("evaluate")
    monkeypatch.setattr(evaluate, "trained", once(evaluate.trained))
    reports = evaluate.main(images=8, folder=tmp_path)
    printed = capsys.readouterr().out
    auto, pgd = reports["AutoAttack"], reports["PGD"]
    assert str(auto) in printed
    assert auto.clean_accuracy == pgd.clean_accuracy > 0.8
    for eps in evaluate.EPS:
        assert auto.robust_accuracy[eps] <= pgd.robust_accuracy[eps] <= auto.clean_accuracy
    assert auto.robust_accuracy[evaluate.EPS[0]] > 0.5
    again = evaluate.main(images=8, folder=tmp_path)["AutoAttack"]  # found in its folder
    assert again.to_json() == auto.to_json() == (tmp_path / "autoattack.json").read_text()


@pytest.mark.slow
def test_quickstart_on_digits(tmp_path, monkeypatch, capsys, quick_autoattack):
    quickstart = example("quickstart")
    monkeypatch.setitem(quickstart.BUDGET, "steps", 4)
    monkeypatch.setattr(quickstart, "TEST_EPS", (0.1, 0.3))
    result = quickstart.main(
        ["--epochs", "2", "--attacked", "3", "--seeds", "0", "1", "--processes", "1", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "300 training and 1497 test images" in printed
    assert "| SIP-AT (SIP-S) |" in printed
    assert quickstart.LOOK_AT in printed
    assert json.loads((tmp_path / "result.json").read_text())["results"] == result["results"]
    assert (tmp_path / "table.md").read_text() in printed
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    for method, runs in result["results"].items():
        assert [run["seed"] for run in runs] == [0, 1]
        for run in runs:
            assert (tmp_path / f"{method}.{run['seed']}.report.json").exists()
            robust = [run["clean_attacked"], *run["robust"].values()]
            assert robust == sorted(robust, reverse=True)
    maps = torch.rand(4, 1, 8, 8) < 0.3
    assert torch.equal(torch.stack(list(quickstart.RandomLike(maps, 0))).sum((1, 2, 3)), maps.sum((1, 2, 3)))
