"""docs/howto/captum.md: its snippet runs as it stands, its tables say what Captum's methods do."""

import math
import re

import pytest

from sip_plugin.salience import AttributionSalience
from sip_plugin.salience.attribution import _signature
from tests.conftest import ROOT
from tests.docs.test_maps import shares_of
from tests.salience.captum_table import NOT_WORKING, WORKING

PAGE = (ROOT / "docs" / "howto" / "captum.md").read_text(encoding="utf-8")


def table(header):
    """The cells of the rows below a header."""
    below = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in below]


def names(cell):
    return re.findall(r"`(\w+)`", cell)


def test_every_source_in_the_snippet_gives_maps(network, images, labels):
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shares = shares_of([snippet], {"teacher": network, "images": images, "labels": labels})
    assert len(shares) == PAGE.count("mask_fn = ") == 5
    assert all(0 < share < 0.8 for share in shares)


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
