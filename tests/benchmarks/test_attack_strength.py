"""The comparison with late masking: the script runs, covers the tables, and its committed figures say what is claimed."""

import importlib
import json

import numpy as np
import pytest
import torch

from benchmarks import attack_strength
from benchmarks.strength.setting import seeded, setting
from sip_plugin.adapters.specs import ART, FOOLBOX, TORCHATTACKS
from tests.adapters import function_rows
from tests.conftest import ROOT

TABLES = {"torchattacks": TORCHATTACKS.specs, "art": ART.specs, "foolbox": FOOLBOX.specs}
TABLES["functions"] = [f"{row.library}.{row.name}" for row in function_rows.TABLE]


def module_of(library):
    return importlib.import_module(f"benchmarks.strength.{library}")


def committed(library):
    folder = "attack_strength" if library == "torchattacks" else f"attack_strength_{library}"
    return ROOT / "benchmarks" / "results" / folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # ART writes a configuration there when it is imported


@pytest.mark.parametrize("library", attack_strength.LIBRARIES)
def test_it_covers_every_attack_or_says_why_not(library):
    module = module_of(library)
    measured = {name.split()[0] for name in module.ATTACKS}
    assert measured | set(module.LEFT_OUT) == set(TABLES[library])
    assert not measured & set(module.LEFT_OUT)
    assert all(module.LEFT_OUT.values())


def test_of_torchattacks_only_those_without_a_query_are_left_out():
    assert set(module_of("torchattacks").LEFT_OUT) == {"VANILA", "GN"}


@pytest.mark.parametrize("library", ["art", "foolbox", "functions"])
def test_every_name_in_the_settings_is_that_of_a_row(library):
    module = module_of(library)
    assert set(module.IMAGES) <= set(module.ATTACKS)
    conditions = module.conditions(list(module.ATTACKS))
    for key in conditions.keys() - {"fewer_images", "left_out"}:
        assert set(conditions[key]) <= {name.split()[0] for name in module.ATTACKS}, key


@pytest.mark.parametrize(
    ("library", "names", "folder"),
    [
        ("torchattacks", ["CW", "PGDL2"], "out"),
        ("art", ["FastGradientMethod L2", "NewtonFool", "HopSkipJump"], "out_art"),
        ("foolbox", ["LinfBasicIterativeAttack", "L2DeepFoolAttack", "BoundaryAttack"], "out_foolbox"),
        ("functions", ["adv_lib.ddn", "cleverhans.hop_skip_jump_attack", "secml_torch.DDN native"], "out_functions"),
    ],
)
def test_it_runs_and_writes_its_record(library, names, folder, tmp_path):
    out = str(tmp_path / "out")
    results = attack_strength.main(["--library", library, "--images", "6", "--attacks", *names, "--out", out])
    record = json.loads((tmp_path / folder / "result.json").read_text())
    assert record["correct"] == results[library]
    assert list(results) == [library]
    assert list(results[library]) == names
    assert f"| {names[1]} |" in (tmp_path / folder / "table.md").read_text()
    assert {"versions", "hardware", "command", "seed"} <= set(record)


def test_attacks_of_several_libraries_go_to_their_own_folders(tmp_path):
    arguments = ["--images", "6", "--attacks", "DeepFool", "L2DeepFoolAttack", "--out", str(tmp_path / "out")]
    results = attack_strength.main(arguments)
    assert {library: list(rows) for library, rows in results.items()} == {
        "torchattacks": ["DeepFool"],
        "art": ["DeepFool"],
        "foolbox": ["L2DeepFoolAttack"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out_art", "out_foolbox"]


def test_an_attack_of_no_chosen_library_is_refused(capsys):
    with pytest.raises(SystemExit):
        attack_strength.main(["--library", "art", "--attacks", "PGDL2"])
    assert "PGDL2" in capsys.readouterr().err


def test_a_seed_reaches_generators_that_attacks_make_or_seed_themselves():
    def draw():
        return torch.from_numpy(np.concatenate([np.random.RandomState().rand(2), np.random.RandomState(5).rand(2)]))

    def draw_anew():
        np.random.seed()
        return torch.from_numpy(np.random.rand(2))

    kind, seed = np.random.RandomState, np.random.seed
    assert torch.equal(seeded(3, draw_anew), seeded(3, draw_anew))
    assert torch.equal(seeded(3, draw), seeded(3, draw))
    assert not torch.equal(seeded(3, draw)[:2], seeded(4, draw)[:2])
    assert torch.equal(seeded(3, draw)[2:], seeded(4, draw)[2:])
    assert (np.random.RandomState, np.random.seed) == (kind, seed)


def test_an_image_with_nan_counts_as_unchanged():
    some = setting(4, 0)
    broken = some.x.clone()
    broken[1, 0, 0, 0] = torch.nan
    broken[2] = 0.5
    expected = some.x.clone()
    expected[2] = 0.5
    assert some.correct(some.x) == 4
    assert some.correct(broken) == some.correct(expected)


def test_starting_points_are_taken_for_another_class_with_and_without_the_map():
    some = setting(4, 0)
    points = some.starting_points()
    with torch.no_grad():
        for images in (points, torch.where(some.salience, some.x, points)):
            assert (some.model(images).argmax(1) != some.y).all()


@pytest.mark.results
@pytest.mark.parametrize("library", attack_strength.LIBRARIES)
def test_in_the_committed_figures_no_projected_attack_is_weaker_than_late_masking(library):
    record = json.loads((committed(library) / "result.json").read_text())
    for name, correct in record["correct"].items():
        noise = name == "torchattack.FDA"  # whose loss knows no class
        assert correct["projected"] <= correct["late"] + noise, name


@pytest.mark.results
@pytest.mark.parametrize("library", attack_strength.LIBRARIES)
def test_the_committed_figures_are_not_stale(library):
    module = module_of(library)
    record = json.loads((committed(library) / "result.json").read_text())
    assert list(record["correct"]) == list(module.ATTACKS)
    assert record["arguments"] == module.ATTACKS
    conditions = module.conditions(list(module.ATTACKS))
    assert {key: record[key] for key in conditions} == conditions
    table = (committed(library) / "table.md").read_text()
    for name, r in record["correct"].items():
        shown = f"{name} (of {module.IMAGES[name]})" if name in module.IMAGES else name
        assert f"| {shown} | {r['bare']} | {r['late']} | {r['projected']} |" in table
