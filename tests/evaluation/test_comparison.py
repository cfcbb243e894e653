"""RobustnessReport.compare: the paper's table, with mean and spread over runs, and the best in bold."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sip_plugin.evaluation import RobustnessReport
from tests.evaluation.random_reports import random_report


def with_accuracies(right, count=1000, eps=(4 / 255, 8 / 255), **fields):
    """A report with so many images right: clean, and at each ε."""
    norms = torch.zeros(1, count, dtype=torch.float64)
    for radius, number in zip((*eps, np.inf), right, strict=True):
        norms[0, :number] = radius
    return RobustnessReport(
        **{
            "eps": eps,
            "norm": "Linf",
            "attacks": ("PGD",),
            "labels": torch.arange(count) % 10,
            "norms": norms,
            "assumed": torch.zeros(count, dtype=torch.bool),
            "settings": {"attack": {"PGD": "factory"}, "assume_survivors": False},
        }
        | fields
    )


def cells(text):
    """The cells of each row of a Markdown table, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000), st.integers(0, 3))
def test_means_and_deviations_are_numpys(runs, seed, digits):
    rows = {
        f"Row {row}": [random_report(seed + 10 * row + run, scale=1 + row) for run in range(count)]
        for row, count in enumerate(runs)
    }
    comparison = RobustnessReport.compare(rows)
    for row, shown in zip(comparison.rows, cells(comparison.to_markdown(digits=digits)), strict=True):
        reports = rows[row.name]
        columns = [[report.clean_accuracy for report in reports]]
        columns += [[report.robust_accuracy[eps] for report in reports] for eps in comparison.eps]
        for spread, values, cell in zip(row.figures.values(), columns, shown[1:], strict=True):
            assert spread.values == tuple(values)
            assert spread.mean == pytest.approx(np.mean(values))
            figures = [float(figure) for figure in cell.replace("*", "").split(" ± ")]
            assert figures[0] == pytest.approx(100 * np.mean(values), abs=0.5001 * 10**-digits)
            if len(values) == 1:
                assert (spread.std, len(figures)) == (None, 1)
            else:
                assert spread.std == pytest.approx(np.std(values, ddof=1))
                assert figures[1] == pytest.approx(100 * np.std(values, ddof=1), abs=0.5001 * 10**-digits)


def test_gains_are_differences_of_the_runs_of_one_seed():
    madry = [with_accuracies((700, 500, 300)), with_accuracies((720, 520, 300))]
    sip = [with_accuracies((800, 520, 280)), with_accuracies((840, 540, 240))]
    ours, theirs = RobustnessReport.compare({"SIP-AT": sip, "Madry": madry}).rows
    gains = ours.gains_over(theirs)
    assert gains[0].values == pytest.approx((0.1, 0.12))
    assert (gains[0].mean, gains[0].std) == pytest.approx((0.11, np.std([0.1, 0.12], ddof=1)))
    assert gains[4 / 255].values == pytest.approx((0.02, 0.02))
    assert gains[np.float32(8 / 255)].values == pytest.approx((-0.02, -0.06))
    single = RobustnessReport.compare({"SIP-AT": sip[0], "Madry": madry[0]}).rows
    assert single[0].gains_over(single[1])[0].std is None


def test_gains_of_rows_with_other_numbers_of_runs_are_refused():
    rows = {"SIP-AT": [random_report(1), random_report(2)], "Madry": random_report(3)}
    ours, theirs = RobustnessReport.compare(rows).rows
    with pytest.raises(ValueError, match="shorter"):
        ours.gains_over(theirs)


def test_reports_may_come_from_a_generator():
    reports = [random_report(1), random_report(2)]
    compared = RobustnessReport.compare((report for report in reports), ["A", "B"])
    assert str(compared) == str(RobustnessReport.compare(dict(zip("AB", reports, strict=True))))


def test_the_table_in_markdown():
    comparison = RobustnessReport.compare(
        {
            "Standard": with_accuracies((950, 10, 0)),
            "Madry": [with_accuracies((700, 500, 300)), with_accuracies((720, 520, 300))],
            "SIP-AT": [with_accuracies((800, 520, 280)), with_accuracies((840, 500, 240))],
        },
        references=["Standard"],
    )
    assert (
        comparison.to_markdown()
        == comparison._repr_markdown_()
        == """\
Accuracy in per cent: 1000 images, L∞, PGD.

|  | Clean | ε = 4/255 | ε = 8/255 |
| --- | ---: | ---: | ---: |
| Standard | 95.0 | 1.0 | 0.0 |
| Madry | 71.0 ± 1.4 | **51.0 ± 1.4** | **30.0 ± 0.0** |
| SIP-AT | **82.0 ± 2.8** | **51.0 ± 1.4** | 26.0 ± 2.8 |

- Bold: the best mean of a column, Standard left out.
- Robust accuracy: the worst case over the attacks, image by image.
- Mean ± sample standard deviation over runs (seeds): Standard 1, Madry 2, SIP-AT 2.
- Beside that, the images are a sample: the binomial standard error of one run's figure is up to 1.6 points.
- At 0 and 100 per cent that error is 0; Wilson's 95 per cent interval there is 0.4 points wide.
- Survivors were not assumed: each was attacked at the smaller ε too (assume\\_survivors=False).
"""
    )


def test_the_table_for_a_terminal():
    comparison = RobustnessReport.compare(
        {"Madry": with_accuracies((700, 500, 300)), "ε": with_accuracies((800, 400, 300))}
    )
    assert str(comparison).splitlines()[:7] == [
        "Accuracy in per cent: 1000 images, Linf, PGD.",
        "",
        "        Clean   eps = 4/255   eps = 8/255",
        "------------------------------------------",
        "Madry    70.0          50.0*         30.0*",
        "eps      80.0*         40.0          30.0*",
        "------------------------------------------",
    ]
    assert str(comparison) == comparison.to_text()
    str(comparison).encode("latin-1")  # what the oldest terminals can show


def test_the_table_in_latex():
    comparison = RobustnessReport.compare(
        {"Basic": with_accuracies((950, 10, 0)), "50% & more_": with_accuracies((800, 520, 280))}, references=["Basic"]
    )
    assert comparison.to_latex(digits=2).splitlines()[:13] == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & Clean & $\varepsilon$ = 4/255 & $\varepsilon$ = 8/255 \\",
        r"\midrule",
        r"Basic & 95.00 & 1.00 & 0.00 \\",
        r"\addlinespace",
        r"50\% \& more\_ & 80.00 & 52.00 & 28.00 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\caption{Accuracy in per cent: 1000 images, $\ell_\infty$, PGD.",
    ]


HOSTILE = r"""[1] \\ {a} $x$ % & # _ ^ ~ < > | " ' ` * ± ε∞αβτ × · − – — … ≤ é \input{x} ]"""


def latex_of_a_hostile_table():
    rows = {HOSTILE: random_report(1, warnings=(HOSTILE,)), "*": random_report(2), "[2]": random_report(3)}
    compared = RobustnessReport.compare({HOSTILE: rows, "[b]": rows}, references=["*"]).to_latex()
    return compared + random_report(1, warnings=(HOSTILE,)).to_latex()


def test_no_name_can_break_the_latex():
    plain = re.sub(r"\\[&%$#_{}]", "", latex_of_a_hostile_table())
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert r"\input" not in plain
    for line in plain.splitlines():
        assert line.count("$") % 2 == 0
        assert not line.startswith(("[", "*"))  # arguments of the line break before
        assert "%" not in line or line == r"% needs \usepackage{booktabs}"
    bodies = re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\\end{tabular}", plain, re.DOTALL)
    assert len(bodies) == 2
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in rows} == {len(columns)}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_takes_the_tables(tmp_path):
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\\end{document}\n"
    (tmp_path / "table.tex").write_text(document % latex_of_a_hostile_table(), encoding="utf-8")
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert b"Missing character" not in run.stdout


def test_no_name_can_break_the_markdown():
    comparison = RobustnessReport.compare({"a|b *c* `d`\n<e> $x$ &amp;": random_report(1), "f_g_": random_report(2)})
    assert [row[0] for row in cells(comparison.to_markdown().replace(r"\|", "¦"))] == [
        r"a¦b \*c\* \`d\` \<e> \$x\$ \&amp;",
        r"f\_g\_",
    ]


def test_groups_have_a_best_each():
    madry, sip = with_accuracies((700, 500, 300)), with_accuracies((800, 400, 300))
    comparison = RobustnessReport.compare(
        {"ResNet-18": {"Madry": madry, "SIP-AT": sip}, "WideResNet": {"Madry": madry}}
    )
    assert cells(comparison.to_markdown()) == [
        ["ResNet-18", "Madry", "70.0", "**50.0**", "**30.0**"],
        ["", "SIP-AT", "**80.0**", "40.0", "**30.0**"],
        ["WideResNet", "Madry", "70.0", "50.0", "30.0"],
    ]
    assert "the best mean of a column in its group." in comparison.to_markdown()
    latex = comparison.to_latex().splitlines()
    assert latex[latex.index(r"\toprule") + 5] == r"\midrule"
    assert latex[4:7] == [r"\toprule", r" &  & Clean & $\varepsilon$ = 4/255 & $\varepsilon$ = 8/255 \\", r"\midrule"]


def test_a_row_without_a_rival_is_not_best():
    report = with_accuracies((700, 500, 300))
    for comparison in (
        RobustnessReport.compare([report]),
        RobustnessReport.compare({"A": report, "B": report}, references=["B"]),
    ):
        assert "**" not in comparison.to_markdown()
        assert "\\textbf" not in comparison.to_latex()
        assert "best" not in str(comparison)


def test_equal_in_the_decimals_shown_counts_as_equal():
    rows = {"A": with_accuracies((7004, 0, 0), 10000), "B": with_accuracies((6996, 0, 0), 10000)}
    comparison = RobustnessReport.compare(rows)
    assert [row[1] for row in cells(comparison.to_markdown())] == ["**70.0**", "**70.0**"]
    assert [row[1] for row in cells(comparison.to_markdown(digits=2))] == ["**70.04**", "69.96"]


def test_a_list_of_reports_is_a_row_each_and_equal_names_are_runs_of_one():
    reports = [random_report(seed) for seed in range(4)]
    assert [row.name for row in RobustnessReport.compare(reports).rows] == [
        "Report 1",
        "Report 2",
        "Report 3",
        "Report 4",
    ]
    rows = RobustnessReport.compare(reports, ["Madry", "SIP-AT", "Madry", "Madry"]).rows
    assert {row.name: row.reports for row in rows} == {
        "Madry": (reports[0], reports[2], reports[3]),
        "SIP-AT": (reports[1],),
    }
    rows = RobustnessReport.compare([reports[:2], reports[2:]], names=("A", "B")).rows
    assert [row.reports for row in rows] == [tuple(reports[:2]), tuple(reports[2:])]


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (random_report(2, 41), "'B' has 41 images instead of 40.*allow_differences=True"),
        (random_report(2, labels=torch.arange(40).flip(0) % 5), "'B' has other images"),
        (random_report(2, eps=(8 / 255,)), "'B' has ε = 8/255 instead of 1/255, 2/255, 4/255, 8/255"),
        (random_report(2, attacks=("square",)), r"the attack AutoAttack standard \(square\) instead of AutoAttack"),
        (random_report(2, settings={"attack": {"AutoAttack": {"version": "rand"}}}), "the attack AutoAttack rand"),
    ],
)
def test_reports_on_something_else_are_refused_or_marked(other, complaint):
    with pytest.raises(ValueError, match=complaint):
        RobustnessReport.compare({"A": random_report(1), "B": [random_report(1), other]})
    comparison = RobustnessReport.compare(
        {"A": random_report(1), "B": [random_report(1), other]}, allow_differences=True
    )
    assert [row[0] for row in cells(comparison.to_markdown())] == ["A", r"B \[1\]"]
    remark = next(line for line in comparison.to_markdown().splitlines() if line.startswith(r"- \[1\]: "))
    assert " instead of " in remark or "other images" in remark


def test_other_images_of_the_same_classes_are_told_by_their_fingerprint():
    reports = [random_report(1, settings={"attack": {"PGD": "factory"}, "data": data}) for data in ("aa", "ab")]
    with pytest.raises(ValueError, match="'Report 2' has other images"):
        RobustnessReport.compare(reports)
    RobustnessReport.compare([reports[0], random_report(1, settings={"attack": {"PGD": "factory"}})])


def test_another_norm_is_always_refused():
    rows = {"A": random_report(1), "B": random_report(1, norm="L2")}
    with pytest.raises(ValueError, match=r"'B' has the norm L2 instead of L∞\.$"):
        RobustnessReport.compare(rows)
    with pytest.raises(ValueError, match="the norm L2"):
        RobustnessReport.compare(rows, allow_differences=True)


def test_rows_whose_survivors_were_assumed_are_marked():
    plain, assumed = random_report(1), random_report(2, assume_survivors=True)
    text = RobustnessReport.compare({"A": plain, "B": assumed, "C": [plain, assumed]}).to_markdown()
    assert [row[0] for row in cells(text)] == ["A", r"B \[1\]", r"C \[1\]"]
    assert "Survivors were not assumed" in text
    assert r"\[1\]: assume\_survivors=True instead of False." in text
    text = RobustnessReport.compare({"A": assumed, "B": assumed}).to_markdown()
    assert [row[0] for row in cells(text)] == ["A", "B"]
    assert "Survivors were assumed" in text


def test_an_eps_that_a_row_lacks_is_a_dash():
    rows = {"A": random_report(1, eps=(2 / 255, 8 / 255)), "B": random_report(2, eps=(4 / 255, 8 * (1 / 255)))}
    comparison = RobustnessReport.compare(rows, allow_differences=True)
    assert comparison.eps == pytest.approx((2 / 255, 4 / 255, 8 / 255))
    first, second = cells(comparison.to_markdown())
    assert (first[3], second[2]) == ("–", "–")
    assert "–" not in (first[2], first[4], second[3], second[4])
    assert "-" in str(comparison)


def test_warnings_are_in_the_table_with_the_rows_they_are_about():
    warned = random_report(2, warnings=("Gradients vanish.", "Another."))
    text = RobustnessReport.compare(
        {"A": random_report(1, warnings=("Gradients vanish.",)), "B": [warned, warned]}
    ).to_text()
    assert "Warning (A, B): Gradients vanish." in text
    assert "Warning (B): Another." in text


def test_a_reference_that_is_no_row_is_an_error():
    with pytest.raises(ValueError, match=r"names of rows \(A\), got \['B'\]"):
        RobustnessReport.compare({"A": random_report()}, references=["B"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_images_are_compared_one_by_one(seed, count):
    first, second = random_report(seed, count), random_report(seed + 1, count, scale=2)
    pairs = first.compare_images(second)
    assert list(pairs) == [0, *first.eps]
    for eps, pair in pairs.items():
        mine, theirs = (each.correct[eps] if eps else each.correct_clean for each in (first, second))
        split = list(zip(mine.tolist(), theirs.tolist(), strict=True))
        expected = [split.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        assert [pair.both, pair.only_first, pair.only_second, pair.neither] == expected
        assert second.compare_images(first)[eps].p_value == pair.p_value
    assert all(pair.p_value == 1 and pair.only_first == 0 for pair in first.compare_images(first).values())


def test_images_of_two_evaluations_on_other_images_are_not_compared():
    with pytest.raises(ValueError, match="the other report has 41 images instead of 40"):
        random_report(1).compare_images(random_report(1, 41))
    with pytest.raises(ValueError, match="the norm L2"):
        random_report(1).compare_images(random_report(1, norm="L2"))
