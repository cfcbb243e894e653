"""Curves with bands, in panels side by side."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sip_plugin.evaluation.eps import NORMS, eps_unit
from sip_plugin.utils import atomic_write, import_extra, show_in_notebooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow."""
_MARKERS = "osD^vPX<>*"
_FONT = 9.0
File = str | os.PathLike[str]


class Curve(NamedTuple):
    """A line: its name, shares by ε, the bounds of each (empty: no band), and the number of its look."""

    label: str
    shares: Mapping[float, float]
    bounds: Mapping[float, tuple[float, float]]
    look: int = 0


def draw(
    panels: Mapping[str, Sequence[Curve]],
    eps: Iterable[float],
    norm: str,
    what: str,
    notes: Sequence[str],
    path: File | None,
) -> Figure:
    """Draw curves in panels with a title each, ``notes`` above and a legend beside them; ``what`` names the heights."""
    unit = eps_unit(eps)
    labels = {curve.label for panel in panels.values() for curve in panel}
    width = 4.8 + 4.2 * (len(panels) - 1) + 0.075 * max(map(len, labels))
    text = [line for note in notes for line in textwrap.wrap(note, int(13.5 * width))]
    size = width, max(2.7, 0.18 * len(labels)) + 0.7 + len(text) * 1.25 * _FONT / 72
    # Not pyplot, which keeps every figure and picks a screen.
    figure: Figure = import_extra("matplotlib.figure", "plots").Figure(size, layout="constrained")
    figure.suptitle("\n".join(text), fontsize=_FONT, color="0.35", x=0.01, ha="left", parse_math=False)
    side_by_side = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    lines = {}
    for axes, (title, curves) in zip(side_by_side, panels.items(), strict=True):
        axes.set_title(title, fontsize=_FONT + 1, loc="left", parse_math=False)
        axes.set_xlabel(f"ε{'' if unit == 1 else ' in units of 1/255'} ({NORMS[norm]}); 0: clean images")
        for label, shares, bounds, look in curves:
            colour, dashes = COLOURS[look % len(COLOURS)], "-" if look < len(COLOURS) else "--"
            places, heights = [radius / unit for radius in shares], [100 * share for share in shares.values()]
            if bounds:
                low, high = ([100 * bound for bound in side] for side in zip(*bounds.values(), strict=True))
                axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            style = _MARKERS[look % len(_MARKERS)] + dashes
            (lines[label],) = axes.plot(places, heights, style, color=colour, label=label, markersize=4.0)
        if len(places) < 8:
            axes.set_xticks(places, [f"{place:.4g}" for place in places])
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.axhline(0, color="0.9", linewidth=0.6)  # so that the axis has the zero
    side_by_side[0].set_ylabel(what, parse_math=False)
    if max(axes.get_ylim()[1] for axes in side_by_side) < 1:  # nothing but zeros
        side_by_side[0].set_ylim(-1, 20)
    if any(labels):
        legend = figure.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=_FONT, frameon=False)
        for name in legend.get_texts():
            name.set_parse_math(False)
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, dpi=200, format=Path(path).suffix[1:] or "png")
    return show_in_notebooks(figure)
