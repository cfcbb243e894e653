"""Two networks on the same images, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from sip_plugin.evaluation.conditions import differences
from sip_plugin.evaluation.radii import PerEps
from sip_plugin.evaluation.statistics import mcnemar

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport


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


def compare_images(first: RobustnessReport, second: RobustnessReport) -> PerEps[PairedImages]:
    """See :meth:`RobustnessReport.compare_images`."""
    serious = [each.remark for each in differences(second, first) if each.serious or each.never]
    if serious:
        raise ValueError(f"Only reports on the same images can be compared image by image: the other has {serious[0]}.")
    correct = second.correct
    pairs = {0.0: _paired(first.correct_clean, second.correct_clean)}
    return PerEps(pairs | {eps: _paired(mine, correct[eps]) for eps, mine in first.correct.items()})


def _paired(first: Tensor, second: Tensor) -> PairedImages:
    both, only_first, only_second = (int(images.sum()) for images in (first & second, first & ~second, ~first & second))
    neither = len(first) - both - only_first - only_second
    return PairedImages(both, only_first, only_second, neither, mcnemar(only_first, only_second))
