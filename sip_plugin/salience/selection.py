"""From scores to a binary map: for each image the fewest elements that hold a share of their sum (SIP-AT, eq. 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.checks import check_labels


def top_mass_mask(scores: Tensor, mass: float = 0.5) -> Tensor:
    """Mark, for each image, the fewest elements that hold at least ``mass`` of its summed scores (eq. 8).

    The ``k`` largest elements are marked, with the smallest ``k`` whose sum reaches ``mass`` of the total; sums are taken
    in float64 from the largest element on, and of equal elements the first in memory order is marked first. An image
    without any score gets an empty map (``k = 0`` satisfies eq. 8).

    Args:
        scores: Non-negative and finite, ``(N, ...)``.
        mass: The share, in ``[0, 1]``.

    Returns:
        ``bool``, of the scores' shape.
    """
    flat = scores.detach().flatten(1)
    ordered = _descending(flat)
    held = _running_sums(ordered)
    goal = mass * held[:, -1:]
    # An element is needed as long as those before it do not reach the goal; none is where there is nothing to hold.
    count = torch.where(goal > 0, (held < goal).sum(1, keepdim=True) + 1, 0)
    least = ordered.gather(1, (count - 1).clamp_(min=0))
    chosen = flat >= least
    tied = (chosen.sum(1, keepdim=True) > count).any(1)
    if bool(tied.any()):
        chosen[tied] = _first_of_equals(flat[tied], least[tied], count[tied])
    return chosen.view(scores.shape)


def _descending(rows: Tensor) -> Tensor:
    """Sort each row, the largest value first; NumPy sorts values alone thirty times faster than torch does with indices."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1, descending=True).values
    known = rows.float() if rows.element_size() < 4 else rows  # NumPy has no bfloat16, and half has no instructions
    return torch.from_numpy(np.sort(known.numpy(), axis=1)).flip(1)


def _running_sums(rows: Tensor) -> Tensor:
    """Cumulative sums in float64."""
    if rows.device.type == "cpu":
        return rows.cumsum(1, dtype=torch.float64)
    return _sums_by_doubling(rows)


def _sums_by_doubling(rows: Tensor) -> Tensor:
    """Cumulative sums on other devices, where the order of additions in ``cumsum`` may change between runs."""
    sums, step = rows.double(), 1
    while step < rows.shape[1]:
        sums = torch.cat([sums[:, :step], sums[:, step:] + sums[:, :-step]], 1)
        step *= 2
    return sums


def _first_of_equals(rows: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """Mark what is above ``least``, and the first of its equals, ``count`` altogether in each row."""
    above, equal = rows > least, rows == least
    left = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= left))


def binarize(scores: Tensor, mass: float, *, per_pixel: bool = False) -> Tensor:
    """Returns the map of :func:`top_mass_mask`; per pixel, the scores are summed over the channels first."""
    if not per_pixel:
        return top_mass_mask(scores, mass)
    return top_mass_mask(scores.sum(1, keepdim=True, dtype=torch.float64), mass).expand_as(scores)


def check_mass(mass: float) -> float:
    """Refuse anything but a share in ``(0, 1]``.

    Raises:
        ValueError: If it is another number.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be the share of the summed scores that a map holds, in (0, 1], got {mass!r}.")
    return float(mass)


def check_finite(scores: Tensor, what: str, where: str = "the teacher's weights and output") -> None:
    """Refuse scores that are not finite.

    Raises:
        ValueError: If there are any; names the images.
    """
    finite = scores.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what} is NaN or infinite for image(s) {bad[:10]} of the batch, so they have no salience map. Check {where} "
            "on them."
        )


def require_labels(target: Any, labels: Tensor | None, images: Tensor) -> Tensor:
    """Returns the labels for a target that needs them.

    Raises:
        TypeError: If they are not class indices.
        ValueError: If they are missing or do not fit the images.
    """
    if labels is None:
        raise ValueError(f"target={target!r} needs labels: call with (images, labels).")
    with torch.inference_mode(False):  # a copy that may become part of a graph, wherever the labels come from
        return check_labels(labels, images).clone()
