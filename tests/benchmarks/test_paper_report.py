"""benchmarks/paper: tables from results, and the page with the paper's."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from matplotlib.axes import Axes

from benchmarks.paper import report
from benchmarks.paper.intervals import Difference, paired_differences
from benchmarks.paper.methods import METHODS
from benchmarks.paper.presets import PRESETS
from sip_plugin.evaluation import RobustnessReport

EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def a_report(right, survivors):
    """A hundred images, of which the first ``right`` are right and the first ``survivors[k]`` survive the k-th ε."""
    norms = torch.zeros(1, 100, dtype=torch.float64)
    for radius, left in zip((*EPS, torch.inf), (right, *survivors), strict=True):
        norms[0, :left] = radius
    labels, nobody = torch.arange(100) % 10, torch.zeros(100, dtype=torch.bool)
    return RobustnessReport(EPS, "Linf", ("apgd-ce",), labels, norms, nobody, {"version": "standard"})


def result(cell, data="a", teacher="b", salient=0.12):
    """What a result file says of its cell."""
    teacher = {"weights_sha256": teacher} if cell.method.startswith("sip") else None
    if cell.method == "sip-h":
        teacher = {"weights_sha256": None, "annotations_sha256": "c"}
    training = {"processes": 1, "epochs": [{"salient": 0.8 * salient}, {"salient": 1.2 * salient}] if teacher else [{}]}
    found = {"cell": cell.as_dict(), "data": {"content": data, "origin": "somewhere"}}
    return found | {"teacher": teacher, "training": training}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two seeds of Madry and SIP-S as files of the preset cifar10-cpu."""
    figures = {"madry": [(50, (44, 40, 30, 20)), (52, (44, 40, 30, 22))], "sip-s": [(60, (50, 40, 28, 12))] * 2}
    folder = tmp_path / "cifar10-cpu" / "cells"
    folder.mkdir(parents=True)
    for cell in PRESETS["cifar10-cpu"].cells():
        if cell.method in figures and cell.seed < 2:
            a_report(*figures[cell.method][cell.seed]).to_json(folder / f"{cell.name}.report.json")
            (folder / f"{cell.name}.json").write_text(json.dumps(result(cell)))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_a_report_is_written_from_the_cells_that_there_are(results):
    folder = results / "cifar10-cpu"
    (folder / "cells" / ".a.report.json.0.json").write_text("{")  # which a kill has left
    report.write_report(PRESETS["cifar10-cpu"], folder)
    table = (folder / "table.md").read_text()
    madry = next(line for line in table.splitlines() if "Madry" in line)
    assert "51.0 ± 1.4" in madry
    assert "21.0 ± 1.4" in madry
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "gains.png").read_bytes()[:4] == b"\x89PNG"


def test_a_standard_row_without_a_seed_is_no_reason_to_leave_out_the_gains(results):
    folder = results / "cifar10-cpu"
    cell = next(cell for cell in PRESETS["cifar10-cpu"].cells() if cell.method == "standard")
    a_report(60, (10, 0, 0, 0)).to_json(folder / "cells" / f"{cell.name}.report.json")
    (folder / "cells" / f"{cell.name}.json").write_text(json.dumps(result(cell)))
    report.write_report(PRESETS["cifar10-cpu"], folder)
    assert (folder / "gains.png").exists()


@pytest.mark.results
def test_the_committed_cells_are_the_presets():
    pages = "".join(
        (report.HERE.parents[1] / page).read_text() for page in ("docs/results.md", "benchmarks/paper/PAPER.md")
    )
    for folder in (report.HERE.parent / "results" / "paper").iterdir():
        cells = {cell.name: cell for cell in PRESETS[folder.name].cells()}
        files = [path for path in (folder / "cells").glob("*.json") if ".report" not in path.name]
        assert cells.keys() == {path.stem for path in files}
        (parameters,) = {json.loads(path.read_text())["network"]["parameters"] for path in files}
        assert f"{parameters:,} parameters" in pages
        for path in files:
            found, cell = json.loads(path.read_text()), cells[path.stem]
            assert cell.as_dict() == found["cell"]
            teacher = (found["teacher"] or {}).get("weights_sha256")
            assert cell.training_key(found["data"]["content"], teacher) == found["training_key"]


@pytest.mark.results
@pytest.mark.parametrize("preset", ["cifar10-cpu", "cifar10-cpu-maps", "cifar10-cpu-long"])
def test_the_committed_table_is_that_of_the_committed_cells(preset, tmp_path, monkeypatch, capsys):
    committed = report.HERE.parent / "results" / "paper"
    for name in filter(None, (preset, PRESETS[preset].base)):
        shutil.copytree(committed / name / "cells", tmp_path / name / "cells")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.write_report(PRESETS[preset], tmp_path / preset)
    for name in ("table.md", "table.tex"):
        assert (tmp_path / preset / name).read_text() == (committed / preset / name).read_text(), name


def test_no_picture_of_gains_is_left_where_a_row_lacks_a_seed(results, capsys):
    folder = results / "cifar10-cpu"
    report.write_report(PRESETS["cifar10-cpu"], folder)
    next((folder / "cells").glob("*-sip-s-seed1.json")).unlink()
    report.write_report(PRESETS["cifar10-cpu"], folder)
    assert not (folder / "gains.png").exists()
    assert "no gains.png" in capsys.readouterr().out


def test_a_report_of_some_seeds_leaves_out_the_others(results):
    folder = results / "cifar10-cpu"
    report.write_report(PRESETS["cifar10-cpu"], folder, [1])
    table = (folder / "table.md").read_text()
    assert "52.0" in next(line for line in table.splitlines() if "Madry" in line)
    next((folder / "cells").glob("*-sip-s-seed1.json")).unlink()
    report.write_report(PRESETS["cifar10-cpu"], folder, [1])
    assert "SIP-S" not in (folder / "table.md").read_text()
    with pytest.raises(ValueError, match="no results of seed 5, 6"):
        report.write_report(PRESETS["cifar10-cpu"], folder, [5, 6])


def test_the_differences_are_between_networks_of_one_seed(results):
    def ours():
        lines = report.differences_table("cifar10-cpu", "cifar10").splitlines()
        return lines, [re.sub(r" \[.*?\]", "", line) for line in lines if "SIP-S" in line and "ours" in line]

    lines, found = ours()
    assert found == ["| SIP-S | ours (2), convnet24 | +9.0 | +6.0 | +0.0 | −2.0 | −9.0 |"]
    folder = results / "cifar10-cpu" / "cells"
    for file in folder.glob("*madry-seed0*"):
        file.unlink()
    assert ours()[1] == ["| SIP-S | ours (1), convnet24 | +8.0 | +6.0 | +0.0 | −2.0 | −10.0 |"]
    for file in folder.glob("*madry-seed1*"):
        file.unlink()
    assert ours()[1] == []
    paper = next(line for line in lines if "SIP-S" in line and "ResNet-18" in line)
    assert paper.startswith("| SIP-S | paper, ResNet-18 | +8.0 | +9.4 | +10.3 | +10.6 | +6.7")  # 82.34 − 74.39, …


def test_one_method_against_the_others(results):
    lines = report.against_table("sip-s", "cifar10-cpu").splitlines()
    assert lines[0].startswith("| SIP-S against |  | Clean |")
    (line,) = lines[2:]
    assert line.startswith("| Madry | ours (2), convnet24 | +9.0 [+")
    assert " | +0.0 [+0.0, +0.0] | " in line  # the same images are right


def test_a_method_is_ahead_or_behind_where_its_interval_has_no_zero(results):
    says = report.conclusions("cifar10-cpu")
    assert says.startswith("- SIP-S is ahead of Madry on clean images (+9.0 [+")
    assert " and is behind it at 8/255 (−9.0 [−" in says
    assert says.count("\n") == 0
    for cell in PRESETS["cifar10-cpu"].cells():  # a control that is Madry
        if cell.method == "sip-random" and cell.seed < 2:
            folder = results / "cifar10-cpu" / "cells"
            madry = f"cifar10-convnet24-madry-seed{cell.seed}.report.json"
            shutil.copy(folder / madry, folder / f"{cell.name}.report.json")
            (folder / f"{cell.name}.json").write_text(json.dumps(result(cell)))
    first, second = report.conclusions("cifar10-cpu").splitlines()
    assert first.startswith(says[:-1] + "; it is ahead of control: random map on clean images (+9.0")
    assert second.startswith("- control: random map cannot be told from Madry on clean images (+0.0 [+0.0, +0.0])")


def of_images(*runs):
    """A report for each run: which images are right, at every ε."""
    nobody = torch.zeros(len(runs[0]), dtype=torch.bool)
    return [
        RobustnessReport(
            (0.1,), "Linf", ("pgd",), nobody.long(), torch.where(right, torch.inf, 0.0)[None].double(), nobody
        )
        for right in runs
    ]


def test_an_interval_of_one_seed_is_that_of_a_mean_of_images():
    first, second = torch.rand(2, 400, generator=torch.Generator().manual_seed(0)) < 0.5
    found = paired_differences(of_images(first), of_images(second))
    gap = 100 * (first.double() - second.double())
    mean, half = gap.mean().item(), 1.96 * gap.std().item() / 20
    assert found[0.0] == found[0.1]
    assert tuple(found[0.0]) == pytest.approx((mean, mean - half, mean + half), abs=0.4)


def test_seeds_that_differ_widen_an_interval_and_what_images_share_does_not():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=generator) < 0.5  # for all networks
    better = torch.rand(400, generator=generator) < 0.3
    none = of_images(hard, hard, hard)
    same, other = (
        paired_differences(of_images(*(hard | (better & gains) for gains in seeds)), none)[0.0]
        for seeds in ((True, True, True), (True, False, True))
    )
    assert same.low < 100 * (~hard & better).double().mean() < same.high
    assert same.high - same.low < 8
    assert other.low == 0 < same.low  # all three draws may be of the seed that gains nothing
    assert (same.shown, other.shown, paired_differences(none, none)[0.1]) == (1, 0, (0, 0, 0))
    assert [Difference(2, low, 4).shown for low in (4e-16, 0, -4e-16, 0.05)] == [0, 0, 0, 1]  # sums of floats
    assert [Difference(-2, -4, high).shown for high in (4e-16, 0, -4e-16, -0.05)] == [0, 0, 0, -1]


@pytest.fixture
def maps(results):
    """The preset of the maps' sizes, with as many salient elements as its cells' names say, beside cifar10-cpu's."""
    folder = results / "cifar10-cpu-maps" / "cells"
    folder.mkdir(parents=True)
    for cell in PRESETS["cifar10-cpu-maps"].cells():
        a_report(70, (50, 40, 30, 20)).to_json(folder / f"{cell.name}.report.json")
        found = result(cell, salient=METHODS[cell.method].mass / 4)
        (folder / f"{cell.name}.json").write_text(json.dumps(found))
    return folder.parent


def test_a_preset_shows_its_bases_cells_beside_its_own(maps, capsys):
    preset = PRESETS["cifar10-cpu-maps"]
    runs = report.read_results(preset, maps)["convnet24"]
    assert set(runs) == {"madry", "sip-s", *(cell.method for cell in preset.cells())}
    assert all(list(seeds) == [0, 1] for seeds in runs.values())
    assert "| SIP-S, mass 0.25 | ours (2), convnet24 | +19.0 [" in report.differences_table("cifar10-cpu-maps")
    assert not {"SIP-S", "control: random map"} & set(
        re.findall(r"- (.*?) (?:is|cannot)", report.conclusions(maps.name))
    )
    report.write_report(preset, maps)
    assert (maps / "shares.png").read_bytes()[:4] == b"\x89PNG"
    for file in (maps.parent / "cifar10-cpu" / "cells").glob("*-madry-*"):
        file.unlink()
    report.write_report(preset, maps)
    assert not (maps / "shares.png").exists()
    assert "no shares.png" in capsys.readouterr().out


def test_the_lines_of_the_sizes_start_at_madry(maps, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, *rest, **kw: drawn.append((x, y, kw)) or plot(self, x, y, *rest, **kw)
    )
    report.draw_shares(PRESETS["cifar10-cpu-maps"], maps)
    clean, robust = (next(line for line in each if line[2].get("label") == "SIP-S") for each in (drawn, drawn[::-1]))
    assert clean[0] == robust[0] == pytest.approx([0, 6.25, 12, 18.75])
    assert clean[1] == pytest.approx([51, 70, 60, 70])
    assert robust[1] == pytest.approx([21, 20, 12, 20])


def test_ours_stand_below_the_papers_row(results, monkeypatch):
    without = report.published_table("cifar10", "resnet18")
    assert "ours" not in without
    assert "| Madry | paper | 74.39 ± 0.15 | 68.33 ± 0.12 |" in without
    cell = next(c for c in PRESETS["cifar10"].cells() if c.method == "madry")
    folder = results / "cifar10" / "cells"
    folder.mkdir(parents=True)
    a_report(50, (44, 40, 30, 20)).to_json(folder / f"{cell.name}.report.json")
    (folder / f"{cell.name}.json").write_text(json.dumps(result(cell)))
    assert "| Madry | ours (1) | 50.00 | 44.00 | 40.00 | 30.00 | 20.00 |" in report.published_table(
        "cifar10", "resnet18"
    )


def test_a_result_under_another_cells_name_is_refused(results):
    folder = results / "cifar10-cpu" / "cells"
    madry, sip = (next(folder.glob(f"*-{method}-seed0.json")) for method in ("madry", "sip-s"))
    sip.write_text(madry.read_text())
    with pytest.raises(ValueError, match="another cell"):
        report.read_results(PRESETS["cifar10-cpu"], results / "cifar10-cpu")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found["cell"]["training"].update(epochs=100), "training.epochs: 12 against 100"),
        (lambda found: found["cell"]["evaluation"].update(version="rand"), "evaluation.version"),
        (lambda found: found["data"].update(content="other"), "data: a against other"),
        (lambda found: found["training"].update(processes=4), "processes: 1 against 4"),
        (lambda found: found["teacher"].update(weights_sha256="other"), "teacher: other weights"),
    ],
)
def test_cells_of_different_settings_do_not_share_a_table(results, change, named):
    folder = results / "cifar10-cpu"
    path = sorted((folder / "cells").glob("*-sip-s-seed1.json"))[0]
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=named):
        report.read_results(PRESETS["cifar10-cpu"], folder)


def test_cells_of_other_annotations_do_not_share_a_table(results):
    folder = results / "cifar10-cpu"
    for seed in range(2):
        cell = dataclasses.replace(next(PRESETS["cifar10-cpu"].cells()), method="sip-h", seed=seed)
        a_report(50, (44, 40, 30, 20)).to_json(folder / "cells" / f"{cell.name}.report.json")
        path = folder / "cells" / f"{cell.name}.json"
        path.write_text(json.dumps(result(cell)))
    assert "sip-h" in report.read_results(PRESETS["cifar10-cpu"], folder)["convnet24"]
    path.write_text(path.read_text().replace('"annotations_sha256": "c"', '"annotations_sha256": "d"'))
    with pytest.raises(ValueError, match="other annotations"):
        report.read_results(PRESETS["cifar10-cpu"], folder)


def test_a_result_without_its_images_says_what_to_do(results):
    folder = results / "cifar10-cpu"
    next((folder / "cells").glob("*-sip-s-seed1.report.json")).unlink()
    with pytest.raises(ValueError, match=r"has no .*sip-s-seed1\.report\.json beside it: remove it"):
        report.read_results(PRESETS["cifar10-cpu"], folder)


def test_cells_beyond_the_presets_own_are_in_the_table(results):
    folder = results / "cifar10-cpu"
    extra = dataclasses.replace(next(PRESETS["cifar10-cpu"].cells()), arch="convnet16", method="sip-fat", seed=7)
    a_report(50, (44, 40, 30, 20)).to_json(folder / "cells" / f"{extra.name}.report.json")
    (folder / "cells" / f"{extra.name}.json").write_text(json.dumps(result(extra)))
    runs = report.read_results(PRESETS["cifar10-cpu"], folder)
    assert list(runs) == ["convnet24", "convnet16"]
    assert list(runs["convnet16"]) == ["sip-fat"]
