"""The snippets of docs/howto/evaluation.md run as they stand, and what the page says of the report is so."""

import dataclasses
import re

import numpy
import pytest

import sip_plugin.evaluation
from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.statistics import standard_error
from tests.conftest import ROOT
from tests.evaluation.random_reports import LINF, random_report

PAGE = (ROOT / "docs" / "howto" / "evaluation.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    def evaluate(model, data, *, eps=LINF, checkpoint=None):
        """In the place of an evaluation, which would take minutes."""
        assert data == "the images"
        assert checkpoint in (None, "evaluation")
        return random_report(model, 100, eps=eps)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sip_plugin.evaluation, "evaluate_robustness", evaluate, raising=False)
    names = {"model": 1, "other_model": 2, "networks": [3, 4], "loader": "the images"}
    for row, method in enumerate(("standard", "madry", "sip")):
        names[f"{method}_reports"] = [random_report(10 * row + seed) for seed in range(3)]
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 6
    for snippet in snippets:
        exec(snippet, names)
    assert capsys.readouterr().out == f"{random_report(1, 100)}\n{names['comparison']}\n"
    assert names["report"].to_json() == random_report(1, 100).to_json()
    assert sum(names["pair"][:4]) == 100
    expected = {
        "table.md",
        "table.tex",
        "curves.pdf",
        "gains.pdf",
        "report.json",
        "report.md",
        "report.tex",
        "report.png",
        "seeds.tex",
    }
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert all(path.stat().st_size > 300 for path in tmp_path.iterdir())


def test_every_name_in_the_table_is_one_of_the_report():
    public = {name for name in dir(RobustnessReport) if not name.startswith("_")}
    public |= {field.name for field in dataclasses.fields(RobustnessReport)}
    cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert len(named) == 14
    assert named <= public


@pytest.mark.parametrize(("count", "points"), [(256, "3.1"), (1000, "1.6"), (10000, "0.5")])
def test_the_standard_errors_are_right(count, points):
    assert f"{100 * standard_error(0.5, count):.1f}" == points
    assert re.search(rf"{points}\s+(points )?for {count:,}", PAGE)


def test_other_ways_to_compute_a_radius_are_found():
    accuracy = random_report().robust_accuracy
    expressions = re.findall(r"`robust_accuracy\[(.*?255\))\]`", PAGE)
    assert len(expressions) == 2
    for expression in expressions:
        assert accuracy[eval(expression, {"numpy": numpy})] == accuracy[LINF[-1]]
