"""What an evaluation found: an outcome for each image at each ε, and the figures that follow from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sip_plugin.checks import Norm
from sip_plugin.evaluation import report_json
from sip_plugin.evaluation.by_class import ClassAccuracy, accuracy_by_class
from sip_plugin.evaluation.codes import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST
from sip_plugin.evaluation.consistency import check_consistent, legal_fields
from sip_plugin.evaluation.paired import PairedImages, compare_images
from sip_plugin.evaluation.plots import plot_report
from sip_plugin.evaluation.radii import PerEps, eps_labels
from sip_plugin.evaluation.report_table import report_table
from sip_plugin.evaluation.statistics import standard_error
from sip_plugin.evaluation.tables import Table
from sip_plugin.evaluation.tabular import Tabular

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sip_plugin.evaluation.comparison import RobustnessComparison, Rows

__all__ = ["ASSUMED", "CARRIED", "MISCLASSIFIED", "ROBUST", "ClassAccuracy", "RobustnessReport"]


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessReport(Tabular):
    """Clean and robust accuracy of one network, image by image.

    The number to report at an ε is ``robust_accuracy[eps]``: the share of images that no attack broke, the worst case over
    the attacks image by image. Accuracies are shares in ``[0, 1]`` of all images, those wrong without any attack included.
    A dict by ε also finds a radius that was computed another way.

    Attributes:
        eps: The radii, ascending.
        norm: ``"Linf"`` or ``"L2"``.
        attacks: Names of the attacks in the order in which they ran (for AutoAttack its stages).
        labels: Class indices, ``(N,)``.
        outcome: ``(len(eps), N)``, int64: the index of the attack that broke the image at that ε, or ``ROBUST``,
            ``MISCLASSIFIED``, ``ASSUMED`` or ``CARRIED``.
        broken_by: ``(N,)``, int64: index of the attack whose example broke the image at its smallest ε; -1 if none did.
        smallest_norm: ``(N,)``, float64: norm of the smallest perturbation found that breaks the image; 0 where the clean
            image is wrong, infinite where none was found. An upper bound: attacks do not look for the smallest.
        settings: What the evaluation was asked for, as plain JSON values (attack, version, seed, assume_survivors, …).
        warnings: What a reader should know before believing the figures, one sentence each.
        seconds: Wall time.
        adversarial: eps -> adversarial images ``(N, C, H, W)`` (the clean image where none was found), if asked for.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If fields contradict each other: shapes, codes, an image broken at one ε and not at a larger one, ….
    """

    eps: tuple[float, ...]
    norm: Norm
    attacks: tuple[str, ...]
    labels: Tensor
    outcome: Tensor
    broken_by: Tensor
    smallest_norm: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    adversarial: dict[float, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, value in legal_fields(self).items():
            object.__setattr__(self, name, value)  # the report is frozen
        check_consistent(self)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def assume_survivors(self) -> bool:
        """Whether an image that survived a larger ε was taken to survive the smaller ones unattacked."""
        return bool(self.settings.get("assume_survivors", False))

    @property
    def correct_clean(self) -> Tensor:
        """Which clean images are right, bool ``(N,)``."""
        return self.outcome[0] != MISCLASSIFIED

    @property
    def correct(self) -> PerEps[Tensor]:
        """Which images are right whatever the attacks did at that ε, bool ``(N,)``."""
        return PerEps(zip(self.eps, (self.outcome == ROBUST) | (self.outcome == ASSUMED), strict=True))

    @property
    def clean_accuracy(self) -> float:
        """The share of clean images that are right."""
        return _share(self.correct_clean)

    @property
    def robust_accuracy(self) -> PerEps[float]:
        """The robust accuracy at each ε: the share of images that no attack broke. The number to report."""
        return PerEps({eps: _share(correct) for eps, correct in self.correct.items()})

    @property
    def clean_standard_error(self) -> float:
        """The binomial standard error of :attr:`clean_accuracy`, from the number of images."""
        return standard_error(self.clean_accuracy, len(self))

    @property
    def robust_standard_error(self) -> PerEps[float]:
        """The binomial standard error of :attr:`robust_accuracy`, from the number of images."""
        return PerEps({eps: standard_error(share, len(self)) for eps, share in self.robust_accuracy.items()})

    @property
    def per_class(self) -> dict[int, ClassAccuracy]:
        """The accuracies on the images of each class that has any."""
        return accuracy_by_class(self)

    @property
    def after_carrying(self) -> PerEps[float]:
        """The accuracy left at each ε before its attacks: without the images that an example from another ε breaks."""
        return PerEps(
            {
                eps: _share(self.correct_clean & (row != CARRIED))
                for eps, row in zip(self.eps, self.outcome, strict=True)
            }
        )

    @property
    def after_attack(self) -> PerEps[dict[str, float]]:
        """The accuracy left at each ε when that attack and all before it were done, as AutoAttack logs it.

        Cumulative: each attack saw only the images that :attr:`after_carrying` and the attacks before it left. It is not
        the robust accuracy under that attack alone, which would be higher.
        """
        left = {}
        for eps, row in zip(self.eps, self.outcome, strict=True):
            remaining = self.correct_clean & (row != CARRIED)
            left[eps] = {
                name: _share(remaining & ((row < 0) | (row > index))) for index, name in enumerate(self.attacks)
            }
        return PerEps(left)

    @property
    def broken_at(self) -> Tensor:
        """The smallest ε that broke each image, float64 ``(N,)``: 0 if wrong on the clean image, infinite if none did."""
        at = torch.full((len(self),), torch.inf, dtype=torch.float64)
        for eps, correct in reversed(self.correct.items()):
            at[~correct] = eps
        at[~self.correct_clean] = 0
        return at

    @property
    def broken_by_names(self) -> tuple[str | None, ...]:
        """The name of the attack that broke each image at its smallest ε; None where none did."""
        return tuple(self.attacks[index] if index >= 0 else None for index in self.broken_by.tolist())

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole report but for the adversarial images, as JSON text; written to a file if ``path`` is given.

        The file appears whole or not at all. ``torch.save(report.adversarial, path)`` saves the adversarial images.
        """
        return report_json.dump(self, path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> RobustnessReport:
        """The report that :meth:`to_json` wrote; every field equals the one it had, but for the adversarial images.

        Raises:
            ValueError: If the file is none of a report, or a field of it is missing or wrong; the error names both.
        """
        return report_json.load(cls, path)

    def table(self, digits: int = 1) -> Table:
        """The accuracies in per cent: robust accuracy ± standard error, and what was left after each stage."""
        return report_table(self, digits)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Accuracy against ε (the clean accuracy at 0), with a band: Wilson's 95 % interval for the number of images.

        Args:
            path: Where to save the picture, whole or not at all; the suffix says in which format.

        Returns:
            The figure. It is not registered with ``matplotlib.pyplot``.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return plot_report(self, path)

    @staticmethod
    def compare(
        reports: Rows,
        names: Sequence[str] | None = None,
        *,
        references: Sequence[str] = (),
        allow_differences: bool = False,
    ) -> RobustnessComparison:
        """Several reports in one table: a row for each method, mean ± standard deviation over its runs.

        Args:
            reports: ``{"Madry": report, "SIP-AT": [report, report], ...}``, the reports of a row being runs with other
                seeds; or such a mapping for each group of rows, ``{"ResNet-18": {"Madry": ...}, ...}``; or a list of
                reports, each a row.
            names: Names for a list of reports; those of the same name are runs of one row.
            references: Names of rows that are shown for reference and do not compete for the best figure, as the networks
                trained without attacks do not in the paper.
            allow_differences: Take reports on other images, at other ε or under another attack than the first one's as
                well, and mark their rows. Another norm is never taken.

        Returns:
            The table, to be printed, written or plotted.

        Raises:
            TypeError: If something is no report.
            ValueError: If there is none, the names do not fit, or the reports differ in images, ε, norm or attack. Where
                only ``assume_survivors`` differs, the row is marked.
        """
        from sip_plugin.evaluation.comparison import compare  # which needs this class

        return compare(reports, names, references, allow_differences)

    def compare_images(self, other: RobustnessReport) -> PerEps[PairedImages]:
        """At each ε, and at 0 for the clean images: how many images this network alone has right, or the other one alone.

        Raises:
            ValueError: If the other report is on other images, or at other ε, or under another norm or attack.
        """
        return compare_images(self, other)

    def __repr__(self) -> str:
        labels = eps_labels(self.eps)
        robust = ", ".join(
            f"{at}: {share:.4g}" for at, share in zip(labels, self.robust_accuracy.values(), strict=True)
        )
        return (
            f"{type(self).__name__}({len(self)} images, {self.norm}, clean_accuracy={self.clean_accuracy:.4g}, "
            f"robust_accuracy={{{robust}}})"
        )


def _share(images: Tensor) -> float:
    return int(images.sum()) / len(images)
