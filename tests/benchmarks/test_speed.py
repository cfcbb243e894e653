"""The benchmark scripts run and write what they promise; their figures are not judged here."""

import json

import pytest
import torch

from benchmarks.record import write_text
from benchmarks.speed import epoch, folding, mask_store, measure, salience_selection, training_step, wrapper_overhead
from tests.conftest import ROOT, small_network


def test_the_ratio_is_the_median_of_the_rounds():
    seconds = {"ours": [2.0, 3.0, 10.0], "theirs": [1.0, 2.0, 4.0]}
    assert measure.ratio(seconds, "ours", "theirs")["median_ratio"] == 2.0


def test_rounds_turn_round_and_the_first_does_not_count():
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleaved(ways, rounds=3, device="cpu")
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert "".join(order) == "abbaabba"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # ART writes a configuration there when it is imported


def test_wrapper_overhead_runs_and_writes_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(wrapper_overhead, "reference_resnet18", small_network)
    monkeypatch.setattr(wrapper_overhead, "_REPEATS", 3)
    out = tmp_path / "result.json"
    wrapper_overhead.main(["--batch", "4", "--rounds", "2", "--attacks", "PGD", "FGSM", "--out", str(out)])
    record = json.loads(out.read_text())
    assert {"versions", "hardware", "command", "seed", "results"} <= set(record)
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in record["versions"]["torch"]
    assert list(record["results"]) == [
        "SIPWrapper(torchattacks.PGD) / bare",
        "SIPWrapper(torchattacks.FGSM) / bare",
        "SIPWrapper(art.ProjectedGradientDescent) / bare",
        "SIPWrapper(art.ProjectedGradientDescentNumpy) / bare",
        "SIPWrapper(art.FastGradientMethod) / bare",
        "SIPWrapper(foolbox.LinfPGD) / bare",
        "SIPWrapper(foolbox.FGSM) / bare",
        "SIPWrapper(pyautoattack.AutoAttack) / bare",
        "a query about 99 of 100 images with its rows known / that query",
        "a query about 99 of 100 images, and its gradient, with its rows known / that query",
        "AdversarialTrainer('sip-at') step / bare passes",
        *(
            f"torchattacks.PGD, {layout}, {precision}: {ways}"
            for layout in ("contiguous", "channels-last")
            for precision in ("float32", "bfloat16")
            for ways in ("wrapped / bare", "wrapped, folded / bare, folded", "wrapped, folded / bare")
        ),
    ]
    assert all(result["median_ratio"] > 0 for result in record["results"].values())


def test_training_step_runs_and_writes_its_record(tmp_path):
    out = tmp_path / "result.json"
    results = training_step.main(["--width", "4", "--batch", "4", "--rounds", "1", "--out", str(out)])
    record = json.loads(out.read_text())
    assert {"versions", "hardware", "command", "seed", "results", "peak_bytes", "network"} <= set(record)
    for name, rows in {
        "madry": [4] * 10,
        "sip-at": [4] * 10,
        "trades": [4] * 11,
        "mart": [4] * 10,
        "part": [4] * 11,
    }.items():
        assert results[f"{name} step / its bare passes"]["rows"] == rows
    assert sum(results["fat step / its bare passes"]["rows"]) <= 40
    assert len(results) == 6 + 15 + 1
    for name in ("search of Madry", "GradientSalience"):
        assert record["peak_bytes"][f"{name}, folded"] < 0.8 * record["peak_bytes"][name]


def test_an_epoch_runs_and_writes_its_record(tmp_path):
    out = tmp_path / "result.json"
    result = epoch.main(["--width", "2", "--batch", "4", "--images", "8", "--out", str(out)])
    assert json.loads(out.read_text())["results"] == result["results"]
    assert set(result["results"]) == {"as it is", "folded"}
    assert all(way["images_per_second"] == pytest.approx(8 / way["seconds"]) for way in result["results"].values())
    assert result["operations_of_a_step"] > 0


def test_salience_selection_runs_and_writes_its_record(tmp_path):
    out = tmp_path / "result.json"
    arguments = [
        "--batch",
        "2",
        "--size",
        "32",
        "--rounds",
        "1",
        "--small-batch",
        "1",
        "--small-rounds",
        "1",
        "--out",
        str(out),
    ]
    results = salience_selection.main(arguments)
    record = json.loads(out.read_text())
    assert {"versions", "hardware", "command", "seed", "results", "network", "images"} <= set(record)
    assert record["images"] == [2, 3, 32, 32]
    assert record["images_of_whole_maps"] == [1, 3, 32, 32]
    assert 0 < record["salient_share"] < 0.5
    ways = ("top_mass_mask", "sorting values with their positions", "GradientSalience", "CAMSalience")
    assert list(results) == [f"{way} / forward and backward" for way in ways]
    assert record["results"] == results


def test_salience_selection_refuses_maps_that_differ(monkeypatch):
    monkeypatch.setattr(salience_selection, "top_mass_mask", lambda scores: scores > scores.mean())
    with pytest.raises(RuntimeError, match="plain selection"):
        salience_selection.main(["--batch", "1", "--size", "32", "--rounds", "1"])


@pytest.mark.results
def test_the_committed_selection_takes_less_than_a_tenth_of_the_passes():
    record = json.loads((ROOT / "benchmarks" / "results" / "speed" / "salience_selection.json").read_text())
    assert record["images"] == [64, 3, 224, 224]
    assert max(record["results"]["top_mass_mask / forward and backward"]["ratios"]) < 0.1
    assert record["results"]["GradientSalience / forward and backward"]["median_ratio"] < 1.1


@pytest.mark.slow
def test_mask_store_runs_and_writes_its_record(tmp_path):
    out = tmp_path / "result.json"
    settings = [
        "--images",
        "1000",
        "--trained",
        "32",
        "--width",
        "4",
        "--batch",
        "8",
        "--rounds",
        "1",
        "--processes",
        "1",
    ]
    results = mask_store.main([*settings, "--out", str(out)])
    record = json.loads(out.read_text())
    assert {"versions", "hardware", "command", "seed", "results", "store", "network"} <= set(record)
    assert list(record["results"]) == [
        "512 random maps / decoding 64 JPEGs of 32×32",
        "512 random maps / decoding 64 JPEGs of 224×224",
        "MaskStore.build / the teacher's bare passes",
        "MaskStore.build / GradientSalience, maps dropped",
        "SIP-AT step, maps at hand / Madry step",
        "SIP-AT step, maps from the store / Madry step",
        "SIP-AT step, teacher in the loop / Madry step",
        "SIP-AT step with SalientDataset's loader / Madry step with a loader of images",
        "a batch of SalientDataset / a batch of images alone, both cropped and flipped",
    ]
    assert all(result["median_ratio"] > 0 for result in record["results"].values())
    assert 385 <= results["store"]["bytes_per_image"] < 400


def test_peak_memory_counts_what_is_alive_at_once():
    with measure.PeakMemory() as peak:
        one = torch.ones(1000)
        two = one + 1
        del one
        three = two * 2
    assert peak.bytes == 8000
    assert float(three[0]) == 4.0


def test_parts_of_wrapper_overhead_run_alone(monkeypatch):
    monkeypatch.setattr(wrapper_overhead, "reference_resnet18", small_network)
    results = wrapper_overhead.main(["--batch", "4", "--rounds", "1", "--parts", "foolbox"])
    assert list(results) == ["SIPWrapper(foolbox.LinfPGD) / bare", "SIPWrapper(foolbox.FGSM) / bare"]


@pytest.mark.parametrize("measured", [wrapper_overhead.of_art, wrapper_overhead.of_foolbox])
def test_what_is_timed_is_one_attack_wrapped_and_bare(measured, network, images, labels, salience):
    for name, ways in measured(network, images, labels, salience):
        results = {}
        for way, run in ways.items():
            torch.manual_seed(0)
            found = run()
            results[way] = torch.as_tensor(found[1] if isinstance(found, tuple) else found)
        assert torch.equal(results["wrapped"][salience], images[salience]), name
        assert not torch.equal(results["bare"][salience], images[salience]), name
        for result in results.values():
            assert (result - images).abs().max() <= wrapper_overhead.EPS + 1e-6, name


@pytest.mark.slow
def test_the_reference_network_is_the_real_one():
    model = measure.reference_resnet18()
    assert sum(p.numel() for p in model.parameters()) == 11173962
    assert not model.training


def test_a_result_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_text(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folding_runs_and_writes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "NETWORKS", {"resnet18-16": (lambda: measure.resnet18(4), 2)})
    out = tmp_path / "folding.json"
    rows = folding.main(["--networks", "resnet18-16", "--rounds", "1", "--out", str(out)])
    assert json.loads(out.read_text())["results"] == rows
    assert len(rows) == 4
    for row in rows:
        assert row["kept_bytes"]["folded"] < 0.8 * row["kept_bytes"]["as it is"]
        assert set(row["steps"]) == {"madry", "sip-at", "trades"}
    assert len(out.with_suffix(".md").read_text().splitlines()) == 2 + 4
