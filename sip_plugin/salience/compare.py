"""How far two sources of salience maps agree: overlap, size, and the share of a gradient's mass that each holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.constraint import SalienceMap, prepare_mask
from sip_plugin.mask_source import MaskSource, compute_mask


class MapSequence(Protocol):
    """A map ``(C, H, W)`` for each image, such as a ``MaskStore`` or a ``HumanMasks``."""

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SalienceComparison:
    """What :func:`compare_salience` found, image by image; ``print`` it for a table.

    Every measure is a float64 tensor ``(N,)`` on the CPU in ``[0, 1]``; NaN where undefined, which summaries leave out.

    Attributes:
        names: What the two sources are called.
        share_first: Share of all elements that the first map marks.
        share_second: Share of all elements that the second map marks.
        iou: Elements that both maps mark over those that either marks (intersection over union); 1 for two empty maps.
        expected_iou: The IoU to expect of two maps of these sizes at random places: what ``iou`` has to differ from.
        overlap_first: Share of the first map's salient elements that are salient in the second; NaN for an empty one.
        overlap_second: The same of the second map's.
        mass_first: Share of the scores' sum that lies on the first map; None without scores, NaN where all are zero.
        mass_second: The same of the second map.
    """

    names: tuple[str, str]
    share_first: Tensor
    share_second: Tensor
    iou: Tensor
    expected_iou: Tensor
    overlap_first: Tensor
    overlap_second: Tensor
    mass_first: Tensor | None = None
    mass_second: Tensor | None = None

    def __len__(self) -> int:
        return len(self.iou)

    @classmethod
    def join(cls, parts: Iterable[SalienceComparison]) -> SalienceComparison:
        """The comparison of a whole data set from those of its batches; a ``ValueError`` if the sources are not the same."""
        parts = list(parts)
        names, *columns = zip(*(vars(part).values() for part in parts), strict=True)
        if len(set(names)) > 1 or len({part.mass_first is None for part in parts}) > 1:
            raise ValueError(
                f"Only comparisons of one pair of sources, with scores all or none, join; got {set(names)}."
            )
        return cls(names[0], *(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Mean, standard deviation, extremes and median of each measure (None where undefined), as JSON values."""
        summary: dict[str, Any] = {"images": len(self), "names": list(self.names)}
        for name, values in vars(self).items():
            if isinstance(values, Tensor):
                found = values[~values.isnan()]
                figures = dict.fromkeys(("mean", "std", "min", "median", "max"))
                if len(found):
                    measured = (found.mean(), found.std(correction=0), found.min(), found.quantile(0.5), found.max())
                    figures = {key: figure.item() for key, figure in zip(figures, measured, strict=True)}
                summary[name] = {**figures, "undefined": len(values) - len(found)}
        return summary

    def __str__(self) -> str:
        first, second = (f" of {name}" for name in self.names)
        width = len("overlap") + max(len(first), len(second))
        lines = [f"{f'{len(self)} images':<{width}}   mean ± std        min    median  max"]
        for name, figures in list(self.to_dict().items())[2:]:
            shown = "undefined for every image"
            if figures["mean"] is not None:
                shown = "{mean:.3f} ± {std:.3f}   {min:.3f}   {median:.3f}   {max:.3f}".format(**figures)
                shown += f"   (undefined for {figures['undefined']})" if figures["undefined"] else ""
            lines.append(f"{name.replace('_first', first).replace('_second', second):<{width}}   {shown}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"SalienceComparison({len(self)} images, {' and '.join(self.names)})"

    def _repr_markdown_(self) -> str:
        return f"```text\n{self}\n```"


def compare_salience(
    first: MaskSource | MapSequence,
    second: MaskSource | MapSequence,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    scores: MaskSource = None,
    names: tuple[str, str] = ("first", "second"),
) -> SalienceComparison:
    """Compare the maps of two sources on the same images, such as a machine's and a human's (SIP-AT, figure 4).

    A map of pixels stands for every channel. For a data set, compare batch by batch and :meth:`~SalienceComparison.join`.

    Args:
        first: Maps, bool or {0, 1}, ``(H, W)`` or 4-D and broadcastable to ``(N, C, H, W)``; or a function of ``(images)``
            or ``(images, labels)`` that gives them; or a map ``(C, H, W)`` for each image (a ``MaskStore``, a list).
        second: The same of the other source.
        images: ``(N, C, H, W)`` in ``[0, 1]``; needed if a source is a function.
        labels: Class indices ``(N,)``, handed to functions that take them.
        scores: Non-negative scores of the elements, or a function that gives them (``GradientSalience(teacher).magnitude``),
            to report each map's share of their sum.
        names: What the table calls the two sources.

    Raises:
        ValueError: If images are needed and missing, a shape does not fit, or values are no map's or no scores.
    """
    if images is not None:
        check_images(images)
    sources = (first, second) if scores is None else (first, second, scores)
    given = [_values(source, images, labels) for source in sources]
    if images is None:  # something of the maps' shape and on their device takes the images' place
        shapes = [(1, 1, *values.shape) if values.ndim == 2 else tuple(values.shape) for values in given]
        images = torch.zeros((), device=getattr(given[0], "device", "cpu")).expand(torch.broadcast_shapes(*shapes))
    one, two = (prepare_mask(values, images).expand(images.shape) for values in given[:2])
    elements, marked, others, both = images[0].numel(), _sum(one), _sum(two), _sum(one & two)
    either, masses = marked + others - both, []
    if scores is not None:
        weight = torch.as_tensor(given[2], device=images.device).detach()
        # Of three dimensions, images and channels could be mistaken for each other.
        if weight.ndim == 3 or not bool((weight.isfinite() & (weight >= 0)).all()):
            raise ValueError("Scores must be (H, W) or 4-D, finite and not negative (take .abs() of a gradient).")
        weight = weight.expand(images.shape)
        masses = [_sum(weight * mask) / _sum(weight) for mask in (one, two)]
    iou, chance = torch.where(either > 0, both / either, 1.0), expected_iou(marked, others, elements)
    shares, overlaps = (marked / elements, others / elements), (both / marked, both / others)
    return SalienceComparison((names[0], names[1]), *shares, iou, chance, *overlaps, *masses)


def expected_iou(first: Tensor, second: Tensor, elements: int) -> Tensor:
    """Returns the IoU to expect of two maps of these sizes at random places: the mean over the hypergeometric overlap.

    ``first`` and ``second`` are how many elements the maps of each pair mark, ``(N,)``. The result is float64 on the CPU.
    """
    pairs, row = torch.stack([first, second], 1).cpu().long().unique(dim=0, return_inverse=True)
    log_factorial = torch.lgamma(torch.arange(1, elements + 2, dtype=torch.float64))
    found = []
    for part in pairs.split(1024):
        one, two = part[:, :1], part[:, 1:]
        p, q = one.double() / elements, two.double() / elements
        deviation = elements * (p * (1 - p) * q * (1 - q) / max(elements - 1, 1)).sqrt()
        reach = int(12 * deviation.max()) + 12  # what lies further from the mean weighs less than a rounding error
        both = (elements * p * q).round().long() + torch.arange(-reach, reach + 1)
        largest = torch.minimum(one, two)
        possible = (both >= one + two - elements) & (both >= 0) & (both <= largest)
        both = torch.where(possible, both, largest)
        either = one + two - both
        log_ways = -sum((log_factorial[n] for n in (both, one - both, two - both, elements - either)), torch.zeros(()))
        weight = log_ways.masked_fill(~possible, -torch.inf).softmax(1)
        found.append((weight * torch.where(either > 0, both / either.double(), 1.0)).sum(1))
    return torch.cat(found)[row]


def _values(source: Any, images: Tensor | None, labels: Tensor | None) -> SalienceMap:
    """The maps (or scores) of a source: its own, or what it gives for the images."""
    if callable(source):
        if images is None:
            raise ValueError("A source is a function, so images are needed: compare_salience(first, second, images).")
        return compute_mask(source, images, labels)
    if isinstance(source, (Tensor, np.ndarray)):
        return source
    maps = torch.stack([torch.as_tensor(each) for each in source])
    if images is not None and len(maps) != len(images):
        raise ValueError(f"A source has {len(maps)} maps, and there are {len(images)} images.")
    return maps


def _sum(batch: Tensor) -> Tensor:
    """The sum of each image's elements, ``(N,)``, float64 on the CPU."""
    return batch.flatten(1).sum(1, dtype=torch.float64).cpu()
