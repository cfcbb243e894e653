"""The benchmark scripts run and write what they promise; their figures are not judged here."""

import json

import pytest
import torch

from benchmarks.record import write_text
from benchmarks.speed import measure, wrapper_overhead
from tests.conftest import small_network


def test_the_ratio_is_the_median_of_the_rounds():
    seconds = {"ours": [2.0, 3.0, 10.0], "theirs": [1.0, 2.0, 4.0]}
    assert measure.ratio(seconds, "ours", "theirs")["median_ratio"] == 2.0


def test_rounds_turn_round_and_the_first_does_not_count():
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleaved(ways, rounds=3, device="cpu")
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert "".join(order) == "abbaabba"


def test_wrapper_overhead_runs_and_writes_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(wrapper_overhead, "reference_resnet18", small_network)
    out = tmp_path / "result.json"
    wrapper_overhead.main(["--batch", "4", "--rounds", "2", "--attacks", "PGD", "FGSM", "--out", str(out)])
    record = json.loads(out.read_text())
    assert {"versions", "hardware", "command", "seed", "results"} <= set(record)
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in record["versions"]["torch"]
    assert len(record["results"]) == 4
    assert all(result["median_ratio"] > 0 for result in record["results"].values())


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
