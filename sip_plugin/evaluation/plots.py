"""Curves with bands, in panels side by side."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sip_plugin.utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow."""
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", ":")
_FONT = 9.0


class Curve(NamedTuple):
    """A line: its name, the places of its points, their heights, the bounds of a band or None, and which look it has."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float] | None
    high: list[float] | None
    look: int


def curve(
    label: str, shares: dict[float, float], bounds: dict[float, tuple[float, float]] | None, unit: float, look: int = 0
) -> Curve:
    """A curve of shares in per cent by ε, which is divided by a unit."""
    low, high = ([100 * each[side] for each in bounds.values()] if bounds else None for side in (0, 1))
    return Curve(label, [eps / unit for eps in shares], [100 * share for share in shares.values()], low, high, look)


def draw(
    panels: Mapping[str, Sequence[Curve]],
    *,
    labels: tuple[str, str],
    notes: Sequence[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw curves, with notes above and a legend beside them.

    Args:
        panels: Curves by the title of their panel.
        labels: Of the two axes.
        notes: Sentences.
        path: Where to save the picture; the suffix says in which format.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure and picks a screen
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sip-plugin[plots]'") from error
    curves = [curve for panel in panels.values() for curve in panel]
    width = 4.2 * len(panels) + (0.6 + 0.075 * max(len(curve.label) for curve in curves))
    text = [line for note in notes for line in textwrap.wrap(note, int(13.5 * width))]
    height = max(2.7, 0.18 * len({curve.label for curve in curves})) + 0.7 + len(text) * 1.25 * _FONT / 72
    figure = Figure((width, height), layout="constrained")
    figure.suptitle("\n".join(text), fontsize=_FONT, color="0.35", x=0.01, ha="left", parse_math=False)
    side_by_side: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, drawn) in zip(side_by_side, panels.items(), strict=True):
        axes.set_title(title, fontsize=_FONT + 1, loc="left", parse_math=False)
        axes.set_xlabel(labels[0], fontsize=_FONT + 1)
        for curve in drawn:
            _draw(axes, curve, alpha=0.18 if len(drawn) < 5 else 0.1)
        places = sorted({place for curve in drawn for place in curve.x})
        if all(second - first > 0.035 * places[-1] for first, second in pairwise(places)):
            axes.set_xticks(places, [f"{place:.4g}" for place in places])
        axes.tick_params(labelsize=_FONT)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    side_by_side[0].set_ylabel(labels[1], fontsize=_FONT + 1, parse_math=False)
    side_by_side[0].set_ylim(
        min(0, *(min(curve.low or curve.y) for curve in curves)) * 1.05,
        max(1, *(max(curve.high or curve.y) for curve in curves)) * 1.05,
    )
    lines = {str(line.get_label()): line for axes in side_by_side for line in axes.lines}
    if any(curve.label for curve in curves):
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        legend = side_by_side[-1].legend(lines.values(), lines.keys(), fontsize=_FONT, frameon=False, **beside)
        for name in legend.get_texts():
            name.set_parse_math(False)
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, dpi=200, format=Path(path).suffix[1:] or "png")
    return figure


def _draw(axes: Axes, curve: Curve, alpha: float) -> None:
    look: dict[str, Any] = {
        "color": _COLOURS[curve.look % len(_COLOURS)],
        "marker": _MARKERS[curve.look % len(_MARKERS)],
        "linestyle": _DASHES[curve.look // len(_COLOURS) % len(_DASHES)],
    }
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=alpha, linewidth=0)
    axes.plot(curve.x, curve.y, label=curve.label, clip_on=False, linewidth=1.3, markersize=4.0, **look)
