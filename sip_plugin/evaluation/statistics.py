"""How far a share of few images can be trusted."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


def standard_error(share: float, count: int) -> float:
    """The binomial standard error of a share of ``count`` images: ``√(p (1 − p) / n)``."""
    return math.sqrt(share * (1 - share) / count)


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count`` images (95 % by default).

    Unlike ``p ± z·standard error`` it stays in ``[0, 1]``, and is not empty where no image, or every image, is right
    (Wilson 1927).
    """
    weight = z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: a fair coin decides which of two networks alone is right.

    Args:
        only_first: Images that only the first network has right.
        only_second: Images that only the second has right.

    Returns:
        The probability of a split at least this uneven; 1 where no image tells them apart.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for wins in range(1, fewer + 1):
        ways = ways * (count - wins + 1) // wins
        tail += ways
    return min(1.0, 2 * tail / (1 << count))


class PairedImages(NamedTuple):
    """How many images both networks have right, only the first, only the second, or neither.

    ``p_value`` is that of McNemar's exact test, two-sided: how likely a split of the images that tell the networks apart at
    least this uneven would be, were both equally accurate on images like these. It speaks of two networks, not of the
    methods that trained them: those have other seeds too.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def paired_images(first: Tensor, second: Tensor) -> PairedImages:
    """Compare which images two networks have right, bool ``(N,)`` each."""
    both, only_first, only_second = (int(images.sum()) for images in (first & second, first & ~second, ~first & second))
    neither = len(first) - both - only_first - only_second
    return PairedImages(both, only_first, only_second, neither, mcnemar(only_first, only_second))
