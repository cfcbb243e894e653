"""The benchmark of the evaluation counts what it says, and its table shows it."""

import pytest
import torch

from benchmarks import evaluation
from tests.evaluation.conftest import EPS, QuickAutoAttack, evaluated, quick  # noqa: F401

pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")


def test_both_ways_are_compared_on_the_same_images(network, evaluated, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pyautoattack, "AutoAttack", QuickAutoAttack)
    x, y = evaluated
    modes = {"default": {}, "assume_survivors, not folded": {"assume_survivors": True, "fold_batchnorm": False}}
    result = evaluation.compared(network, x, y, EPS, 20, 0, modes)
    with torch.no_grad():
        assert result["clean_right"] == int((network(x).argmax(1) == y).sum())
    assert set(result["right"]) == {"independent", *modes}
    for mode in modes:
        for ball, entry in enumerate(result["agreement"][mode]):
            alone, ours = result["right"]["independent"][ball], result["right"][mode][ball]
            lost, gained = entry["broken_by_ours_alone"], entry["broken_by_the_independent_run_alone"]
            assert ours == alone - lost + gained
            assert entry["same"] == pytest.approx(1 - (lost + gained) / len(x))
        for clock in ("wall", "processor"):
            spent = result["seconds"][mode][clock], result["seconds"]["independent"][clock]
            assert result["ratio"][mode][clock] == pytest.approx(spent[0] / spent[1])
    text = evaluation.table(result)
    assert f"of 20 images ({result['clean_right']} right when clean)" in text
    assert "| independent | " + " | ".join(map(str, result["right"]["independent"])) in text


def test_an_attack_on_the_folded_network_keeps_less(network, evaluated, quick):  # noqa: F811
    alive = evaluation.peak_memory(network, *evaluated)
    assert 0 < alive["folded"] < alive["as it is"]


def test_verdicts_are_compared_image_by_image():
    independent, ours = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert evaluation.against(independent, ours) == {
        "same": 0.5,
        "broken_by_the_independent_run_alone": 1,
        "broken_by_ours_alone": 1,
    }


def test_a_saved_network_is_not_trained_again(tmp_path):
    options = evaluation.parse(["--data-dir", "nowhere", "--network", str(tmp_path / "network.pt"), "--epochs", "1"])
    data = evaluation.Data((torch.rand(64, 3, 32, 32), torch.arange(64) % 10), (torch.rand(1, 3, 32, 32), None), 10, "")
    first, how = evaluation.network(options, data)
    assert how["epochs"] == 1
    assert not first.training
    again, same = evaluation.network(options, data)
    assert same == how
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
