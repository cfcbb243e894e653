"""The README's snippets run as they stand, its links lead somewhere, and its figures are the committed ones."""

import json
import re

import pytest
import torch
import torchattacks
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import SIPWrapper
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other(network, images, labels, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 9
    names = {
        "model": network,
        "teacher": network,
        "images": images,
        "labels": labels,
        "loader": DataLoader(TensorDataset(digits[0][:40], digits[1][:40]), batch_size=20),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        "epochs": 2,
        "torch": torch,
        "input_shape": (3, 16, 16),
        "x": images.numpy(),
        "y": labels.numpy(),
    }
    before = [p.detach().clone() for p in network.parameters()]
    exec(snippets[0], names)
    salient = names["mask_fn"](images)
    assert torch.equal(names["adv"][salient], images[salient])
    exec(snippets[1], names)
    assert (names["adv_art"] != names["x"]).any()
    assert (names["adv_art"][salient.numpy()] == names["x"][salient.numpy()]).all()
    exec(snippets[2], names)
    assert all(torch.equal(clipped[salient], images[salient]) for clipped in names["clipped"])
    exec(snippets[3], names)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    names |= {"images": images, "labels": labels}
    exec(snippets[4], names)
    assert set(names["checkpoint"]) == {"network", "trainer"}
    names["attack"] = SIPWrapper(torchattacks.PGD(network), names["mask_fn"])
    exec(snippets[5], names)
    assert torch.equal(names["adv"][names["maps"]], images[names["maps"]])
    assert names["maps"].float().mean() < 1
    names |= {"dataset": TensorDataset(images, labels), "DataLoader": DataLoader}
    exec(snippets[6], names)
    assert (tmp_path / "figure4.png").exists()
    exec(snippets[7], names)
    assert names["loss"].requires_grad
    assert names["maps"].dtype == torch.bool
    assert len(names["store"]) == len(images)
    names["loader"] = [(images[:2], network(images[:2]).argmax(1)), (images[2:4], network(images[2:4]).argmax(1))]
    exec(snippets[8], names)
    assert len(names["report"]) == 4
    assert 0 <= names["report"].robust_accuracy[8 / 255] <= names["report"].clean_accuracy <= 1


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("job", ["quickstart-cifar10", "quickstart-digits"])
def test_the_tables_are_the_committed_results(job):
    folder = ROOT / "benchmarks" / "results" / job
    table = (folder / "table.md").read_text()
    assert table in README
    results = json.loads((folder / "result.json").read_text())["results"]
    for values in results.values():
        for value in (values["clean_all"], *values["robust"].values()):
            assert f"{100 * value:.1f}" in table


def test_the_ratios_are_the_committed_results():
    for file in ("wrapper_overhead", "wrapper_overhead_art_foolbox"):
        record = json.loads((ROOT / "benchmarks" / "results" / "speed" / f"{file}.json").read_text())
        for name, result in record["results"].items():
            assert re.search(rf"{re.escape(name.split(' / ')[0])}.*\b{result['median_ratio']:.3f}\b", README), name


def test_so_are_the_ratios_of_the_second_run():
    record = json.loads((ROOT / "benchmarks" / "results" / "speed" / "wrapper_overhead_autoattack.json").read_text())
    quoted = README[README.index("A second run") :].split("\n\n")[0]
    for result in record["results"].values():
        assert f"{result['median_ratio']:.3f}" in quoted


def test_the_rows_on_strength_are_the_committed_results():
    table = (ROOT / "benchmarks" / "results" / "attack_strength" / "table.md").read_text()
    quoted = README[README.index(table.splitlines()[0]) :].split("\n\n")[0].splitlines()
    assert len(quoted) > 8
    assert set(quoted) <= set(table.splitlines())


def test_the_training_steps_are_the_committed_results():
    record = json.loads((ROOT / "benchmarks" / "results" / "speed" / "training_step.json").read_text())
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, result in record["results"].items():
        assert f"| {name} | {result['median_ratio']:.3f} |" in page
        assert f"{result['median_ratio']:.3f}" in README
    for name, result in record["results"].items():
        assert "its bare passes" not in name or result["median_ratio"] <= 1.05, name
    ours, theirs = (record["peak_bytes"][name] for name in ("sip-plugin madry", "torchattacks.PGD"))
    assert f"{ours / theirs:.3f}" in page
    assert ours <= 1.05 * theirs


def test_what_is_said_of_the_papers_comparison_is_in_its_results():
    section = README.partition("### The paper's comparison")[2].partition("\n### ")[0]
    cells = sorted((ROOT / "benchmarks" / "results" / "paper" / "cifar10-cpu" / "cells").glob("*-seed[0-9].json"))
    results = [json.loads(path.read_text()) for path in cells]
    assert {f"{result['data']['training_images']:,}" for result in results} == {"7,502"}
    assert {f"{result['network']['parameters']:,}" for result in results} == {"81,010"}
    shares = {f"{100 * result['teacher']['salient_share']:.1f} %" for result in results if result["teacher"]}
    assert shares == {"12.4 %"}
    assert all(figure in section for figure in ("7,502", "81,010", "12.4 %"))
    assert "over 3 runs" in section
    assert "three seeds" in section
    # The differences that are quoted are those of PAPER.md's tables, which are made from the results.
    page = (ROOT / "benchmarks" / "paper" / "PAPER.md").read_text(encoding="utf-8")
    gains, against = (page.partition(f"<!-- table: {name}")[2] for name in ("differences", "against"))

    def figures(table, *names):
        row = next(line for line in table.splitlines() if all(name in line for name in names))
        return [cell.strip() for cell in row.strip("|").split("|")][2:]

    clean, *_, largest = figures(gains, "SIP-S", "ours")
    assert f"(by {clean} points" in section
    assert f"({largest})" in section
    paper = {arch: figures(gains, "SIP-S", "paper", arch) for arch in ("ResNet-18", "WRN-34-10")}
    text = " ".join(section.split())
    assert f"{paper['ResNet-18'][0]} on its ResNet-18 and {paper['WRN-34-10'][0]} on its WRN-34-10" in text
    assert f"gains {paper['ResNet-18'][-1][1:]} points on one network and loses {paper['WRN-34-10'][-1][1:]}" in text
    ahead = [figures(against, f"| {name} |")[0].removeprefix("-") for name in ("FAT", "TRADES")]
    assert f"by {ahead[0]} and {ahead[1]})" in text
    clean, *_, largest = figures(against, "random map")
    assert f"{clean} on clean images, {largest} at 8/255" in text


def test_the_table_of_maps_is_the_committed_result():
    folder = ROOT / "benchmarks" / "results" / "salience_maps"
    assert (folder / "table.md").read_text().strip() in README
    result = json.loads((folder / "result.json").read_text())
    assert result["images"] == 8336
    assert f"{result['maps']['file_bytes'] / 1e6:.1f} MB" in README
    madry = result["networks"]["madry"]["test_accuracy"]
    assert f"{100 * madry['clean']:.1f} % of the test images" in README
    assert f"{100 * madry['pgd20']:.1f} % under PGD-20" in README


def test_the_evaluation_is_the_committed_result():
    folder = ROOT / "benchmarks" / "results" / "evaluation"
    assert (folder / "table.md").read_text().strip() in README
    result = json.loads((folder / "result.json").read_text())
    assert all(a <= b for a, b in zip(result["right"]["default"], result["right"]["independent"], strict=True))
    for time in ("processor", "wall"):
        assert result["ratio"]["default"][time] <= 0.9
        assert result["ratio"]["assume_survivors"][time] <= 0.45


def test_what_maps_cost_is_the_committed_result():
    speed = ROOT / "benchmarks" / "results" / "speed"
    record = json.loads((speed / "mask_store.json").read_text())
    quoted = README[README.index("### What maps cost") :].split("\n### ")[0]
    ratios = {name: result["median_ratio"] for name, result in record["results"].items()}
    assert f"{record['store']['bytes'] / 1e6:.2f} MB" in quoted
    assert record["store"]["bytes"] <= 19.3e6
    building = ratios["MaskStore.build / the teacher's bare passes"]
    for size in ("32×32", "224×224"):
        ratio = ratios[f"512 random maps / decoding 64 JPEGs of {size}"]
        assert ratio < 1
        assert f"{ratio:.2f}" in quoted
    assert f"{building:.2f} of the teacher's" in quoted
    assert ratios["SIP-AT step, maps from the store / Madry step"] <= 1.03
    for name in ("SIP-AT step, maps from the store / Madry step", "SIP-AT step, teacher in the loop / Madry step"):
        assert f"{ratios[name]:.3f} with" in quoted
    loader = ratios["SIP-AT step with SalientDataset's loader / Madry step with a loader of images"]
    assert f"{loader:.3f} with `SalientDataset`" in quoted
    assert loader <= 1.03
    selection = json.loads((speed / "salience_selection.json").read_text())["results"]
    assert f"{100 * selection['top_mass_mask / forward and backward']['median_ratio']:.1f} % of a ResNet-50" in quoted
