"""Every block of every page runs, links lead somewhere, every public name has its reference, results are in bounds."""

import importlib
import json
import pkgutil
import pydoc
import re
import statistics
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyautoattack
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2.functional import to_pil_image

import sip_plugin
from benchmarks.every_step import loss, pgd
from examples.own_method import LogitPairing
from tests.conftest import ROOT, small_network
from tests.evaluation.conftest import QuickAutoAttack, quick  # noqa: F401

DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES, ROOT / "benchmarks" / "paper" / "PAPER.md"]
RESULTS = ROOT / "benchmarks" / "results"
ELSEWHERE = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}


def blocks(page):
    """The Python on a page, notebooks' cells included."""
    return re.findall(
        r"^```(?:python|\{code-cell\} python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def anchors(page):
    """Of a page's headings, as GitHub makes them, and of those that it includes."""
    text = page.read_text(encoding="utf-8")
    text += "\n".join((page.parent / path).read_text(encoding="utf-8") for path in re.findall(r"{include} (\S+)", text))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.results
@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
    for path, anchor in [*targets, *re.findall(r"include\} (\S+)()", text)]:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_reference_has_every_public_name():
    documented = []
    for page in (DOCS / "reference").glob("*.rst"):
        text, module = page.read_text(encoding="utf-8"), ""
        for kind, name in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)", text, re.MULTILINE):
            module = name if kind == "currentmodule" else module
            if kind.startswith(("auto", "py:data")) and kind != "automodule":
                documented.append(pydoc.locate(name if name.startswith("sip_plugin.") else f"{module}.{name}"))
    names = ["sip_plugin", *(m.name for m in pkgutil.walk_packages(sip_plugin.__path__, "sip_plugin."))]
    packages = [module for module in map(importlib.import_module, names) if hasattr(module, "__all__")]
    assert len(packages) == 5
    for package in packages:
        for name in package.__all__:
            assert any(getattr(package, name) is known for known in documented), f"{package.__name__}.{name}"


@pytest.fixture
def names(network, images, labels, digits, tmp_path, monkeypatch):
    """What a page may take as given, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyautoattack, "AutoAttack", partial(QuickAutoAttack, seed=0))  # its own seed is the time
    for i, image in enumerate(images):
        (tmp_path / "photos" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(tmp_path / "photos" / str(i % 2) / f"{i}.png")
    torch.manual_seed(0)
    return {
        "model": network,
        "teacher": network,
        "images": images,
        "labels": labels,
        "input_shape": (3, 16, 16),
        "x": images.numpy(),
        "y": labels.numpy(),
        "dataset": TensorDataset(images, labels),
        "loader": DataLoader(TensorDataset(digits[0][:40], digits[1][:40]), batch_size=20),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        "epochs": 2,
        "LogitPairing": LogitPairing,
    }


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p) and p.stem not in ELSEWHERE], ids=lambda p: p.stem)
def test_the_blocks_run_one_after_the_other(page, names, network, images, quick):  # noqa: F811
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for block in blocks(page):
        exec(re.sub(r"\b(EPOCHS|ATTACKED|epochs|max_epochs)( ?= ?)\d+", r"\g<1>\g<2>1", block), names)
    check = globals().get(f"check_{page.stem}")
    if check is not None:
        changed = any(not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
        check(SimpleNamespace(**names), images, changed)


def check_projected(results, salient, images):
    for found in results:
        assert torch.equal(found[salient], images[salient])
        assert not torch.equal(found, images)


def check_start(page, images, changed):
    assert page.report.clean_accuracy > 0.6
    assert len(page.report.robust_accuracy) == 2
    # its stand-ins are what the other pages are tested with, and the names that they take
    assert str(page.teacher) == str(small_network())
    assert page.images.shape[1:] == images.shape[1:] == page.input_shape
    assert {"model", "labels", "x", "y", "dataset", "loader", "optimizer", "epochs"} <= set(vars(page))


def check_attacks(page, images, changed):
    found = [page.adv, page.adv_both, torch.tensor(page.adv_art), page.adv_auto, *page.clipped]
    assert len(found) == 6
    check_projected(found, page.mask_fn(images), images)


def check_functions(page, images, changed):
    check_projected([page.adv, page.adv_targeted], page.mask_fn(images), images)


def check_training(page, images, changed):
    assert changed
    assert page.trainer.current_epoch == 1
    assert 0 <= page.trainer.callback_metrics["adversarial_accuracy"] <= 1


def check_methods(page, images, changed):
    assert page.loss.requires_grad
    assert set(page.checkpoint) == {"network", "trainer"}


def check_own_method(page, images, changed):
    assert page.loss.requires_grad


def check_store(page, images, changed):
    assert page.loss.requires_grad
    assert page.maps.dtype == torch.bool
    assert len(page.MaskStore("train.masks")) == len(images)


def check_questions(page, images, changed):
    salient, drawn = page.mask_fn(images).flatten(1), page.control(images).flatten(1)
    assert torch.equal(salient.sum(1), drawn.sum(1))
    assert not torch.equal(salient, drawn)
    assert page.model_of_raw_images(images).shape == (len(images), 10)
    network = page.Logits(lambda pixel_values: SimpleNamespace(logits=page.model(pixel_values)))
    assert torch.equal(network(images), page.model(images))


def check_digits(page, images, changed):
    assert [row.name for row in page.comparison.rows] == ["Madry", "SIP-AT", "control"]


def test_masking_late_on_two_elements_is_worse_than_no_attack():
    only_free = torch.tensor([1.0, 0.0])
    late, projected = pgd(lambda point: point)[-1] * only_free, pgd(lambda point: point * only_free)[-1]
    assert loss(*late) < loss(*torch.zeros(2)) < loss(*projected)


def ratios(name):
    return {
        k: v["median_ratio"] for k, v in json.loads((RESULTS / "speed" / f"{name}.json").read_text())["results"].items()
    }


@pytest.mark.results
def test_training_steps_cost_no_more_than_their_passes():
    steps = ratios("training_step")
    assert all(ratio <= 1.05 for name, ratio in steps.items() if "its bare passes" in name)
    peak = json.loads((RESULTS / "speed" / "training_step.json").read_text())["peak_bytes"]
    assert peak["sip-plugin madry"] <= 1.05 * peak["torchattacks.PGD"]


@pytest.mark.results
def test_maps_cost_little():
    costs = ratios("mask_store")
    assert json.loads((RESULTS / "speed" / "mask_store.json").read_text())["store"]["bytes"] <= 50_000 * 400
    assert all(costs[f"512 random maps / decoding 64 JPEGs of {size}"] < 1 for size in ("32×32", "224×224"))
    assert costs["SIP-AT step, maps from the store / Madry step"] <= 1.03
    assert costs["SIP-AT step with SalientDataset's loader / Madry step with a loader of images"] <= 1.03


@pytest.mark.results
def test_the_evaluation_is_as_strict_as_autoattack_and_faster():
    result = json.loads((RESULTS / "evaluation" / "result.json").read_text())
    assert all(a <= b for a, b in zip(result["right"]["default"], result["right"]["independent"], strict=True))
    for time in ("processor", "wall"):
        assert result["ratio"]["default"][time] <= 0.9
        assert result["ratio"]["assume_survivors"][time] <= 0.45


@pytest.mark.results
def test_the_table_of_digits_is_of_its_result():
    folder = RESULTS / "quickstart-digits"
    rows = (folder / "table.md").read_text().splitlines()[2:]
    results = json.loads((folder / "result.json").read_text())["results"]
    clean = {}
    for row, (method, runs) in zip(rows, results.items(), strict=True):
        figures = zip(*((r["clean_all"], r["clean_attacked"], *r["robust"].values()) for r in runs), strict=True)
        cells = [f"{100 * statistics.fmean(of):.1f} ± {100 * statistics.stdev(of):.1f}" for of in figures]
        assert row.strip("| ").split(" | ")[1:] == cells
        clean[method] = statistics.fmean(run["clean_all"] for run in runs)
        assert len(runs) == 3
    assert clean["standard"] - clean["madry"] > 0.03  # what the page says to look at
    assert clean["sip-at"] > clean["random"] > clean["madry"]


@pytest.mark.results
def test_the_widths_on_the_page_of_the_human_study_are_the_power_tables():
    parts = (RESULTS / "human_study" / "power.md").read_text(encoding="utf-8").split("Simulated, not a study: ")[1:]
    widths, covered, extreme = (dict(re.findall(r"^\| (.*?) \| (.*?) \|$", part, re.MULTILINE)) for part in parts)
    columns = [cell.strip() for cell in widths[""].split("|")]
    row = dict(zip(columns, widths["rate (%), ε = 4"].split("|"), strict=True))
    page = " ".join((ROOT / "docs" / "howto" / "human_study.md").read_text(encoding="utf-8").split())
    fifty, hundred, most = (f"{float(row[f'{people} people']):.0f}" for people in (50, 100, 330))
    assert f"ε = 4 is {fifty} points wide, with 100 it is {hundred}, with 330 it is {most}" in page
    held = {
        name: [float(cell) for cell in cells.split("|")[1:]] for name, cells in covered.items() if cells[0].isdigit()
    }
    ours, wilson = ([x for name in held if ("Wilson" in name) == of for x in held[name]] for of in (False, True))
    assert 93 <= min(ours) <= max(ours) <= 97
    assert f"the truth in 93 to 97 % of the cases, Wilson's without design effect in {min(wilson):.0f}" in page
    assert 84 <= max(wilson) <= 85
    low, high = (extreme[f"rate (%), ε = {level}"].split("|")[2].strip() for level in (0, 8))
    assert f"rates of 1 and 97 % they hold it in {low} and {high} %" in page
