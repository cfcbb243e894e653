"""From scores to a binary map, and what all sources of maps have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.checks import check_images, check_labels
from sip_plugin.utils import short_repr


def top_mass_mask(scores: Tensor, mass: float = 0.5) -> Tensor:
    """Returns, for each image, the fewest elements that hold at least ``mass`` of its summed scores (SIP-AT, eq. 8).

    Sums are taken in float64 from the largest element on; of equal elements the first in memory order is marked first.
    An image without any score gets an empty map (``k = 0`` satisfies eq. 8).

    Args:
        scores: Non-negative and finite, ``(N, ...)``; the map is ``bool``, of their shape.
        mass: The share, in ``[0, 1]``.
    """
    flat = scores.detach().flatten(1)
    ordered, held = _descending_sums(flat, on_cpu=flat.device.type == "cpu")
    goal = mass * held[:, -1:]
    # An element is needed as long as those before it do not reach the goal; none is where there is nothing to hold.
    count = torch.where(goal > 0, (held < goal).sum(1, keepdim=True) + 1, 0)
    least = ordered.gather(1, (count - 1).clamp_(min=0))
    chosen = flat >= least
    tied = (chosen.sum(1, keepdim=True) > count).any(1)
    if bool(tied.any()):
        above, equal = flat[tied] > least[tied], flat[tied] == least[tied]
        chosen[tied] = above | (equal & (equal.cumsum(1) <= count[tied] - above.sum(1, keepdim=True)))
    return chosen.view(scores.shape)


def _descending_sums(rows: Tensor, *, on_cpu: bool) -> tuple[Tensor, Tensor]:
    """Each row sorted, the largest value first, and its cumulative sums in float64."""
    if on_cpu:
        # NumPy sorts values alone thirty times faster than torch does with indices, but has no bfloat16, and half is slow.
        known = rows.float() if rows.element_size() < 4 else rows
        ordered = torch.from_numpy(np.sort(known.numpy(), axis=1)).flip(1)
        return ordered, ordered.cumsum(1, dtype=torch.float64)
    ordered = rows.sort(dim=1, descending=True).values
    sums, step = ordered.double(), 1
    while step < rows.shape[1]:  # by doubling: elsewhere the order of additions in cumsum may change between runs
        sums = torch.cat([sums[:, :step], sums[:, step:] + sums[:, :-step]], 1)
        step *= 2
    return ordered, sums


class ScoreSalience(ABC):
    """A source of maps that mark the largest of the scores that a network gives an image's elements."""

    threshold: float | None = None
    per_pixel = False

    def __init__(self, mass: float | None, target: Any) -> None:
        if mass is not None and not 0 < mass <= 1:
            raise ValueError(f"mass must be the share of the summed scores that a map holds, in (0, 1], got {mass!r}.")
        self.mass: Any = None if mass is None else float(mass)  # None only beside a threshold
        self.target = target

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the maps of a batch, ``bool``, ``(N, C, H, W)``; 1 marks a salient element.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``; only used where ``target`` needs them.

        Raises:
            TypeError, ValueError: If images or labels do not fit, labels are missing, or scores are NaN or infinite.
        """
        scores = self.magnitude(images, labels)
        if self.per_pixel:
            scores = scores.sum(1, keepdim=True, dtype=torch.float64)
        chosen = top_mass_mask(scores, self.mass) if self.mass is not None else scores > self.threshold  # type: ignore[operator]
        return chosen.expand_as(images)

    def magnitude(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the scores of a map, non-negative, ``(N, C or 1, H, W)``; arguments and errors as of a call."""
        check_images(images)
        # A caller may be inside no_grad or inference_mode (a validation step); scores need gradients all the same.
        with torch.inference_mode(False), torch.enable_grad():
            classes = None
            if self.target in ("true", "loss"):
                if labels is None:
                    raise ValueError(f"target={self.target!r} needs labels: call with (images, labels).")
                classes = check_labels(labels, images).clone()
            scores = self._scores(images.detach().clone(), classes)
        bad = (~scores.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"The scores of {self!r} are NaN or infinite for image(s) {bad[:10]} of the batch.")
        return scores

    @abstractmethod
    def _scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The scores of a copy of the images; labels only where the target needs them."""

    def __repr__(self) -> str:
        given: dict[str, Any] = {}
        for name, value in vars(self).items():
            given |= value if isinstance(value, dict) else {name: value}  # the options of a method
        own = ("teacher", "method")  # are shown by their class
        shown = (type(v).__name__ if name in own else f"{name}={short_repr(v)}" for name, v in given.items())
        return f"{type(self).__name__}({', '.join(shown)})"
