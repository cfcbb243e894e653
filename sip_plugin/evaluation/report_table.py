"""The table of one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sip_plugin.evaluation.conditions import UNCHECKED, conditions_of, is_unchecked, survivors_of
from sip_plugin.evaluation.radii import eps_labels
from sip_plugin.evaluation.tables import Cell, Row, Table, per_cent

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport


def report_table(report: RobustnessReport, digits: int = 1) -> Table:
    """Accuracies in per cent: clean, and at each ε the robust accuracy and what was left after each stage.

    Args:
        report: The report.
        digits: Decimals.
    """

    def with_error(share: float, error: float) -> Cell:
        return Cell(f"{per_cent(share, digits)} ± {per_cent(error, digits)}")

    stages = len(report.attacks) + 1
    rows = [
        Row((Cell("clean"), with_error(report.clean_accuracy, report.clean_standard_error), *[Cell("")] * stages)),
    ]
    for label, eps in zip(eps_labels(report.eps), report.eps, strict=True):
        robust = with_error(report.robust_accuracy[eps], report.robust_standard_error[eps])
        left = (report.after_carrying[eps], *report.after_attack[eps].values())
        rows.append(Row((Cell(label), robust, *(Cell(per_cent(share, digits)) for share in left))))
    return Table(
        title=f"Accuracy in per cent: {conditions_of(report)}.",
        header=("ε", "Robust accuracy", "after carrying", *(f"after {name}" for name in report.attacks)),
        rows=tuple(rows),
        notes=(
            "Robust accuracy: the number to report, the worst case over the attacks image by image; ± the binomial "
            "standard error.",
            "after ...: accuracy left by the examples carried from another ε, then by each attack in turn, on the images "
            "that were left. Cumulative, so not the robust accuracy under that attack alone.",
            survivors_of(report),
            *([f"Seed {report.settings['seed']}."] if "seed" in report.settings else []),
            *([f"Warning: {UNCHECKED}."] if is_unchecked(report) else []),
            *(f"Warning: {warning}" for warning in report.warnings),
        ),
    )
