"""The table of several reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sip_plugin.evaluation.conditions import UNCHECKED, conditions_of, is_unchecked, survivors_of
from sip_plugin.evaluation.radii import eps_labels
from sip_plugin.evaluation.tables import Cell, Parting, Row, Table, per_cent

if TYPE_CHECKING:
    from sip_plugin.evaluation.comparison import ComparisonRow, RobustnessComparison, Spread


def comparison_table(comparison: RobustnessComparison, digits: int = 1) -> Table:
    """A row for each method, a column for the clean accuracy and each ε, in per cent; the best of each column marked.

    Args:
        comparison: The reports.
        digits: Decimals.
    """
    rows, labels = comparison.rows, labels_of(comparison.rows)
    figures = [(row.clean, *(row.robust.get(eps) for eps in comparison.eps)) for row in rows]
    grouped = any(row.group for row in rows)
    lines = []
    for number, row in enumerate(rows):
        above = rows[number - 1] if number else row
        starts = not number or row.group != above.group
        best = _best_columns(rows, figures, number, digits)
        cells = [_cell(*column, digits) for column in zip(figures[number], best, strict=True)]
        names = [Cell(row.group if starts else ""), Cell(labels[number])][0 if grouped else 1 :]
        parting: Parting = "line" if starts else "space" if row.reference != above.reference else ""
        lines.append(Row((*names, *cells), parting))
    header = ("", "", "Clean", *(f"ε = {label}" for label in eps_labels(comparison.eps)))
    return Table(
        title=f"Accuracy in per cent: {conditions_of(rows[0].reports[0])}.",
        header=header[0 if grouped else 1 :],
        rows=tuple(lines),
        notes=tuple(_notes(comparison)),
        names=2 if grouped else 1,
        best=_meaning_of_best(rows),
    )


def labels_of(rows: Sequence[ComparisonRow]) -> list[str]:
    """The names of the rows, with the numbers of the remarks on them: ``SIP-AT [1]``."""
    numbers = _numbered_remarks(rows)
    return [" ".join([row.name, *(f"[{numbers[remark]}]" for remark in row.remarks)]) for row in rows]


def runs_of(rows: Sequence[ComparisonRow]) -> str:
    """What a ± is, as a sentence."""
    counts = {len(row.reports) for row in rows}
    if counts == {1}:
        return "One run in each row, so no ± over seeds."
    if len(counts) == 1:
        return f"Mean ± sample standard deviation over {counts.pop()} runs (seeds)."
    each = ", ".join(f"{row.group} {row.name}".strip() + f" {len(row.reports)}" for row in rows)
    return f"Mean ± sample standard deviation over runs (seeds): {each}."


def _best_columns(
    rows: Sequence[ComparisonRow], figures: Sequence[tuple[Spread | None, ...]], number: int, digits: int
) -> list[bool]:
    """Which figures of a row no rival's exceeds, in the decimals shown. References have no rivals."""
    row = rows[number]
    rivals = [
        figures[other]
        for other, each in enumerate(rows)
        if each.group == row.group and not each.reference and other != number
    ]
    if row.reference or not rivals:
        return [False] * len(figures[number])
    return [
        mine is not None
        and all(_shown(mine, digits) >= _shown(theirs, digits) for theirs in column if theirs is not None)
        for mine, *column in zip(figures[number], *rivals, strict=True)
    ]


def _shown(figure: Spread, digits: int) -> float:
    return float(per_cent(figure.mean, digits))


def _cell(figure: Spread | None, best: bool, digits: int) -> Cell:
    if figure is None:
        return Cell("–")
    text = per_cent(figure.mean, digits)
    return Cell(text if figure.std is None else f"{text} ± {per_cent(figure.std, digits)}", best)


def _meaning_of_best(rows: Sequence[ComparisonRow]) -> str:
    references = ", ".join(dict.fromkeys(row.name for row in rows if row.reference))
    left_out = f", {references} left out" if references else ""
    return f"the best mean of a column{' in its group' if any(row.group for row in rows) else ''}{left_out}."


def remarks_of(rows: Sequence[ComparisonRow]) -> list[str]:
    """What the numbers on names stand for, a sentence for each."""
    return [f"[{number}]: {remark}." for remark, number in _numbered_remarks(rows).items()]


def _numbered_remarks(rows: Sequence[ComparisonRow]) -> dict[str, int]:
    remarks = dict.fromkeys(remark for row in rows for remark in row.remarks)
    return {remark: number for number, remark in enumerate(remarks, 1)}


def _notes(comparison: RobustnessComparison) -> Iterator[str]:
    rows = comparison.rows
    yield "Robust accuracy: the worst case over the attacks, image by image."
    yield runs_of(rows)
    reports = [report for row in rows for report in row.reports]
    errors = [max(each.clean_standard_error, *each.robust_standard_error.values()) for each in reports]
    yield (
        f"Beside that, the images are a sample: the binomial standard error of one run's figure is up to "
        f"{per_cent(max(errors), 1)} points."
    )
    yield survivors_of(reports[0])
    yield from remarks_of(rows)
    warned: dict[str, dict[str, None]] = {}
    for row in rows:
        unchecked = [f"{UNCHECKED}."] if any(map(is_unchecked, row.reports)) else []
        for warning in [*unchecked, *(warning for report in row.reports for warning in report.warnings)]:
            warned.setdefault(warning, {})[f"{row.group} {row.name}".strip()] = None
    for warning, names in warned.items():
        yield f"Warning ({', '.join(names)}): {warning}"
