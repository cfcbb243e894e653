"""Pages on attacks and training: their snippets run. Results are within their bounds. Links of all pages lead somewhere."""

import json
import re
from functools import partial

import pyautoattack
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import ROOT
from tests.evaluation.conftest import QuickAutoAttack

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "paper" / "PAPER.md"]
RESULTS = ROOT / "benchmarks" / "results"


def snippets(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.results
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    for path, anchor in targets:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_snippets_on_attacks(network, images, labels, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pyautoattack, "AutoAttack", partial(QuickAutoAttack, seed=0))  # its own seed is the time
    names = {
        "model": network,
        "teacher": network,
        "images": images,
        "labels": labels,
        "torch": torch,
        "input_shape": (3, 16, 16),
        "x": images.numpy(),
        "y": labels.numpy(),
    }
    salient = None
    for snippet in snippets("attacks.md"):
        exec(snippet, names)
        salient = names["mask_fn"](images) if salient is None else salient
    adversarial = [
        names["adv"],
        names["adv_both"],
        torch.tensor(names["adv_art"]),
        names["adv_auto"],
        *names["clipped"],
    ]
    assert len(adversarial) == 6
    for found in adversarial:
        assert torch.equal(found[salient], images[salient])
        assert not torch.equal(found, images)


def test_the_snippets_on_training(network, images, labels, digits):
    loop, methods = snippets("training.md")
    names = {
        "model": network,
        "teacher": network,
        "loader": DataLoader(TensorDataset(digits[0][:40], digits[1][:40]), batch_size=20),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        "epochs": 2,
    }
    before = [p.detach().clone() for p in network.parameters()]
    exec(loop, names)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    names |= {"images": images, "labels": labels}
    exec(methods, names)
    assert names["loss"].requires_grad
    assert set(names["checkpoint"]) == {"network", "trainer"}


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
    for row, values in zip(rows, results.values(), strict=True):
        figures = (values["clean_all"], values["clean_attacked"], *values["robust"].values())
        assert row.strip("| ").split(" | ")[1:] == [f"{100 * value:.1f}" for value in figures]
