"""How far two sources of salience maps agree: overlap, size, and the share of a gradient's mass that each holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.constraint import SalienceMap, prepare_mask
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask

_PAIRS_AT_ONCE = 1024


class MapSequence(Protocol):
    """A map ``(C, H, W)`` for each image, such as a ``MaskStore`` or a ``HumanMasks``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False)
class SalienceComparison:
    """What :func:`compare_salience` found, image by image; ``print`` it for a table.

    Every measure is a float64 tensor ``(N,)`` on the CPU with values in ``[0, 1]``; NaN where it is not defined. Tables and
    summaries leave such images out and say how many they are.

    Attributes:
        names: What the two sources are called.
        share_first: Share of all elements that the first map marks.
        share_second: The same of the second.
        iou: Elements that both maps mark over those that either marks (intersection over union). Two empty maps agree: 1.
        expected_iou: The IoU to expect of two maps that mark as many elements at places drawn at random and independently
            of each other. An overlap says something only where it differs from this one.
        overlap_first: Of the first map's salient elements, the share that is salient in the second. NaN for an empty map.
        overlap_second: Of the second map's salient elements, the share that is salient in the first. NaN for an empty map.
        mass_first: Share of the scores' sum that lies on the first map; None without scores, NaN where they are all zero.
        mass_second: The same of the second.
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
        """The comparison of a whole data set from those of its batches.

        Raises:
            ValueError: If there are none, or they compare different sources, or only some have scores.
        """
        parts = list(parts)
        if len({(part.names, part.mass_first is None) for part in parts}) != 1:
            kinds = sorted({f"{part.names}{'' if part.mass_first is None else ' with scores'}" for part in parts})
            raise ValueError(f"Comparisons of one pair of sources can be joined, all with scores or none, got {kinds}.")
        measures = {name: torch.cat([part._measures()[name] for part in parts]) for name in parts[0]._measures()}
        return cls(names=parts[0].names, **measures)

    def to_dict(self) -> dict[str, Any]:
        """Mean, standard deviation (over the images, not of the mean), extremes and median of each measure, as JSON values.

        ``undefined`` counts the images left out; a measure that is defined for none has None for each figure.
        """
        summaries = {name: _summary(values) for name, values in self._measures().items()}
        return {"images": len(self), "names": list(self.names), **summaries}

    def __str__(self) -> str:
        first, second = self.names
        titles = {
            "share_first": f"salient, {first}",
            "share_second": f"salient, {second}",
            "iou": "IoU",
            "expected_iou": "IoU expected by chance",
            "overlap_first": f"of {first}, also in {second}",
            "overlap_second": f"of {second}, also in {first}",
            "mass_first": f"mass held, {first}",
            "mass_second": f"mass held, {second}",
        }
        width = max(map(len, titles.values()))
        lines = [f"{f'{len(self)} images':<{width}}   mean ± std        min    median  max"]
        for name, figures in ((name, _summary(values)) for name, values in self._measures().items()):
            line = f"{titles[name]:<{width}}   "
            if figures["mean"] is None:
                lines.append(f"{line}undefined for every image")
                continue
            left_out = f"   (undefined for {figures['undefined']})" if figures["undefined"] else ""
            spread = "   ".join(f"{figures[key]:.3f}" for key in ("min", "median", "max"))
            lines.append(f"{line}{figures['mean']:.3f} ± {figures['std']:.3f}   {spread}{left_out}")
        return "\n".join(lines)

    def _measures(self) -> dict[str, Tensor]:
        """The measures that there are, by name, in the order of the table."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


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

    A map of pixels stands for every channel, so it can be compared with a map of elements. For a data set, compare batch
    by batch and :meth:`~SalienceComparison.join`. Maps of one kind of image (birds in the middle) overlap more than chance
    whatever they are about; compare with other images' maps, ``second.roll(1, 0)``, to see how much of the overlap is
    the image's own.

    Args:
        first: Maps, bool or {0, 1}, ``(H, W)`` or 4-D and broadcastable to ``(N, C, H, W)``; or a function of
            ``(images)`` or ``(images, labels)`` that gives them; or a map ``(C, H, W)`` for each image in a ``MaskStore``,
            a ``HumanMasks`` or a list, all of one shape.
        second: The same of the other source.
        images: ``(N, C, H, W)`` in ``[0, 1]``; needed if a source is a function.
        labels: Class indices ``(N,)``, handed to functions that take them.
        scores: Non-negative scores of the elements, broadcastable to ``(N, C, H, W)``, or a function that gives them, such
            as ``GradientSalience(teacher).magnitude``; then each map's share of their sum is reported.
        names: What the table calls the two sources.

    Raises:
        TypeError: If a source is neither maps nor a function, or of the wrong type.
        ValueError: If images are needed and missing, shapes do not fit, a map is soft, or a score is negative, NaN or
            infinite.

    Example:
        >>> print(compare_salience(GradientSalience(teacher), human_maps, images, names=("machine", "human")))
    """
    first_name, second_name = map(str, names)
    if first is None or second is None:
        raise TypeError("Two sources of maps are needed, got None. A source is maps or a function that gives them.")
    if images is not None:
        check_images(images)
    sources = {"first": first, "second": second, **({} if scores is None else {"scores": scores})}
    given = {name: _values(source, images, labels, name) for name, source in sources.items()}
    if images is None:
        shapes = [(1, 1, *values.shape) if values.ndim == 2 else tuple(values.shape) for values in given.values()]
        try:
            shape = torch.broadcast_shapes(*shapes)
        except RuntimeError as error:
            raise ValueError(f"The maps (and scores) are of shapes that do not fit together: {shapes}.") from error
        # Something of their shape and on their device takes the images' place.
        images = torch.zeros((), device=given["first"].device).expand(shape)
    one, two = (_binary_map(given[name], images, name) for name in ("first", "second"))
    elements, count_one, count_two, both = images[0].numel(), _count(one), _count(two), _count(one & two)
    either = count_one + count_two - both
    masses = _masses(given["scores"], (one, two), images) if "scores" in given else [None, None]
    return SalienceComparison(
        names=(first_name, second_name),
        share_first=count_one / elements,
        share_second=count_two / elements,
        iou=torch.where(either > 0, both / either, 1.0),
        expected_iou=expected_iou(count_one, count_two, elements),
        overlap_first=both / count_one,
        overlap_second=both / count_two,
        mass_first=masses[0],
        mass_second=masses[1],
    )


def expected_iou(first: Tensor, second: Tensor, elements: int) -> Tensor:
    """The expected IoU of two maps that mark so many elements each, drawn at random and independently of each other.

    How many elements both mark is hypergeometric. The expectation is that of the ratio; the ratio of the expectations,
    ``pq / (p + q - pq)`` for shares ``p`` and ``q``, is too low, by half for maps of one element.

    Args:
        first: How many elements the first map of each pair marks, ``(N,)``.
        second: The same of the second.
        elements: How many elements an image has.

    Returns:
        float64, ``(N,)``, on the CPU; 1 for two empty maps.
    """
    sizes = torch.stack([first, second], 1).cpu().to(torch.int64)
    pairs, row = sizes.unique(dim=0, return_inverse=True)
    log_factorial = torch.lgamma(torch.arange(1, elements + 2, dtype=torch.float64))
    parts = [
        _hypergeometric_iou(part[:, :1], part[:, 1:], elements, log_factorial) for part in pairs.split(_PAIRS_AT_ONCE)
    ]
    return torch.cat(parts)[row]


def _hypergeometric_iou(first: Tensor, second: Tensor, elements: int, log_factorial: Tensor) -> Tensor:
    """For map sizes ``(n, 1)``: the sum over all sizes of the intersection that are at all likely."""
    smallest, largest = (first + second - elements).clamp(min=0), torch.minimum(first, second)
    p, q = first.double() / elements, second.double() / elements
    deviation = elements * (p * (1 - p) * q * (1 - q) / max(elements - 1, 1)).sqrt()
    reach = int(12 * deviation.max()) + 12  # what lies further from the mean weighs less than a rounding error
    both = (elements * p * q).round().long() + torch.arange(-reach, reach + 1)
    possible = (both >= smallest) & (both <= largest)
    both = torch.where(possible, both, largest)
    either = first + second - both
    counts = (both, first - both, second - both, elements - either)
    log_ways = -sum((log_factorial[count] for count in counts), torch.zeros(()))
    weight = log_ways.masked_fill(~possible, -torch.inf).softmax(1)
    return (weight * torch.where(either > 0, both / either.double(), 1.0)).sum(1)


def _values(source: Any, images: Tensor | None, labels: Tensor | None, name: str) -> SalienceMap:
    """The maps (or scores) of a source: itself, or what it gives for the images."""
    arrays = (Tensor, np.ndarray, str, Mapping)
    if not callable(source) and not isinstance(source, arrays) and hasattr(source, "__getitem__"):
        if images is not None and len(source) != len(images):
            raise ValueError(
                f"{name} holds {len(source)} maps, one for each image of its data set, and {len(images)} images came. Give "
                "those of the images: torch.stack([maps[i] for i in indices])."
            )
        maps = [torch.as_tensor(source[index]) for index in range(len(source))]
        if len({each.shape for each in maps}) != 1:
            raise ValueError(
                f"The maps of {name} must be of one shape (C, H, W) to be compared. Move them to their images' size first "
                "(SalientDataset does, with its transform)."
            )
        return torch.stack(maps)
    check_mask_source(source, name)
    if callable(source) and images is None:
        raise ValueError(f"{name} is a function, so images are needed: compare_salience(first, second, images).")
    return compute_mask(source, images, labels)  # type: ignore[arg-type]


def _binary_map(values: SalienceMap, images: Tensor, name: str) -> Tensor:
    mask = prepare_mask(values, images, soft=True)
    if mask.dtype != torch.bool:
        raise ValueError(
            f"The {name} map is soft, and overlap is defined for maps of 0 and 1. Binarise it first (mask > threshold)."
        )
    return mask.expand(images.shape)


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(1).cpu().double()


def _masses(scores: SalienceMap, maps: Iterable[Tensor], images: Tensor) -> list[Tensor]:
    """The share of each image's scores that lies on each map."""
    values = torch.as_tensor(scores, device=images.device).detach()
    if values.ndim not in (2, 4):  # of three dimensions, images and channels could be mistaken for each other
        raise ValueError(
            f"Scores must be (H, W) or 4-D and broadcastable to {tuple(images.shape)}, got {values.ndim}-D."
        )
    values = values.expand(images.shape)
    usable = (values.isfinite() & (values >= 0)).flatten(1).all(1)
    if not bool(usable.all()):
        bad = (~usable).nonzero().flatten().tolist()
        raise ValueError(
            f"Scores must be finite and not negative (take .abs() of a gradient); image(s) {bad[:10]} are not."
        )
    total, *held = (part.flatten(1).sum(1, dtype=torch.float64).cpu() for part in (values, *(values * m for m in maps)))
    return [part / total for part in held]


def _summary(values: Tensor) -> dict[str, Any]:
    """Figures of a measure over the images for which it is defined."""
    defined = values[~values.isnan()]
    figures: dict[str, Any] = dict.fromkeys(("mean", "std", "min", "median", "max"))
    if len(defined):
        figures |= {"mean": defined.mean().item(), "std": defined.std(correction=0).item()}
        figures |= {"min": defined.min().item(), "median": defined.quantile(0.5).item(), "max": defined.max().item()}
    return {**figures, "undefined": len(values) - len(defined)}
