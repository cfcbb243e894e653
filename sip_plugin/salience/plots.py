"""Pictures of salience maps: the images, their maps, and what the maps leave of a perturbation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.constraint import prepare_mask, project
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask
from sip_plugin.salience.compare import compare_salience
from sip_plugin.salience.grid import Panel, draw, save
from sip_plugin.salience.pictures import (
    CHANNEL_COLOURS,
    as_rgb,
    enlargement,
    map_picture,
    overlay_picture,
    perturbation_picture,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Part = Literal["image", "map", "overlay", "perturbation", "projected"]
_PARTS: tuple[Part, ...] = ("image", "map", "overlay", "perturbation", "projected")
_CHANNELS = {"red": (0,), "green": (1,), "blue": (2,), "red+green": (0, 1), "red+blue": (0, 2), "green+blue": (1, 2)}
_LEGEND = [
    ("salient in:", None),
    *((name, CHANNEL_COLOURS[list(channels)].sum(0).tolist()) for name, channels in _CHANNELS.items()),
    ("all three", [1.0, 1.0, 1.0]),
]


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
        path: Where to write the figure, too; its end is the format (``.png``, ``.pdf``, ``.svg``).

    Returns:
        The figure. It belongs to no window and no pyplot state, so there is nothing to close.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If images or maps are of the wrong type.
        ValueError: If shapes or values do not fit, a part is asked for that there is not, or ``path`` ends with no
            format that matplotlib writes.

    Example:
        >>> plot_salience(images, {"machine": mask_fn, "human": maps}, show=("image", "map"), path="figure4.png")
    """
    if images_as not in ("rows", "columns"):
        raise ValueError(f'images_as must be "rows" or "columns", got {images_as!r}.')
    if names is not None and len(names) != len(images):
        raise ValueError(f"names must hold a name for each of the {len(images)} images, got {len(names)}.")
    scene = _scene(images, maps, labels, adversarial, projected, max_images)
    panels = [panel for part in _chosen(show, scene) for panel in scene.panels(part)]
    figure = draw(
        panels,
        None if names is None else [str(name) for name in names[:max_images]],
        images_as_rows=images_as == "rows",
        legend=_LEGEND if scene.coloured() and any(panel.captions for panel in panels) else (),
    )
    if path is not None:
        save(figure, path)
    return figure


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What is drawn, on the CPU and cut to the first images; maps and projected perturbations by their sources' names."""

    images: Tensor
    maps: dict[str, Tensor]
    perturbation: Tensor | None
    projected: dict[str, Tensor]

    def parts(self) -> list[Part]:
        absent: set[Part] = set()
        if self.perturbation is None:
            absent.add("perturbation")
        if not self.projected:
            absent.add("projected")
        return [part for part in _PARTS if part not in absent]

    def panels(self, part: Part) -> list[Panel]:
        if part == "image":
            return [Panel("image", as_rgb(self.images))]
        if part == "map":
            return [
                Panel(_title("salience map", name), map_picture(salience), captions)
                for (name, salience), captions in zip(self.maps.items(), self.captions(), strict=True)
            ]
        if part == "overlay":
            return [Panel(_title("overlay", name), overlay_picture(self.images, m)) for name, m in self.maps.items()]
        factor = enlargement([*self.projected.values(), *([] if self.perturbation is None else [self.perturbation])])
        if part == "perturbation":
            assert self.perturbation is not None
            return [Panel(f"perturbation ×{factor:g}", perturbation_picture(self.perturbation, factor))]
        title = f"projected perturbation ×{factor:g}"
        return [Panel(_title(title, name), perturbation_picture(c, factor)) for name, c in self.projected.items()]

    def captions(self) -> list[list[str]]:
        """How much of each image each map marks; under the second of two maps, how far they overlap."""
        captions = [[_amount(salience) for salience in maps] for maps in self.maps.values()]
        if len(captions) == 2 and all(maps.dtype == torch.bool for maps in self.maps.values()):
            found = compare_salience(*self.maps.values())
            for row, (iou, chance) in enumerate(zip(found.iou.tolist(), found.chance_iou.tolist(), strict=True)):
                captions[1][row] += f"\nIoU {iou:.2f}\n({chance:.2f} by chance)"
        return captions

    def coloured(self) -> bool:
        """Whether a map differs between the channels."""
        return any(bool((salience != salience[:, :1]).any()) for salience in self.maps.values())


def _scene(
    images: Tensor,
    maps: MaskSource | Mapping[str, MaskSource],
    labels: Tensor | None,
    adversarial: Tensor | None,
    projected: Tensor | Mapping[str, Tensor] | None,
    max_images: int,
) -> _Scene:
    check_images(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Images of 1 or 3 channels can be drawn, got shape {tuple(images.shape)}.")
    if isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 1:
        raise ValueError(f"max_images must be an integer from 1, got {max_images!r}.")
    images = images.detach()
    drawn = images[:max_images].cpu().float()
    sources = maps if isinstance(maps, Mapping) else {"": maps}
    if not sources:
        raise ValueError("maps must hold at least one source, got an empty mapping.")
    masks = {str(name): _map(source, images, labels, max_images) for name, source in sources.items()}
    attacked = None if adversarial is None else _drawn("adversarial", adversarial, images, max_images)
    if projected is not None:
        given = projected if isinstance(projected, Mapping) else {"": projected}
        if set(map(str, given)) != set(masks):
            raise ValueError(
                f"projected must have the sources of maps, {sorted(masks)}, got {sorted(map(str, given))}."
            )
        restricted = {str(name): _drawn("projected", batch, images, max_images) for name, batch in given.items()}
    elif attacked is not None:
        restricted = {name: project(attacked, drawn, salience) for name, salience in masks.items()}
    else:
        restricted = {}
    return _Scene(
        images=drawn,
        maps=masks,
        perturbation=None if attacked is None else attacked - drawn,
        projected={name: restricted[name] - drawn for name in masks if name in restricted},
    )


def _map(source: MaskSource, images: Tensor, labels: Tensor | None, count: int) -> Tensor:
    check_mask_source(source, "maps")
    if callable(source):  # asked for the images drawn alone: a map may be dear
        images, labels = images[:count], None if labels is None else labels[:count]
    salience = prepare_mask(compute_mask(source, images, labels), images, soft=True)
    return salience.expand(images.shape)[:count].cpu()


def _drawn(name: str, batch: Tensor, images: Tensor, count: int) -> Tensor:
    check_images(batch, name=name, tolerance=1e-4)
    if batch.shape != images.shape:
        raise ValueError(f"{name} must be of the images' shape {tuple(images.shape)}, got {tuple(batch.shape)}.")
    return batch.detach()[:count].cpu().float()


def _chosen(show: Sequence[Part] | None, scene: _Scene) -> Sequence[Part]:
    there = scene.parts()
    if show is None:
        return there
    if isinstance(show, str) or not show or not set(show) <= set(_PARTS):
        raise ValueError(f"show must be a sequence of {', '.join(_PARTS)}, got {show!r}.")
    if missing := sorted(set(show) - set(there)):
        raise ValueError(f"{', '.join(missing)} cannot be shown without adversarial images: give adversarial=...")
    return show


def _amount(salience: Tensor) -> str:
    mean = salience.float().mean().item()
    return f"{100 * mean:.0f} % salient" if salience.dtype == torch.bool else f"mean {mean:.2f}"


def _title(what: str, source: str) -> str:
    return f"{what}: {source}" if source else what
