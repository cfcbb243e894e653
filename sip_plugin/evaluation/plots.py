"""Accuracy against ε as a picture: one line for a method, with a band."""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sip_plugin.evaluation.comparison_table import labels_of, remarks_of, runs_of
from sip_plugin.evaluation.conditions import NORMS, UNCHECKED, conditions_of, is_unchecked
from sip_plugin.evaluation.files import replacing
from sip_plugin.evaluation.radii import in_255ths
from sip_plugin.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sip_plugin.evaluation.comparison import ComparisonRow, RobustnessComparison, Spread
    from sip_plugin.evaluation.report import RobustnessReport

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow."""
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", ":")
_FONT, _LABEL = 9.0, 13.0  # points: the size of letters, and the height of a label
_PANEL = (4.1, 2.7)  # inches: width without labels, height of the axes


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
    notes = [f"Band: 95 % interval (Wilson) for {len(report)} images."]
    return _plotted({"": [curve]}, curve.eps, report.norm, [*_conditions(report, [report]), *notes], path)


def plot_comparison(comparison: RobustnessComparison, path: str | os.PathLike[str] | None = None) -> Figure:
    """See :meth:`RobustnessComparison.plot`."""
    shares = [row.figures for row in comparison.rows]
    return _plotted_rows(comparison, comparison.rows, shares, [runs_of(comparison.rows)], path, within=(0.0, 1.0))


def plot_gains(comparison: RobustnessComparison, reference: str, path: str | os.PathLike[str] | None = None) -> Figure:
    """See :meth:`RobustnessComparison.plot`, its ``relative_to``."""
    theirs = {row.group: row for row in comparison.rows if row.name == reference}
    for group in (row.group for row in comparison.rows):
        if group not in theirs:
            where = f" in the group {group!r}" if group else ""
            names = ", ".join(each.name for each in comparison.rows if each.group == group)
            raise ValueError(f"relative_to must be the name of a row{where} ({names}), got {reference!r}.")
    rows = [row for row in comparison.rows if not row.reference or row.name == reference]
    gains = [row.gains_over(theirs[row.group]) for row in rows]
    several = any(len(row.reports) > 1 for row in rows)
    note = runs_of(rows) + " Differences are taken run by run." * several
    return _plotted_rows(comparison, rows, gains, [note], path, label=f"Accuracy minus that of {reference} (points)")


def _plotted_rows(
    comparison: RobustnessComparison,
    rows: Sequence[ComparisonRow],
    figures: Sequence[Mapping[float, Spread]],
    notes: Sequence[str],
    path: str | os.PathLike[str] | None,
    *,
    within: tuple[float, float] = (-1.0, 1.0),
    label: str = "Accuracy (%)",
) -> Figure:
    """Some rows of a comparison, each as it looks among all of them; a panel for each group."""
    names = list(dict.fromkeys(row.name for row in comparison.rows))
    panels: dict[str, list[Curve]] = {}
    for row, name, spreads in zip(rows, labels_of(rows), figures, strict=True):
        panels.setdefault(row.group, []).append(_curve(name, spreads, names.index(row.name), within))
    reports = [report for row in rows for report in row.reports]
    radii = (0.0, *comparison.eps)
    # Remarks say what is different from the first report of all, drawn or not.
    head = [*_conditions(comparison.rows[0].reports[0], reports), *notes, *remarks_of(rows)]
    return _plotted(panels, radii, reports[0].norm, head, path, label=label)


def _curve(label: str, figures: Mapping[float, Spread], style: int, within: tuple[float, float]) -> Curve:
    means = tuple(figure.mean for figure in figures.values())
    low = high = None
    if figures[0.0].std is not None:
        low = tuple(max(within[0], figure.mean - (figure.std or 0)) for figure in figures.values())
        high = tuple(min(within[1], figure.mean + (figure.std or 0)) for figure in figures.values())
    return Curve(label, tuple(figures), means, low, high, style)


def _plotted(
    panels: dict[str, list[Curve]],
    radii: Sequence[float],
    norm: str,
    notes: Sequence[str],
    path: str | os.PathLike[str] | None,
    *,
    label: str = "Accuracy (%)",
) -> Figure:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure and picks a screen
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sip-plugin[plots]'") from error
    curves = [curve for panel in panels.values() for curve in panel]
    width = (_PANEL[0] + 0.075 * max(len(curve.label) for curve in curves)) * len(panels)
    text = [line for note in notes for line in textwrap.wrap(note, int(13.5 * width))]
    axes_height = max(_PANEL[1], max(map(len, panels.values())) * _LABEL / 72)
    figure = Figure((width, axes_height + 0.7 + len(text) * 1.25 * _FONT / 72), layout="constrained")
    figure.suptitle("\n".join(text), fontsize=_FONT, color="0.35", x=0.01, ha="left", parse_math=False)
    top = max(0.01, *(max(curve.high or curve.accuracy) for curve in curves))
    bottom = min(0.0, *(min(curve.low or curve.accuracy) for curve in curves))
    side_by_side = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (group, drawn) in zip(side_by_side, panels.items(), strict=True):
        axes.set_title(group, fontsize=_FONT + 1, loc="left", parse_math=False)
        axes.set_ylim(105 * bottom, 105 * top)
        _set_radii(axes, radii, norm)
        for curve in drawn:
            _draw(axes, curve, _scale(radii), alpha=0.18 if len(drawn) < 5 else 0.1)
        _label(axes, drawn, _scale(radii), _LABEL / 72 / axes_height)
    figure.axes[0].set_ylabel(label, fontsize=_FONT + 1, parse_math=False)
    if path is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=200, format=Path(path).suffix[1:] or "png")
    return figure


def _conditions(first: RobustnessReport, reports: Sequence[RobustnessReport]) -> list[str]:
    """What a table says above and beneath, in short."""
    assumed = ", survivors of larger ε assumed" if first.assume_survivors else ""
    warned = len({warning for report in reports for warning in report.warnings})
    warnings = [f"{warned} warning{'s' * (warned > 1)}: print the report."] if warned else []
    unchecked = [f"{UNCHECKED}."] if any(map(is_unchecked, reports)) else []
    return [f"{conditions_of(first)}{assumed}.", *unchecked, *warnings]


def _scale(eps: Sequence[float]) -> float:
    return 255.0 if in_255ths(eps) else 1.0


def _set_radii(axes: Axes, eps: Sequence[float], norm: str) -> None:
    """The horizontal axis, with a tick at each ε where there is room."""
    unit = " in units of 1/255" if in_255ths(eps) else ""
    axes.set_xlabel(f"ε{unit} ({NORMS[norm]}); 0: clean images", fontsize=_FONT + 1)
    places = [_scale(eps) * radius for radius in eps]
    if all(second - first > 0.035 * places[-1] for first, second in itertools.pairwise(places)):
        axes.set_xticks(places, [f"{place:.4g}" for place in places])
    axes.set_xlim(-0.03 * places[-1], 1.03 * places[-1])
    axes.tick_params(labelsize=_FONT, color="0.6")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def _draw(axes: Axes, curve: Curve, scale: float, alpha: float) -> None:
    places, look = [scale * eps for eps in curve.eps], _look(curve)
    if curve.low is not None and curve.high is not None:
        low, high = ([100 * share for share in bound] for bound in (curve.low, curve.high))
        axes.fill_between(places, low, high, color=look["color"], alpha=alpha, linewidth=0)
    axes.plot(places, [100 * share for share in curve.accuracy], label=curve.label, clip_on=False, zorder=3, **look)


def _look(curve: Curve) -> dict[str, Any]:
    return {
        "color": _COLOURS[curve.style % len(_COLOURS)],
        "marker": _MARKERS[curve.style % len(_MARKERS)],
        "linestyle": _DASHES[curve.style // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.3,
        "markersize": 4.0,
    }


def _label(axes: Axes, curves: Sequence[Curve], scale: float, gap: float) -> None:
    """Names at the right end of the lines, moved apart (to ``gap``, in heights of the axes) where lines end close together.

    A thin line leads from the end of a line to its name, which has the line's marker before it.
    """
    (low, high), right = axes.get_ylim(), axes.get_xlim()[1]
    ends = [100 * curve.accuracy[-1] for curve in curves]
    for curve, end, place in zip(curves, ends, spread_out(ends, gap * (high - low), low, high), strict=True):
        if not curve.label:
            continue
        look = _look(curve)
        leader = [scale * curve.eps[-1], 1.09 * right], [end, place]
        axes.plot(*leader, color=look["color"], linewidth=0.6, clip_on=False, zorder=2.6)
        axes.plot(1.09 * right, place, **look | {"clip_on": False})
        axes.text(1.12 * right, place, curve.label, fontsize=_FONT, va="center_baseline", parse_math=False)


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
