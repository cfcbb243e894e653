"""Pictures of salience maps: the images, their maps, and what the maps leave of a perturbation."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.constraint import prepare_mask, project
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask
from sip_plugin.salience.compare import compare_salience
from sip_plugin.utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Part = Literal["image", "map", "overlay", "perturbation", "projected"]

# What the red, green and blue channel's salience is drawn in. The three add up to white, none is dark, and any two of their
# eight mixtures (black and white among them) can be told apart with normal sight, protanopia and deuteranopia; pure red,
# green and blue fail that.
CHANNEL_COLOURS = torch.tensor([[0.51, 0.26, 0.02], [0.21, 0.71, 0.00], [0.28, 0.03, 0.98]])
SALIENT_COLOUR = torch.tensor([1.0, 0.55, 0.0])
_CHANNELS = {
    "red": [0],
    "green": [1],
    "blue": [2],
    "red+green": [0, 1],
    "red+blue": [0, 2],
    "green+blue": [1, 2],
    "all three": [0, 1, 2],
}

# The figure is laid out in dots, so that each pixel of a small image is a square of whole dots.
_DPI = 150
_ACROSS, _DOWN, _SMALLEST, _LARGEST = 1440, 1650, 180, 360  # dots: all cells of a row or column; the longer side of one
_COLUMN, _GAP, _MARGIN = 135, 10, 15  # a column has room for titles beside a narrow picture
_TITLE, _CAPTION = 9.0, 7.5  # points
_LINE, _CHARACTER = (
    1.25 * _DPI / 72,
    0.56 * _DPI / 72,
)  # dots: a line's height, a mean character's width, a point of size


# A title, one picture of each image ``(N, 3, H, W)`` in ``[0, 1]``, and a caption beneath each of them.
_Panel = tuple[str, Tensor, Sequence[str]]


def plot_salience(
    images: Tensor,
    maps: MaskSource | Mapping[str, MaskSource],
    labels: Tensor | None = None,
    *,
    adversarial: Tensor | None = None,
    projected: Tensor | Mapping[str, Tensor] | None = None,
    show: Sequence[Part] | None = None,
    names: Sequence[str] | None = None,
    images_as: Literal["rows", "columns"] = "rows",
    max_images: int = 8,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw images beside their salience maps, and perturbations beside what the maps leave of them.

    With images and maps it is the layout of the SIP-AT paper's figure 2; with adversarial images that of its figure 1; with
    the maps of two sources that of its figure 4, their overlap beneath
    (:func:`~sip_plugin.salience.compare.compare_salience`).

    A map of elements has a colour for each salient channel and white where all are; a map of pixels is black and white.
    Perturbations are drawn around grey, all of them enlarged by the factor that their titles say.

    Args:
        images: ``(N, C, H, W)`` in ``[0, 1]``, of one or three channels.
        maps: Their maps (bool, {0, 1} or soft; broadcastable to the images), or a function that gives them; or several
            sources by name, ``{"machine": ..., "human": ...}``.
        labels: Class indices ``(N,)``, for functions that take them.
        adversarial: Adversarial images of an attack that may change every element.
        projected: Adversarial images of the same attack with the maps (``SIPWrapper``), by name if ``maps`` is. Left out,
            the attack's own result is projected: ``x + (x' - x)·(1 - M)``.
        show: Which parts, in which order: ``"image"``, ``"map"``, ``"overlay"``, ``"perturbation"``, ``"projected"``. Left
            out: all that there is.
        names: A name for each image, such as its class.
        images_as: Whether an image is a row of the figure (for a few images) or a column (for many).
        max_images: How many images to draw at most; the first ones.
        path: Where to write the figure, too; its suffix is the format (``.png``, ``.pdf``, ``.svg``).

    Returns:
        The figure. It belongs to no window and no pyplot state, so there is nothing to close.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If images or maps are of the wrong type.
        ValueError: If shapes or values do not fit, a part is asked for that there is not, or ``path`` has no suffix of a
            format that matplotlib writes.

    Example:
        >>> plot_salience(images, {"machine": mask_fn, "human": maps}, show=("image", "map"), path="figure4.png")
    """
    check_images(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Images of 1 or 3 channels can be drawn, got shape {tuple(images.shape)}.")
    if images_as not in ("rows", "columns"):
        raise ValueError(f'images_as must be "rows" or "columns", got {images_as!r}.')
    if max_images < 1:
        raise ValueError(f"max_images must be an integer from 1, got {max_images!r}.")
    if names is not None and len(names) != len(images):
        raise ValueError(f"names must hold a name for each of the {len(images)} images, got {len(names)}.")
    clean = images.detach()[:max_images].cpu().float()
    sources = maps if isinstance(maps, Mapping) else {"": maps}
    masks = {str(name): _first_maps(source, images, labels, len(clean)) for name, source in sources.items()}
    attacked = None if adversarial is None else _first_images("adversarial", adversarial, images, len(clean))
    restricted = {}
    if projected is not None:
        given = projected if isinstance(projected, Mapping) else {"": projected}
        if set(map(str, given)) != set(masks):
            raise ValueError(f"projected must have the sources of maps, {list(masks)}, got {list(given)}.")
        restricted = {str(name): _first_images("projected", part, images, len(clean)) for name, part in given.items()}
    elif attacked is not None:
        restricted = {name: project(attacked, clean, mask) for name, mask in masks.items()}

    panels = _panels(clean, masks, attacked, restricted)
    there = [part for part in get_args(Part) if panels[part]]
    shown = there if show is None else show
    if not shown or not set(shown) <= set(there):
        raise ValueError(f"show must be a sequence of {', '.join(there)} (others need adversarial=...), got {show!r}.")
    coloured = "map" in shown and any(bool((mask != mask[:, :1]).any()) for mask in masks.values())
    figure = _draw(
        [panel for part in shown for panel in panels[part]],
        [""] * len(clean) if names is None else [str(name) for name in names[:max_images]],
        images_as == "rows",
        coloured,
    )
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:], dpi="figure", facecolor="white")
    return figure


# --- pictures: tensors in, RGB ``(N, 3, H, W)`` in ``[0, 1]`` out -------------------------------------------------------


def render_map(maps: Tensor) -> Tensor:
    """Maps ``(N, C, H, W)``: white is salient in every channel, black in none; else a colour for each salient channel."""
    if maps.shape[1] == 1:
        return maps.float().expand(-1, 3, -1, -1)
    return torch.einsum("nchw,cr->nrhw", maps.float(), CHANNEL_COLOURS).clamp(0, 1)


def render_overlay(images: Tensor, maps: Tensor) -> Tensor:
    """The images in pale grey, and orange over them where the map is salient (the stronger, the more channels)."""
    grey = 0.4 + 0.6 * images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    tinted = SALIENT_COLOUR.view(1, 3, 1, 1) * (0.4 + 0.6 * grey)
    return torch.lerp(grey, tinted, maps.float().mean(1, keepdim=True).sqrt())


def render_perturbation(perturbations: Tensor, gain: float) -> Tensor:
    """Perturbations around grey, multiplied by ``gain``."""
    return (0.5 + gain * perturbations).clamp(0, 1).expand(-1, 3, -1, -1)


def display_gain(perturbations: Sequence[Tensor]) -> float:
    """The factor at which (nearly) all that was changed stays between black and white: a whole number from 1 up, or 0.5.

    One in a hundred of the changed elements may be cut off, so that a few large changes do not hide all others.
    """
    changed = torch.cat([each.abs().flatten() for each in perturbations])
    changed = changed[changed > 0]
    if not len(changed):
        return 1.0
    size = changed.kthvalue(math.ceil(0.99 * len(changed))).values.item()
    return max(0.5, float(math.floor(0.5 / size + 1e-3)))


def _first_maps(source: MaskSource, images: Tensor, labels: Tensor | None, count: int) -> Tensor:
    check_mask_source(source, "maps")
    if callable(source):  # called with the drawn images only: maps may be expensive
        images, labels = images[:count], None if labels is None else labels[:count]
    mask = prepare_mask(compute_mask(source, images, labels), images, soft=True)
    return mask.expand(images.shape)[:count].cpu()


def _first_images(name: str, batch: Tensor, images: Tensor, count: int) -> Tensor:
    check_images(batch, name=name, tolerance=1e-4)
    if batch.shape != images.shape:
        raise ValueError(f"{name} must be of the images' shape {tuple(images.shape)}, got {tuple(batch.shape)}.")
    return batch.detach()[:count].cpu().float()


def _panels(
    images: Tensor, masks: dict[str, Tensor], attacked: Tensor | None, restricted: dict[str, Tensor]
) -> dict[str, list[_Panel]]:
    """All panels that there are, by part."""
    captions = {name: [_amount(mask) for mask in batch] for name, batch in masks.items()}
    if len(masks) == 2 and all(batch.dtype == torch.bool for batch in masks.values()):
        found, second = compare_salience(*masks.values()), list(masks)[1]
        for row, (iou, expected) in enumerate(zip(found.iou.tolist(), found.expected_iou.tolist(), strict=True)):
            captions[second][row] += f"\nIoU {iou:.2f}\n({expected:.2f} by chance)"
    free = [] if attacked is None else [attacked - images]
    kept = {name: restricted[name] - images for name in masks if restricted}
    gain = display_gain([*free, *kept.values()]) if restricted else 1.0
    projected, blank = f"projected perturbation ×{gain:g}", [""] * len(images)
    return {
        "image": [("image", images.expand(-1, 3, -1, -1), blank)],
        "map": [(_title("salience map", name), render_map(mask), captions[name]) for name, mask in masks.items()],
        "overlay": [(_title("overlay", name), render_overlay(images, mask), blank) for name, mask in masks.items()],
        "perturbation": [(f"perturbation ×{gain:g}", render_perturbation(change, gain), blank) for change in free],
        "projected": [(_title(projected, name), render_perturbation(c, gain), blank) for name, c in kept.items()],
    }


def _amount(mask: Tensor) -> str:
    mean = mask.float().mean().item()
    return f"{100 * mean:.0f} % salient" if mask.dtype == torch.bool else f"mean {mean:.2f}"


def _title(what: str, source: str) -> str:
    return f"{what}: {source}" if source else what


# --- the figure -------------------------------------------------------------------------------------------------------


def _draw(panels: Sequence[_Panel], names: Sequence[str], images_as_rows: bool, legend: bool) -> Figure:
    """A row for each image and a column for each panel, or the other way round, in one axes whose coordinates are dots."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'sip-plugin[plots]'.") from error
    titles = [title for title, *_ in panels]
    cells = [list(zip(pictures, captions, strict=True)) for _, pictures, captions in panels]
    if images_as_rows:
        cells = [list(row) for row in zip(*cells, strict=True)]
    row_labels, column_labels = (names, titles) if images_as_rows else (titles, names)
    width, height = _cell_size(len(row_labels), len(column_labels), *panels[0][1].shape[2:])
    pitch = max(width, _COLUMN) + _GAP
    figure = Figure(dpi=_DPI)
    figure.set_layout_engine("none")  # whatever the user's style says
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)

    top, middles = 0, []
    for row in cells:
        bottom = top + height
        middles.append((top + bottom) / 2)
        for column, (picture, caption) in enumerate(row):
            left = column * pitch + (pitch - _GAP - width) // 2
            pixels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
            smooth = "antialiased" if pixels.shape[1] > width else "nearest"
            axes.imshow(pixels, interpolation=smooth, extent=(left, left + width, top + height, top), aspect="auto")
            frame = Rectangle(
                (left, top), width, height, edgecolor="0.6", facecolor="none", linewidth=0.5, clip_on=False
            )
            axes.add_patch(frame)
            if caption:
                wrapped, place = _wrap(caption, pitch - _GAP, _CAPTION, 3), (left + width / 2, top + height + 5)
                axes.text(*place, wrapped, ha="center", va="top", size=_CAPTION, color="black", parse_math=False)
                bottom = max(bottom, top + height + _GAP + round((wrapped.count("\n") + 1) * _CAPTION * _LINE))
        top = bottom + _GAP
    right = len(column_labels) * pitch - _GAP
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    beside = min(5, max(1, int(height / (_TITLE * _LINE))))
    axes.set_yticks(middles, [_wrap(label, 150, _TITLE, beside) for label in row_labels], parse_math=False)
    centres = [column * pitch + (pitch - _GAP) / 2 for column in range(len(column_labels))]
    above = [_wrap(label, pitch - _GAP, _TITLE, 4) for label in column_labels]
    axes.set_xticks(centres, above, parse_math=False)
    axes.tick_params(length=0, pad=3, labelsize=_TITLE, labelcolor="black", labeltop=True, labelbottom=False)
    if legend:
        colours = {name: CHANNEL_COLOURS[channels].sum(0).tolist() for name, channels in _CHANNELS.items()}
        drawn = axes.legend(
            handles=[Patch(facecolor=tuple(c), edgecolor="0.6", linewidth=0.5, label=n) for n, c in colours.items()],
            title="salient in:",
            alignment="left",
            ncols=min(7, max(3, right // 140)),
            loc="upper left",
            bbox_to_anchor=(0, -_MARGIN / bottom),
            fontsize=_CAPTION,
            title_fontsize=_CAPTION,
            labelcolor="black",
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=0.8,
            handleheight=0.8,
        )
        drawn.get_title().set_color("black")
    # The size of all texts is known now: the figure takes it, and the axes keeps its own.
    figure.set_size_inches(right / _DPI, bottom / _DPI)
    box = axes.get_tightbbox()
    assert box is not None
    left, below = math.ceil(-box.x0) + _MARGIN, math.ceil(-box.y0) + _MARGIN
    across, along = left + math.ceil(box.x1) + _MARGIN, below + math.ceil(box.y1) + _MARGIN
    figure.set_size_inches(across / _DPI, along / _DPI)
    axes.set_position((left / across, below / along, right / across, bottom / along))
    return figure


def _cell_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Width and height of a cell in dots: as large as fits, and so that all pixels of an image are of equal size."""
    scale = min(max(min(_ACROSS / columns, _DOWN / rows), _SMALLEST), _LARGEST) / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(scale * width)), max(1, round(scale * height))


class _Wrapper(textwrap.TextWrapper):
    wordsep_re = re.compile(r"(\s+)|(?<=[_-])")  # names of classes are often joined by underscores


def _wrap(text: str, width: float, size: float, lines: int) -> str:
    """The text in lines of so many dots; what is left after so many lines is cut off."""
    wrapper = _Wrapper(max(4, int(width / (size * _CHARACTER))), max_lines=lines, placeholder="…")
    return "\n".join(line for part in text.split("\n") for line in wrapper.wrap(part))
