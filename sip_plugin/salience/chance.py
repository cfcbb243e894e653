"""What overlap two salience maps have by chance."""

from __future__ import annotations

import torch
from torch import Tensor

_PAIRS_AT_ONCE = 1024


def chance_iou(first: Tensor, second: Tensor, elements: int) -> Tensor:
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
    parts = [_expected_iou(part[:, :1], part[:, 1:], elements, log_factorial) for part in pairs.split(_PAIRS_AT_ONCE)]
    return torch.cat(parts)[row]


def _expected_iou(first: Tensor, second: Tensor, elements: int, log_factorial: Tensor) -> Tensor:
    """For map sizes ``(n, 1)``: the sum over all sizes of the intersection that are at all likely."""
    smallest, largest = (first + second - elements).clamp(min=0), torch.minimum(first, second)
    p, q = first.double() / elements, second.double() / elements
    deviation = elements * (p * (1 - p) * q * (1 - q) / max(elements - 1, 1)).sqrt()
    reach = int(12 * deviation.max()) + 12  # what lies further from the mean weighs less than a rounding error
    both = (elements * p * q).round().long() + torch.arange(-reach, reach + 1)
    possible = (both >= smallest) & (both <= largest)
    both = torch.where(possible, both, largest)
    log_ways = (
        -log_factorial[both]
        - log_factorial[first - both]
        - log_factorial[second - both]
        - log_factorial[elements - first - second + both]
    )
    weight = log_ways.masked_fill(~possible, -torch.inf).softmax(1)
    either = first + second - both
    return (weight * torch.where(either > 0, both / either.double(), 1.0)).sum(1)
