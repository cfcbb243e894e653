"""Pictures of salience maps: the images, their maps, and what the maps leave of a perturbation."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from sip_plugin.checks import check_choice, check_images, check_int
from sip_plugin.constraint import prepare_mask, project
from sip_plugin.mask_source import MaskSource, compute_mask
from sip_plugin.salience.compare import compare_salience
from sip_plugin.utils import atomic_write, import_extra, show_in_notebooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Part = Literal["image", "map", "overlay", "perturbation", "projected"]
_Panel = tuple[str, Tensor, list[str]]  # title; pictures, (N, 3, H, W) in [0, 1]; captions beneath them

# The colours of the red, green and blue channel's salience. They add up to white, and any two of their eight mixtures can be
# told apart with normal sight, protanopia and deuteranopia; pure red, green and blue fail that.
CHANNEL_COLOURS = torch.tensor([[0.51, 0.26, 0.02], [0.21, 0.71, 0.00], [0.28, 0.03, 0.98]])
SALIENT_COLOUR = torch.tensor([1.0, 0.55, 0.0])

# The figure is laid out in dots, so that each pixel of a small image is a square of whole dots.
_DPI, _COLUMN, _GAP, _MARGIN = 150, 150, 10, 15  # a column has room for titles beside a narrow picture
_TITLE, _CAPTION = 9.0, 7.5  # points; a character of a title is 10.5 dots wide, a line of a caption 20 dots high


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

    The layouts are those of the SIP-AT paper's figures: 1 with adversarial images, 2 without, 4 with the maps of two
    sources, their overlap beneath. Perturbations are drawn around grey, enlarged as their titles say. The figure belongs to
    no window and no pyplot state, so there is nothing to close.

    Args:
        images: ``(N, C, H, W)`` in ``[0, 1]``, of one or three channels.
        maps: Their maps (bool, {0, 1} or soft; broadcastable to the images), or a function that gives them; or several
            sources by name, ``{"machine": ..., "human": ...}``.
        labels: Class indices ``(N,)``, for functions that take them.
        adversarial: Adversarial images of an attack that may change every element.
        projected: Adversarial images of the same attack with the maps (``SIPWrapper``), by name if ``maps`` is; None to
            project the attack's own result: ``x + (x' - x)·(1 - M)``.
        show: Which parts of ``("image", "map", "overlay", "perturbation", "projected")``, in order; None for all.
        names: A name for each image, such as its class.
        images_as: Whether an image is a row of the figure (for a few images) or a column (for many).
        max_images: How many images to draw at most; the first ones.
        path: Where to write the figure, too; its suffix is the format (``.png``, ``.pdf``, ``.svg``).

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If shapes or values do not fit, or there is no such part or format.
    """
    check_images(images)
    check_choice("images_as", images_as, "rows", "columns")
    check_int(max_images, "max_images", 1)
    sources: Mapping[str, Any] = maps if isinstance(maps, Mapping) else {"": maps}
    found: Mapping[str, Tensor] | None = {"": projected} if isinstance(projected, Tensor) else projected
    clean = images.detach()[:max_images].cpu().float()
    attacked = [] if adversarial is None else [_first("adversarial", adversarial, max_images, images)]
    masks, kept = {}, {}
    for name, source in sources.items():
        count = len(clean) if callable(source) else None  # a function is asked for the drawn images only
        x, y = images[:count], None if labels is None else labels[:count]
        masks[name] = prepare_mask(compute_mask(source, x, y), x, soft=True).expand(x.shape)[: len(clean)].cpu()
        if found is not None:
            kept[name] = _first("projected", found[name], max_images, images) - clean
        elif attacked:
            kept[name] = project(attacked[0], clean, masks[name]) - clean
    free, blank = [each - clean for each in attacked], [""] * len(clean)
    gain = display_gain([*free, *kept.values()])

    panels: dict[str, list[_Panel]] = {part: [] for part in get_args(Part)}
    panels["image"] = [("image", clean.expand(-1, 3, -1, -1), blank)]
    panels["perturbation"] = [(f"perturbation ×{gain:g}", render_perturbation(each, gain), blank) for each in free]
    for name, mask in masks.items():
        of, means = f": {name}" if name else "", [each.float().mean().item() for each in mask]
        amounts = [f"{100 * m:.0f} % salient" if mask.dtype == torch.bool else f"mean {m:.2f}" for m in means]
        panels["map"].append((f"salience map{of}", render_map(mask), amounts))
        panels["overlay"].append((f"overlay{of}", render_overlay(clean, mask), blank))
        if kept:
            change = render_perturbation(kept[name], gain)
            panels["projected"].append((f"projected perturbation ×{gain:g}{of}", change, blank))
    if len(masks) == 2 and all(mask.dtype == torch.bool for mask in masks.values()):
        agreement = compare_salience(*masks.values())
        for row, (iou, expected) in enumerate(zip(agreement.iou, agreement.expected_iou, strict=True)):
            amounts[row] += f"\nIoU {iou:.2f}\n({expected:.2f} by chance)"

    there = [part for part in get_args(Part) if panels[part]]
    for part in show or there:
        check_choice("show", part, *there)
    drawn = [panel for part in show or there for panel in panels[part]]
    legend = "map" in (show or there) and any(bool((mask != mask[:, :1]).any()) for mask in masks.values())
    figure = _draw(drawn, blank if names is None else list(names)[: len(clean)], images_as == "rows", legend)
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:], dpi="figure")
    return show_in_notebooks(figure)


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
    """The factor at which 99 % of what was changed stays between black and white: a whole number from 1 up, or 0.5."""
    sizes = torch.cat([torch.empty(0), *(each[each != 0].abs() for each in perturbations)])
    size = sizes.kthvalue(math.ceil(0.99 * len(sizes))).values.item() if len(sizes) else 0.5
    return max(0.5, float(math.floor(0.5 / size + 1e-3)))


def _first(name: str, batch: Tensor, count: int, images: Tensor) -> Tensor:
    check_images(batch, name=name, tolerance=1e-4)
    if batch.shape != images.shape:
        raise ValueError(f"{name} must be of the images' shape {tuple(images.shape)}, got {tuple(batch.shape)}.")
    return batch.detach()[:count].cpu().float()


def _draw(panels: list[_Panel], names: list[str], images_as_rows: bool, legend: bool) -> Figure:
    """Panels as columns and images as rows, or the other way round, in one axes."""
    patches = import_extra("matplotlib.patches", "plots")
    cells = [list(zip(pictures, captions, strict=True)) for _, pictures, captions in panels]
    beside, above = [title for title, *_ in panels], names
    if images_as_rows:
        cells, beside, above = [list(row) for row in zip(*cells, strict=True)], above, beside
    height, width = panels[0][1].shape[2:]
    # Cells are as large as fits, and so that all pixels of an image are of equal size.
    scale = min(max(min(1440 / len(above), 1650 / len(beside)), 180), 360) / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    width, height = max(1, round(scale * width)), max(1, round(scale * height))
    pitch = max(width, _COLUMN) + _GAP
    figure: Figure = import_extra("matplotlib.figure", "plots").Figure(dpi=_DPI)
    figure.set_layout_engine("none")  # whatever the user's style says
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)

    top, middles = 0, []
    for row in cells:
        for column, (picture, caption) in enumerate(row):
            left = column * pitch + (pitch - _GAP - width) // 2
            pixels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
            extent = (left, left + width, top + height, top)
            axes.imshow(pixels, interpolation="antialiased", extent=extent, aspect="auto")
            axes.add_patch(patches.Rectangle((left, top), width, height, ec="0.6", fc="none", lw=0.5, clip_on=False))
            axes.text(left + width / 2, top + height + 5, caption, ha="center", va="top", size=_CAPTION)
        middles.append(top + height / 2)
        lines = max(len(caption.splitlines()) for _, caption in row)
        bottom = top + height + (_GAP + 20 * lines if lines else 0)
        top = bottom + _GAP
    right = len(above) * pitch - _GAP
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    axes.set_yticks(middles, [_wrap(label, _COLUMN) for label in beside])
    centres = [column * pitch + (pitch - _GAP) / 2 for column in range(len(above))]
    axes.set_xticks(centres, [_wrap(label, pitch - _GAP) for label in above])
    axes.tick_params(length=0, pad=3, labelsize=_TITLE, labeltop=True, labelbottom=False)
    if legend:
        texts = ["red", "green", "blue", "red+green", "red+blue", "green+blue", "all three"]
        mixed = torch.tensor([[name in text or text == "all three" for name in texts[:3]] for text in texts])
        colours = (mixed.float() @ CHANNEL_COLOURS).clamp(max=1).tolist()
        swatches = [patches.Patch(fc=tuple(colour), ec="0.6", lw=0.5) for colour in colours]
        look: dict[str, Any] = {"fontsize": _CAPTION, "title_fontsize": _CAPTION, "handlelength": 0.8, "frameon": False}
        look |= {"ncols": min(7, max(3, right // 140)), "alignment": "left", "borderpad": 0, "borderaxespad": 0}
        place = (0, -_MARGIN / bottom)
        axes.legend(swatches, texts, title="salient in:", loc="upper left", bbox_to_anchor=place, **look)
    # The size of all texts is known now: the figure takes it, and the axes keeps its own.
    figure.set_size_inches(right / _DPI, bottom / _DPI)
    x0, y0, x1, y1 = (_DPI * side for side in figure.get_tightbbox().extents)
    left, below = math.ceil(_MARGIN - x0), math.ceil(_MARGIN - y0)
    across, along = left + math.ceil(x1) + _MARGIN, below + math.ceil(y1) + _MARGIN
    figure.set_size_inches(across / _DPI, along / _DPI)
    axes.set_position((left / across, below / along, right / across, bottom / along))
    return figure


def _wrap(text: str, width: float) -> str:
    """A title in lines of so many dots; names of classes are often joined by underscores."""
    return textwrap.fill(text.replace("_", " "), int(width / 10.5))
