"""A grid of small pictures with names along its sides, as a matplotlib figure; no pyplot, so no global state."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Legend = Sequence[tuple[str, Sequence[float] | None]]
Entry = tuple[float, str, Sequence[float] | None]  # of a legend: how far right, label, colour
Side = Literal["left", "center", "right"]

_DPI = 150
_WIDTH, _HEIGHT, _SMALLEST, _LARGEST = 9.6, 11.0, 1.2, 2.4  # inches: all cells of a row or of a column; one cell
_GAP, _MARGIN, _LABEL, _FOOT, _LEGEND, _SWATCH = 0.07, 0.1, 1.1, 0.25, 3.2, 0.16
_COLUMN = 0.9  # inches: the narrowest column, so that titles and captions have room beside a narrow picture
_TITLE, _CAPTION = 9.0, 7.5  # points
_LINE, _CHARACTER = (
    1.2 / 72,
    0.56 / 72,
)  # inches, of a line's height and a character's mean width, for one point of size


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture of each image, ``(N, 3, H, W)`` in ``[0, 1]``, with a common title and perhaps a caption beneath each."""

    title: str
    pictures: Tensor
    captions: Sequence[str] = ()


def draw(
    panels: Sequence[Panel], names: Sequence[str] | None = None, *, images_as_rows: bool = True, legend: Legend = ()
) -> Figure:
    """The figure: a row for each image and a column for each panel, or the other way round.

    Args:
        panels: What is drawn of each image.
        names: A name for each image.
        images_as_rows: Whether an image is a row or a column.
        legend: Labels with their colours (None for a heading), at the foot.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'sip-plugin[plots]'.") from error
    grid = _Grid(panels, names, images_as_rows, legend)
    figure = Figure(figsize=grid.size, dpi=_DPI, facecolor="white")
    figure.set_layout_engine("none")
    page = figure.add_axes((0, 0, 1, 1))  # one for all: many small ones take seconds
    for row, bottom in enumerate(grid.bottoms):
        _write(page, grid.row_labels[row], grid.left - _GAP, bottom + grid.height / 2, ha="right", above=0.5)
        for column, (picture, caption) in enumerate(grid.cells[row]):
            middle = grid.left + column * (grid.column + _GAP) + grid.column / 2
            _show(page, picture, middle - grid.width / 2, bottom, grid.width, grid.height)
            _write(page, caption, middle, bottom - 0.03, size=_CAPTION, above=0)
            if row == 0:
                _write(page, grid.column_labels[column], middle, bottom + grid.height + 0.03, above=1)
    _draw_legend(page, grid.legend, grid.left)
    page.set(xlim=(0, grid.size[0]), ylim=(0, grid.size[1]))  # its coordinates are inches
    page.set_axis_off()
    return figure


class _Grid:
    """Where everything goes, in inches from the lower left corner, and all texts in lines that fit."""

    def __init__(
        self, panels: Sequence[Panel], names: Sequence[str] | None, images_as_rows: bool, legend: Legend
    ) -> None:
        count, _, height, width = panels[0].pictures.shape
        titles, named = [panel.title for panel in panels], list(names or [""] * count)
        row_labels, column_labels = (named, titles) if images_as_rows else (titles, named)
        self.width, self.height = _cell_size(len(row_labels), len(column_labels), height, width)
        self.column = max(self.width, _COLUMN)

        by_panel = [
            [
                (picture, _wrapped(caption, self.column, _CAPTION, 3))
                for picture, caption in zip(panel.pictures, panel.captions or [""] * count, strict=True)
            ]
            for panel in panels
        ]
        self.cells = [list(row) for row in zip(*by_panel, strict=True)] if images_as_rows else by_panel
        lines = max(1, int(self.height / (_TITLE * _LINE)))
        self.row_labels = [_wrapped(label, _LABEL - _GAP, _TITLE, min(lines, 5)) for label in row_labels]
        self.column_labels = [_wrapped(label, self.column, _TITLE, 4) for label in column_labels]

        longest = max(len(line) for label in self.row_labels for line in label.split("\n"))
        self.left = _MARGIN + longest * _TITLE * _CHARACTER + (_GAP if longest else 0)
        beneath = [max(_text_height(caption, _CAPTION) for _, caption in row) for row in self.cells]
        across = len(column_labels) * (self.column + _GAP) - _GAP
        self.legend = _legend_lines(legend, max(across, _LEGEND))
        self.bottoms = [_MARGIN + _FOOT * len(self.legend) + beneath[-1]]
        for captions in reversed(beneath[:-1]):
            self.bottoms.insert(0, self.bottoms[0] + self.height + _GAP + captions)
        right = self.left + max(across, _LEGEND if legend else 0.0) + _MARGIN
        above = max(_text_height(label, _TITLE) for label in self.column_labels)
        top = self.bottoms[0] + self.height + above + _MARGIN
        self.size = (right, top)


def _cell_size(rows: int, columns: int, height: int, width: int) -> tuple[float, float]:
    """Width and height of a cell in inches: as large as fits, and so that all pixels of an image are of equal size."""
    longer = min(max(min(_WIDTH / columns, _HEIGHT / rows), _SMALLEST), _LARGEST)
    wide = longer * min(1, width / height)
    if wide * _DPI >= width:
        wide = int(wide * _DPI / width) * width / _DPI
    return wide, wide * height / width


class _Wrapper(textwrap.TextWrapper):
    wordsep_re = re.compile(r"(\s+)|(?<=[_-])")  # names of classes are often joined by underscores


def _wrapped(text: str, width: float, size: float, lines: int) -> str:
    """The text in lines of so many inches; what is left after so many lines is cut off."""
    wrapper = _Wrapper(max(4, int(width / (size * _CHARACTER))), max_lines=lines, placeholder="…")
    return "\n".join(line for part in text.split("\n") for line in wrapper.wrap(part))


def _text_height(text: str, size: float) -> float:
    return (text.count("\n") + 1) * size * _LINE + 0.06 if text else 0.0


def _show(page: Axes, picture: Tensor, left: float, bottom: float, width: float, height: float) -> None:
    """One picture: its pixels are sharp squares, unless there are more of them than the figure has."""
    page.imshow(
        (255 * picture).round().byte().permute(1, 2, 0).numpy(),
        interpolation="antialiased" if picture.shape[2] > width * _DPI else "nearest",
        extent=(left, left + width, bottom, bottom + height),
        aspect="auto",
    )
    _frame(page, left, bottom, width, height, facecolor="none")


def _frame(page: Axes, left: float, bottom: float, width: float, height: float, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    page.add_patch(Rectangle((left, bottom), width, height, edgecolor="0.6", linewidth=0.5, **style))


def _write(
    page: Axes, text: str, x: float, y: float, *, size: float = _TITLE, ha: Side = "center", above: float
) -> None:
    """Lines of text; ``above`` is the share of their height that lies above ``y``."""
    lines = text.split("\n")
    top = y + above * len(lines) * size * _LINE
    for number, line in enumerate(lines):
        baseline = top - (number + 0.8) * size * _LINE
        page.text(x, baseline, line, ha=ha, va="baseline", fontsize=size, color="black", parse_math=False)


def _legend_lines(legend: Legend, width: float) -> list[list[Entry]]:
    """The legend in lines of so many inches, the later ones below the first one's entries (right of its heading)."""
    lines: list[list[Entry]] = []
    start = x = 0.0
    for label, colour in legend:
        taken = (_SWATCH if colour is not None else 0.0) + len(label) * _CAPTION * _CHARACTER
        if not lines or x + taken > width:
            lines.append([])
            x = start
        lines[-1].append((x, label, colour))
        x += taken + 0.1
        if colour is None:
            start = x
    return lines


def _draw_legend(page: Axes, lines: Sequence[Sequence[Entry]], left: float) -> None:
    for number, line in enumerate(lines, start=1):
        y = _MARGIN + (len(lines) - number) * _FOOT * 0.8  # nearer to each other than to the pictures
        for offset, label, colour in line:
            x = left + offset
            if colour is not None:
                _frame(page, x, y, 0.11, 0.11, facecolor=tuple(colour))
                x += _SWATCH
            _write(page, label, x, y + 0.055, size=_CAPTION, ha="left", above=0.5)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure whole or not at all, in the format that the file's name ends with.

    Raises:
        ValueError: If it is no format that matplotlib writes.
    """
    target = Path(path)
    known = sorted(figure.canvas.get_supported_filetypes())
    if target.suffix.lower().removeprefix(".") not in known:
        formats = ", ".join(f".{suffix}" for suffix in known)
        raise ValueError(f"The end of a picture's name is its format, got {str(path)!r}. It must be one of {formats}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        figure.savefig(part, dpi=figure.dpi, facecolor="white")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
