"""Plots of reports: the figures that are drawn, the names beside them, and the files."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.statistics import wilson_interval
from tests.evaluation.random_reports import random_report

METHODS = ("Standard", "Madry", "TRADES", "FAT", "MART", "PART", "SIP-H", "SIP-S", "SIP-TRADES")


def lines(axes, eps=5):
    """The curves among the lines: those with a point for each ε."""
    return [line for line in axes.lines if len(line.get_xdata()) == eps]


def bands(axes):
    """Lower and upper bounds of each band."""
    found = []
    for band in axes.collections:
        assert isinstance(band, PolyCollection)
        places = {}
        for x, y in band.get_paths()[0].vertices:
            places.setdefault(round(float(x), 9), []).append(float(y))
        found.append([(min(ys), max(ys)) for _, ys in sorted(places.items())])
    return found


def names(figure):
    """The names in the legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def nine(runs=3):
    return {
        name: [random_report(10 * row + run, scale=1 + row / 20) for run in range(runs)]
        for row, name in enumerate(METHODS)
    }


def test_the_line_of_a_report_is_its_accuracy_in_per_cent_and_the_band_its_interval():
    report = random_report(1, 100)
    (axes,) = report.plot().axes
    (line,) = lines(axes)
    accuracy = [report.clean_accuracy, *report.robust_accuracy.values()]
    assert line.get_xdata() == pytest.approx([0, 1, 2, 4, 8])
    assert line.get_ydata() == pytest.approx(100 * np.array(accuracy))
    (band,) = bands(axes)
    for bounds, share in zip(band, accuracy, strict=True):
        assert bounds == pytest.approx([100 * bound for bound in wilson_interval(share, 100)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "4", "8"]
    assert "1/255" in axes.get_xlabel()


def test_the_lines_of_a_comparison_are_means_and_the_bands_standard_deviations():
    comparison = RobustnessReport.compare(nine())
    (axes,) = comparison.plot().axes
    assert [line.get_label() for line in lines(axes)] == list(METHODS)
    assert len(bands(axes)) == len(METHODS)
    for row, line, band in zip(comparison.rows, lines(axes), bands(axes), strict=True):
        spreads = row.figures.values()
        assert line.get_ydata() == pytest.approx([100 * spread.mean for spread in spreads])
        for (low, high), spread in zip(band, spreads, strict=True):
            assert low == pytest.approx(100 * max(0, spread.mean - spread.std))
            assert high == pytest.approx(100 * min(1, spread.mean + spread.std))


def test_single_runs_have_no_band():
    (axes,) = RobustnessReport.compare([random_report(1), random_report(2)]).plot().axes
    assert len(lines(axes)) == 2
    assert bands(axes) == []


def test_the_lines_relative_to_a_row_are_differences_run_by_run():
    comparison = RobustnessReport.compare(nine(), references=["Standard"])
    figure = comparison.plot(relative_to="Madry")
    (axes,) = figure.axes
    assert [line.get_label() for line in lines(axes)] == list(METHODS[1:])
    madry = comparison.rows[1]
    for row, line, band in zip(comparison.rows[1:], lines(axes), bands(axes), strict=True):
        gains = 100 * np.array(
            [np.subtract(row.figures[eps].values, madry.figures[eps].values) for eps in (0, *comparison.eps)]
        )
        assert line.get_ydata() == pytest.approx(gains.mean(1))
        assert np.mean(band, axis=1) == pytest.approx(gains.mean(1))
        assert np.ptp(band, axis=1) == pytest.approx(2 * gains.std(1, ddof=1))
        assert axes.get_ylim()[0] <= np.min(band)
        assert axes.get_ylim()[1] >= np.max(band)
    assert (lines(axes)[0].get_ydata() == 0).all()
    assert axes.get_ylabel() == "Accuracy minus that of Madry (points)"
    (plain,) = comparison.plot().axes
    looks = [[(line.get_color(), line.get_marker()) for line in lines(each)] for each in (axes, plain)]
    assert looks[0] == looks[1][1:]


def test_lines_relative_to_a_row_that_is_not_there_are_refused():
    rows = {"Madry": random_report(1), "SIP-AT": random_report(2)}
    with pytest.raises(KeyError, match="Maddry"):
        RobustnessReport.compare(rows).plot(relative_to="Maddry")
    grouped = RobustnessReport.compare({"ResNet-18": rows, "WideResNet": {"SIP-AT": random_report(3)}})
    with pytest.raises(KeyError, match="'WideResNet', 'Madry'"):
        grouped.plot(relative_to="Madry")
    assert len(grouped.plot(relative_to="SIP-AT").axes) == 2


def test_remarks_on_the_lines_are_those_that_the_picture_explains():
    rows = {
        "Madry": random_report(1),
        "Standard": random_report(2, assume_survivors=True),
        "SIP-AT": random_report(3, count=30),
    }
    comparison = RobustnessReport.compare(rows, references=["Standard"], allow_differences=True)
    figure = comparison.plot(relative_to="Madry")
    assert names(figure) == ["Madry", "SIP-AT [1]"]
    title = " ".join(figure._suptitle.get_text().split())
    assert "[1]: 30 images instead of 40 images." in title
    assert "assume_survivors" not in title
    # The first row's conditions stand above, also where it is not drawn.
    swapped = {name: rows[name] for name in ("SIP-AT", "Madry")}
    figure = RobustnessReport.compare(swapped, references=["SIP-AT"], allow_differences=True).plot(relative_to="Madry")
    title = " ".join(figure._suptitle.get_text().split())
    assert title.startswith("30 images")
    assert "[1]: 40 images instead of 30 images." in title


def test_no_two_methods_look_alike():
    (axes,) = RobustnessReport.compare({f"Method {n}": random_report(n) for n in range(40)}).plot().axes
    looks = {(to_hex(line.get_color()), line.get_marker(), line.get_linestyle()) for line in lines(axes)}
    assert len(looks) == 40
    (axes,) = RobustnessReport.compare({name: random_report(n) for n, name in enumerate(METHODS[:7])}).plot().axes
    assert len({line.get_color() for line in lines(axes)}) == 7


def test_nothing_is_cut_off_or_overlaps():
    figure = RobustnessReport.compare(nine()).plot()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (legend,) = figure.legends
    assert names(figure) == list(METHODS)
    canvas, labels = figure.bbox, [axes.xaxis.label, axes.yaxis.label, figure._suptitle]
    boxes = [each.get_window_extent() for each in (*legend.get_texts(), *labels)]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    for box in boxes:
        assert canvas.x0 <= box.x0
        assert box.x1 <= canvas.x1 + 1
        assert canvas.y0 <= box.y0
        assert box.y1 <= canvas.y1 + 1


def test_groups_are_panels_in_which_a_method_looks_the_same():
    rows = {"Madry": random_report(1), "SIP-AT": random_report(2)}
    figure = RobustnessReport.compare({"ResNet-18": rows, "WideResNet": {"SIP-AT": random_report(3)}}).plot()
    first, second = figure.axes
    assert (first.get_title("left"), second.get_title("left")) == ("ResNet-18", "WideResNet")
    assert lines(first)[1].get_color() == lines(second)[0].get_color() != lines(first)[0].get_color()
    assert first.get_ylim() == second.get_ylim()


def test_radii_that_are_no_255ths_are_drawn_as_they_are():
    (axes,) = random_report(1, eps=(0.25, 0.5, 1.0, 2.0), norm="L2").plot().axes
    assert lines(axes)[0].get_xdata() == pytest.approx([0, 0.25, 0.5, 1, 2])
    assert "255" not in axes.get_xlabel()
    assert "L2" in axes.get_xlabel()


def test_many_radii_do_not_crowd_the_axis():
    eps = tuple(number / 255 for number in range(1, 65))
    (axes,) = random_report(1, eps=eps).plot().axes
    assert len(axes.get_xticks()) < 15


def test_the_picture_says_under_which_conditions_it_was_made():
    plain, assumed = random_report(1, warnings=("Careful.",)), random_report(2, assume_survivors=True)
    title = RobustnessReport.compare({"A": plain, "B": assumed}).plot()._suptitle.get_text()
    assert "40 images, L∞, AutoAttack standard." in title
    assert "[1]: assume_survivors=True instead of False." in title
    assert "1 warning: print the report." in title
    assert "survivors of larger ε assumed" in " ".join(assumed.plot()._suptitle.get_text().split())
    assert "assumed" not in plain.plot()._suptitle.get_text()


def test_a_name_with_dollars_is_no_formula(tmp_path):
    formulas = [r"$\nonsense", "$a_b$"]
    figure = RobustnessReport.compare([random_report(1), random_report(2)], formulas).plot(tmp_path / "plot.png")
    assert names(figure) == formulas


def test_accuracies_of_zero_can_be_drawn(tmp_path):
    random_report(1, clean=0.0).plot(tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("a", b"\x89PNG")]
)
def test_the_suffix_says_the_format(tmp_path, name, start):
    random_report(1).plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_format_that_there_is_not_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="docx"):
        random_report(1).plot(tmp_path / "a.docx")
    assert list(tmp_path.iterdir()) == []


def test_reports_need_no_matplotlib_but_plots_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = random_report(1)
    str(report)
    with pytest.raises(ImportError, match=r"sip-plugin\[plots\]"):
        report.plot()


def test_matplotlib_is_imported_only_for_a_plot_and_pyplot_never():
    program = """
import sys
from tests.evaluation.random_reports import random_report
report = random_report(1)
assert not any(name.startswith("matplotlib") for name in sys.modules)
report.plot()
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
