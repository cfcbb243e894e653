"""Accuracy against ε as a picture: one line for a method, with a band."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sip_plugin.evaluation.comparison_table import labels_of, runs_of
from sip_plugin.evaluation.conditions import NORMS, conditions_of
from sip_plugin.evaluation.files import replacing
from sip_plugin.evaluation.radii import in_255ths
from sip_plugin.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sip_plugin.evaluation.comparison import ComparisonRow, RobustnessComparison
    from sip_plugin.evaluation.report import RobustnessReport

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow."""
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", ":")
_FONT, _LINE = 9.0, 12.5  # points: the size of a label, and how far apart two labels must be
_PANEL = (3.9, 3.4)  # inches


class Curve(NamedTuple):
    """Accuracies by ε, 0 for the clean images, with the bounds of a band or None."""

    label: str
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    style: int


def plot_report(report: RobustnessReport, path: str | os.PathLike[str] | None = None) -> Figure:
    """See :meth:`RobustnessReport.plot`."""
    accuracy = (report.clean_accuracy, *report.robust_accuracy.values())
    low, high = zip(*(wilson_interval(share, len(report)) for share in accuracy), strict=True)
    curve = Curve("", (0.0, *report.eps), accuracy, low, high, 0)
    return _plotted(
        {"": [curve]}, report, f"{conditions_of(report)}\nband: 95 % interval (Wilson) of {len(report)} images", path
    )


def plot_comparison(comparison: RobustnessComparison, path: str | os.PathLike[str] | None = None) -> Figure:
    """See :meth:`RobustnessComparison.plot`."""
    rows = comparison.rows
    names = list(dict.fromkeys(row.name for row in rows))
    panels: dict[str, list[Curve]] = {}
    for row, label in zip(rows, labels_of(comparison), strict=True):
        panels.setdefault(row.group, []).append(_curve(row, label, names.index(row.name)))
    first = rows[0].reports[0]
    return _plotted(panels, first, f"{conditions_of(first)}\n{runs_of(rows)}", path)


def _curve(row: ComparisonRow, label: str, style: int) -> Curve:
    figures = (row.clean, *row.robust.values())
    means = tuple(figure.mean for figure in figures)
    low = high = None
    if row.clean.std is not None:
        low = tuple(max(0.0, figure.mean - (figure.std or 0)) for figure in figures)
        high = tuple(min(1.0, figure.mean + (figure.std or 0)) for figure in figures)
    return Curve(label, (0.0, *row.robust), means, low, high, style)


def _plotted(
    panels: dict[str, list[Curve]], report: RobustnessReport, title: str, path: str | os.PathLike[str] | None
) -> Figure:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure and picks a screen
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sip-plugin[plots]'") from error
    curves = [curve for panel in panels.values() for curve in panel]
    most = max(map(len, panels.values()))
    height = max(_PANEL[1], 1.2 + most * _LINE / 72)
    width = _PANEL[0] + 0.07 * max(len(curve.label) for curve in curves)
    figure = Figure((width * len(panels), height), layout="constrained")
    figure.suptitle(
        title + "." * (not title.endswith(".")), fontsize=_FONT, color="0.35", x=0.01, ha="left", parse_math=False
    )
    top = 1.05 * max(max(curve.high or curve.accuracy) for curve in curves)
    everywhere = sorted({eps for curve in curves for eps in curve.eps})
    axes_of = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (group, drawn) in zip(axes_of, panels.items(), strict=True):
        axes.set_title(group, fontsize=_FONT + 1, loc="left", parse_math=False)
        axes.set_ylim(0, 100 * max(top, 0.01))
        _set_radii(axes, everywhere, report)
        for curve in drawn:
            _draw(axes, curve, _scale(everywhere))
        _label(axes, drawn, _scale(everywhere), height)
    axes_of[0].set_ylabel("Accuracy (%)", fontsize=_FONT + 1)
    if path is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=200, format=Path(path).suffix[1:] or "png")
    return figure


def _scale(eps: Sequence[float]) -> float:
    return 255.0 if in_255ths(eps) else 1.0


def _set_radii(axes: Axes, eps: Sequence[float], report: RobustnessReport) -> None:
    """The horizontal axis, with a tick at each ε where there is room."""
    unit = " in units of 1/255" if in_255ths(eps) else ""
    axes.set_xlabel(f"ε{unit} ({NORMS[report.norm]}); 0: clean images", fontsize=_FONT + 1)
    places = [_scale(eps) * radius for radius in eps]
    if all(second - first > 0.035 * places[-1] for first, second in itertools.pairwise(places)):
        axes.set_xticks(places, [f"{place:.4g}" for place in places])
    axes.set_xlim(-0.03 * places[-1], 1.03 * places[-1])
    axes.tick_params(labelsize=_FONT, color="0.6")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def _draw(axes: Axes, curve: Curve, scale: float) -> None:
    places = [scale * eps for eps in curve.eps]
    colour = _COLOURS[curve.style % len(_COLOURS)]
    if curve.low is not None and curve.high is not None:
        low, high = ([100 * share for share in bound] for bound in (curve.low, curve.high))
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(places, [100 * share for share in curve.accuracy], label=curve.label, clip_on=False, **_look(curve))


def _look(curve: Curve) -> dict[str, Any]:
    return {
        "color": _COLOURS[curve.style % len(_COLOURS)],
        "marker": _MARKERS[curve.style % len(_MARKERS)],
        "linestyle": _DASHES[curve.style // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.3,
        "markersize": 4.0,
    }


def _label(axes: Axes, curves: Sequence[Curve], scale: float, height: float) -> None:
    """Names at the right end of the lines, moved apart where lines end close together."""
    low, high = axes.get_ylim()
    gap = _LINE / (72 * (height - 1.0)) * (high - low)
    ends = [100 * curve.accuracy[-1] for curve in curves]
    right = axes.get_xlim()[1]
    for curve, end, place in zip(curves, ends, spread_out(ends, gap, low, high), strict=True):
        if not curve.label:
            continue
        axes.annotate(
            curve.label,
            (scale * curve.eps[-1], end),
            (1.07 * right, place),
            fontsize=_FONT,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": _look(curve)["color"],
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread_out(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in ``[low, high]`` as near to the targets as can be, in their order, at least ``gap`` apart.

    The least-squares places: isotonic regression of the targets less the gaps before them, by pooling neighbours.
    """
    gap = min(gap, (high - low) / max(1, len(targets) - 1))
    order = sorted(range(len(targets)), key=targets.__getitem__)
    pools: list[list[float]] = []  # the sum and the number of the targets in each
    for rank, index in enumerate(order):
        pools.append([targets[index] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    levels = [total / count for total, count in pools for _ in range(int(count))]
    places = [0.0] * len(targets)
    for rank, (index, level) in enumerate(zip(order, levels, strict=True)):
        places[index] = min(max(level, low), high - (len(targets) - 1) * gap) + rank * gap
    return places
