"""What one method has more than another, with intervals over seeds and images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.eps import EpsDict

DRAWS = 8000


class Difference(NamedTuple):
    """A difference of accuracies in points, with the ends of its 95 per cent interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{points(self.mean)} [{points(self.low)}, {points(self.high)}]"

    @property
    def shown(self) -> int:
        """The sign of a difference whose interval, as it is printed, has no zero in it, else 0."""
        return (round(self.low, 1) > 0) - (round(self.high, 1) < 0)


def points(value: float) -> str:
    """A difference with its sign, to a tenth of a point."""
    return f"{round(value, 1) + 0:+.1f}".replace("-", "−")


def paired_differences(first: Sequence[RobustnessReport], second: Sequence[RobustnessReport]) -> EpsDict[Difference]:
    """The difference at each ε (0: clean images) between two methods' networks, paired by seed and by image.

    A bootstrap over seeds and images: each draw takes as many seeds and as many images as there are, with replacement, the
    same images for all seeds, since all networks are tested on the same ones. Where seed and image together explain little
    of a difference, as here, such intervals are rather too wide than too narrow (Owen 2007, The pigeonhole bootstrap). Those
    of one seed say nothing about other seeds.

    Args:
        first: Reports of one method, a seed each.
        second: Of the other, of the same seeds in the same order, on the same images.
    """
    gaps = torch.stack([_correct(a) - _correct(b) for a, b in zip(first, second, strict=True)])  # (seeds, eps, images)
    seeds, images = _draws(len(gaps), gaps.shape[-1])
    means = (seeds[:, None] * (gaps @ images)).sum(0)  # (eps, draws)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype), 1)
    figures = zip(gaps.mean((0, 2)).tolist(), low.tolist(), high.tolist(), strict=True)
    return EpsDict(
        zip(first[0].accuracy, (Difference(*(100 * each for each in figure)) for figure in figures), strict=True)
    )


def _correct(report: RobustnessReport) -> Tensor:
    return torch.stack([report.correct_clean, *report.correct.values()]).double()


@functools.cache
def _draws(*counts: int) -> list[Tensor]:
    """For each count the weights of so many things in each draw, ``(count, DRAWS)``."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for count in counts:
        drawn = torch.randint(count, (count, DRAWS), generator=generator)
        ones = torch.ones(count, DRAWS, dtype=torch.float64)
        weights.append(torch.zeros_like(ones).scatter_add_(0, drawn, ones) / count)
    return weights
