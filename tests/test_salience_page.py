"""docs/salience.md: its snippets run as they stand, its table says what Captum's methods do."""

import ast
import math
import re

import pytest
import torch
from torch.utils.data import TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.constraint import prepare_mask
from sip_plugin.mask_source import compute_mask
from sip_plugin.salience import AttributionSalience, MaskStore
from sip_plugin.salience.attribution import _signature
from tests.conftest import ROOT
from tests.salience.captum_table import NOT_WORKING, WORKING

PAGE = (ROOT / "docs" / "salience.md").read_text(encoding="utf-8")


def table(header):
    """The cells of the rows below a header."""
    below = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in below]


def names(cell):
    return re.findall(r"`(\w+)`", cell)


def test_the_snippets_run_and_every_source_in_them_gives_maps(network, images, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    *sources, comparison, store = snippets
    (transformer,) = (snippet for snippet in sources if "vit" in snippet)
    sources.remove(transformer)
    assert len(sources) == 4
    known = {"teacher": network, "images": images, "labels": labels}
    shares = []
    for snippet in sources:
        for statement in ast.parse(snippet).body:
            exec(compile(ast.Module([statement], []), "docs/salience.md", "exec"), known)
            if isinstance(statement, ast.Assign) and statement.targets[0].id == "mask_fn":
                salience = prepare_mask(compute_mask(known["mask_fn"], images, labels), images)
                shares.append(salience.float().mean().item())
        assert known["salience"].dtype == torch.bool
        assert known["salience"].shape == images.shape
    assert len(shares) == PAGE.count("mask_fn = ") - 1 == 11
    assert len(set(shares)) == 11
    assert all(0 < share < 0.8 for share in shares)
    torch.manual_seed(0)
    exec(transformer, known)
    larger = torch.nn.functional.interpolate(images, size=64)
    shares = []
    for _ in range(4):  # a network that has learnt nothing may find nothing of its class
        torch.nn.init.normal_(known["vit"].heads.head.weight)  # which torchvision begins with zeros
        shares.append(known["mask_fn"](larger).float().mean().item())
    assert 0 < max(shares) < 0.8
    exec(comparison, known)
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
    known |= {"dataset": TensorDataset(images, labels), "criterion": AdversarialTrainer(network, "sip-at")}
    exec(store, known)
    assert known["loss"].requires_grad
    assert known["maps"].dtype == torch.bool
    assert len(MaskStore("train.masks")) == len(images)


def test_the_tables_name_each_method_once():
    working = [name for cells in table("| Method | Forward passes |") for name in names(cells[0])]
    assert len(working) == len(set(working))
    assert set(working) == {part for row in WORKING for part in row.name.rstrip(")").split("(")}
    assert {name for cells in table("| Method | Why |") for name in names(cells[0])} == set(NOT_WORKING)


@pytest.mark.parametrize("row", WORKING, ids=str)
def test_a_method_makes_as_many_passes_as_the_table_says(row, network, images, labels):
    costs = {name: cells[1].strip("`") for cells in table("| Method | Forward passes |") for name in names(cells[0])}
    cost = costs[row.name.rstrip(")").split("(")[-1]]
    if row.name.startswith("NoiseTunnel"):
        assert costs["NoiseTunnel"] == "nt_samples` times its method's"
        cost = f"nt_samples * ({cost})"
    network = row.network(network)
    method = row.build(network)
    numbers = {name: parameter.default for name, parameter in _signature(method).parameters.items()} | row.options
    numbers |= {"features": 4, "baselines": 2, "windows": row.windows, "factorial": math.factorial}
    passed = []
    next(module for module in network.modules() if not list(module.children())).register_forward_hook(
        lambda module, inputs, output: passed.append(len(inputs[0]))
    )
    target = "true" if row.takes_target else None
    AttributionSalience(method, target=target, per_batch=row.per_batch, **row.options)(images[:3], labels[:3])
    assert sum(passed) == 3 * eval(cost, numbers)


@pytest.mark.parametrize("row", WORKING, ids=str)
def test_the_table_says_which_methods_draw_random_numbers_and_which_take_no_target(row):
    asks = {name: cells[2] for cells in table("| Method | Forward passes |") for name in names(cells[0])}
    name = row.name.split("(")[0]
    assert row.random == ("*random*" in asks[name])
    assert row.takes_target == ("`target=None`" not in asks[name])
