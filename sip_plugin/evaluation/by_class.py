"""The accuracies on the images of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from sip_plugin.evaluation.radii import PerEps

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport


class ClassAccuracy(NamedTuple):
    """Accuracies on the images of one class: how many there are, and the shares that are right."""

    images: int
    clean: float
    robust: PerEps[float]


def accuracy_by_class(report: RobustnessReport) -> dict[int, ClassAccuracy]:
    """See :attr:`RobustnessReport.per_class`."""
    classes, index = report.labels.unique(return_inverse=True)
    counts = index.bincount()

    def shares(correct: Tensor) -> list[float]:
        values: list[float] = (index.bincount(correct.double()) / counts).tolist()
        return values

    clean = shares(report.correct_clean)
    robust = {eps: shares(correct) for eps, correct in report.correct.items()}
    return {
        label: ClassAccuracy(count, clean[row], PerEps({eps: of[row] for eps, of in robust.items()}))
        for row, (label, count) in enumerate(zip(classes.tolist(), counts.tolist(), strict=True))
    }
