"""How far a share of few images can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Binomial


def standard_error(share: float, count: int) -> float:
    """The binomial standard error of a share of ``count`` images: ``√(p (1 − p) / n)``."""
    return math.sqrt(share * (1 - share) / count)


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927), 95 % by default: in ``[0, 1]``, and not empty at shares of 0 and 1."""
    weight = z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def note_on_extremes(shares: Iterable[float], count: int) -> tuple[str, ...]:
    """What a reader must know where a share is 0 or 1, whose standard error is 0."""
    if not any(share in (0, 1) for share in shares):
        return ()
    width = 100 * wilson_interval(0.0, count)[1]
    return (f"At 0 and 100 per cent that error is 0; Wilson's 95 per cent interval there is {width:.1f} points wide.",)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, from how many images one of two networks alone has right."""
    fair = Binomial(only_first + only_second, torch.tensor(0.5, dtype=torch.float64))
    wins = torch.arange(min(only_first, only_second) + 1, dtype=torch.float64)
    return min(1.0, 2 * float(fair.log_prob(wins).exp().sum()))


class PairedImages(NamedTuple):
    """How many images both networks have right, only the first, only the second, or neither.

    ``p_value`` is that of McNemar's exact test, two-sided: how likely a split of the images that tell the networks apart at
    least this uneven would be, were both equally accurate on images like these. It compares two networks, not the
    methods that trained them: those have other seeds too.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def paired_images(first: Tensor, second: Tensor) -> PairedImages:
    """Compare which images two networks have right, bool ``(N,)`` each."""
    both, only_first, only_second, neither = (2 * ~first + ~second).bincount(minlength=4).tolist()
    return PairedImages(both, only_first, only_second, neither, mcnemar(only_first, only_second))
