"""The comparison with late masking: the script runs, covers the table, and its committed figures say what is claimed."""

import json

from benchmarks import attack_strength
from sip_plugin.adapters.torchattacks_table import TABLE
from tests.conftest import ROOT


def test_it_covers_every_attack_that_steers_by_the_network():
    assert {name.split()[0] for name in attack_strength.ATTACKS} == set(TABLE) - {"VANILA", "GN"}


def test_it_runs_and_writes_its_record(tmp_path):
    results = attack_strength.main(["--images", "12", "--attacks", "PGDL2", "CW", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["correct"] == results
    assert "| CW |" in (tmp_path / "table.md").read_text()
    assert {"versions", "hardware", "command", "seed"} <= set(record)


def test_in_the_committed_figures_no_projected_attack_is_weaker_than_late_masking():
    record = json.loads((ROOT / "benchmarks" / "results" / "attack_strength" / "result.json").read_text())
    assert set(record["correct"]) == set(attack_strength.ATTACKS)
    assert record["arguments"] == attack_strength.ATTACKS  # else the figures are stale
    for name, correct in record["correct"].items():
        assert correct["projected"] <= correct["late"], name
