"""The table of one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sip_plugin.evaluation.radii import eps_labels
from sip_plugin.evaluation.tables import Cell, Row, Table

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport

NORMS = {"Linf": "L∞", "L2": "L2"}


def attack_of(report: RobustnessReport) -> str:
    """The attack of a report and its version: ``AutoAttack standard``; without a setting of that name, what ran."""
    named = [str(report.settings[name]) for name in ("attack", "version") if report.settings.get(name) is not None]
    return " ".join(named) if report.settings.get("attack") is not None else " + ".join(report.attacks)


def survivors_of(report: RobustnessReport) -> str:
    """What was done with the survivors of larger radii, as a sentence."""
    if report.assume_survivors:
        return (
            "Survivors were assumed: an image that survived the attack at a larger ε was not attacked at the smaller ones "
            "(assume_survivors=True)."
        )
    return "Survivors were not assumed: each was attacked at the smaller ε too (assume_survivors=False)."


def report_table(report: RobustnessReport, digits: int = 1) -> Table:
    """Accuracies in per cent: clean, and at each ε the robust accuracy and what was left after each stage.

    Args:
        report: The report.
        digits: Decimals.
    """

    def per_cent(share: float, error: float | None = None) -> Cell:
        text = f"{100 * share:.{digits}f}"
        return Cell(text if error is None else f"{text} ± {100 * error:.{digits}f}")

    rows = [
        Row(
            (
                Cell("clean"),
                per_cent(report.clean_accuracy, report.clean_standard_error),
                *[Cell("")] * (1 + len(report.attacks)),
            )
        )
    ]
    for label, eps in zip(eps_labels(report.eps), report.eps, strict=True):
        left = (report.after_carrying[eps], *report.after_attack[eps].values())
        error = report.robust_standard_error[eps]
        rows.append(Row((Cell(label), per_cent(report.robust_accuracy[eps], error), *map(per_cent, left))))
    return Table(
        title=f"Accuracy in per cent: {len(report)} images, {NORMS[report.norm]}, {attack_of(report)}",
        header=("ε", "Robust accuracy", "after carrying", *(f"after {name}" for name in report.attacks)),
        rows=tuple(rows),
        notes=(
            "Robust accuracy: the number to report, the worst case over the attacks image by image; ± the binomial "
            "standard error.",
            "after ...: accuracy left by the examples carried from another ε, then by each attack in turn, on the images "
            "that were left. Cumulative, so not the robust accuracy under that attack alone.",
            survivors_of(report),
            *(f"Warning: {warning}" for warning in report.warnings),
        ),
    )
