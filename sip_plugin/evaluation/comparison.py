"""Several reports in one table, the layout of the paper's tables 1 to 3; and two reports image by image."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sip_plugin.evaluation.eps import EpsDict, distinct_eps, eps_labels, eps_unit
from sip_plugin.evaluation.plots import Curve, curve, draw
from sip_plugin.evaluation.report import UNCHECKED, Report, differences, eps_axis, short_notes
from sip_plugin.evaluation.statistics import PairedImages, paired_images
from sip_plugin.evaluation.tables import Table, Tabular, per_cent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Report | Sequence[Report]
"""One network, or several that differ in their seeds."""
Rows = Mapping[str, Runs] | Mapping[str, Mapping[str, Runs]] | Iterable[Runs]
"""What :meth:`RobustnessReport.compare` takes: rows by name, or by group and name, or a list."""


class RobustnessReport(Report):
    """Clean and robust accuracy of one network, image by image.

    The number to report at an ε is ``robust_accuracy[eps]``: the share of images that no attack broke, the worst case over
    the attacks image by image. Accuracies are shares in ``[0, 1]`` of all images, those wrong without any attack included.
    A dict by ε also finds a radius that was computed another way.

    Attributes:
        eps: The radii, ascending.
        norm: ``"Linf"`` or ``"L2"``.
        attacks: Names of the attacks in the order in which they ran (for AutoAttack its members).
        labels: Class indices, ``(N,)``.
        norms: ``(attacks, N)``, float64: the smallest norm, verified, at which each attack broke each image; infinite where
            it did not (or was not tried: an image that is broken is not attacked again), 0 where the clean image is wrong.
            An image is robust at ε where all of its norms are above ε.
        assumed: ``(N,)``, bool: whether the image was not attacked at the smallest ε because it survived a larger one
            (``assume_survivors=True``), and counts as right there.
        settings: What the evaluation was asked for, as plain JSON values (attack, version, seed, assume_survivors, …).
        warnings: What a reader should know before believing the figures, one sentence each.
        seconds: Wall time.
        adversarial: eps -> adversarial images ``(N, C, H, W)`` (the clean image where none was found), if asked for.

    Raises:
        ValueError: If ``norms`` does not have a row for each attack and a column for each image.
    """

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
        rows = [(group, name, _runs(runs, name)) for group, name, runs in _named(reports, names)]
        if not rows:
            raise ValueError("compare needs at least one report.")
        row_names = [name for _, name, _ in rows]
        if isinstance(references, str) or not set(references) <= set(row_names):
            raise ValueError(f"references must be names of rows ({', '.join(row_names)}), got {references!r}.")
        compared = []
        for group, name, runs in rows:
            found = [each for report in runs for each in differences(report, rows[0][2][0])]
            refused = [each for each in found if each.always_refused or (each.serious and not allow_differences)]
            if refused:
                advice = " allow_differences=True makes the table and marks such rows."
                raise ValueError(
                    f"The reports do not belong in one table: {name!r} has {refused[0].remark}."
                    + advice * (not any(each.always_refused for each in refused))
                )
            remarks = dict.fromkeys(each.remark for each in found)
            compared.append(ComparisonRow(group, name, runs, name in references, tuple(remarks)))
        return RobustnessComparison(tuple(compared))

    def compare_images(self, other: RobustnessReport) -> EpsDict[PairedImages]:
        """At each ε, and at 0 for the clean images: how many images this network alone has right, or the other one alone.

        Raises:
            ValueError: If the other report is on other images, or at other ε, or under another norm or attack.
        """
        serious = [each.remark for each in differences(other, self) if each.serious]
        if serious:
            raise ValueError(
                f"Only reports on the same images can be compared image by image: the other has {serious[0]}."
            )
        theirs = other.correct
        pairs = {0.0: paired_images(self.correct_clean, other.correct_clean)}
        return EpsDict(pairs | {eps: paired_images(mine, theirs[eps]) for eps, mine in self.correct.items()})


class Spread(NamedTuple):
    """A figure over the runs of a row: their mean, their sample standard deviation (none for one run), and each."""

    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """A row of the table: the runs of one method.

    Attributes:
        group: The block that the row stands in (in the paper the architecture); empty if there are none.
        name: What the row is called.
        reports: One for each run.
        reference: Whether the row is out of the running for the best figure.
        remarks: In what its conditions differ from those of the first report; a sentence for each.
    """

    group: str
    name: str
    reports: tuple[Report, ...]
    reference: bool = False
    remarks: tuple[str, ...] = ()

    @cached_property
    def figures(self) -> EpsDict[Spread]:
        """The accuracies at each ε that all runs of the row have, that on the clean images at 0."""
        first, *others = (report.accuracy for report in self.reports)
        common = [eps for eps in first if all(eps in other for other in others)]
        return EpsDict({eps: _spread(accuracy[eps] for accuracy in (first, *others)) for eps in common})

    @property
    def clean(self) -> Spread:
        """The clean accuracy."""
        return self.figures[0.0]

    @property
    def robust(self) -> EpsDict[Spread]:
        """The robust accuracy at each ε that all runs of the row have."""
        return EpsDict({eps: spread for eps, spread in self.figures.items() if eps})

    @property
    def full_name(self) -> str:
        """The name after that of the group."""
        return f"{self.group} {self.name}".strip()

    def gains_over(self, other: ComparisonRow) -> EpsDict[Spread]:
        """What this row has more than another at each ε (0: clean images), run by run: the first run against its first, ….

        Runs that share a seed share much of their luck, which falls out of the differences.

        Raises:
            ValueError: If the rows have not the same number of runs.
        """
        if len(self.reports) != len(other.reports):
            raise ValueError(
                f"Rows are compared run by run, but {self.name!r} has {len(self.reports)} and {other.name!r} has "
                f"{len(other.reports)}. Give the same seeds in both, in the same order."
            )
        theirs = other.figures
        return EpsDict(
            {
                eps: _spread(a - b for a, b in zip(mine.values, theirs[eps].values, strict=True))
                for eps, mine in self.figures.items()
                if eps in theirs
            }
        )


@dataclass(frozen=True)
class RobustnessComparison(Tabular):
    """Clean and robust accuracy of several methods; made by :meth:`RobustnessReport.compare`.

    Attributes:
        rows: The rows of the table.
    """

    rows: tuple[ComparisonRow, ...]

    @property
    def eps(self) -> tuple[float, ...]:
        """The radii that any row has, ascending."""
        return distinct_eps(eps for row in self.rows for eps in row.robust)

    def table(self, digits: int = 1) -> Table:
        """The paper's layout: a row for each method, a column for the clean accuracy and each ε."""
        grouped, rows = any(row.group for row in self.rows), []
        best: set[tuple[int, int]] = set()
        parted: dict[int, str] = {}
        for number, (row, label) in enumerate(zip(self.rows, _labels(self.rows), strict=True)):
            above = self.rows[number - 1] if number else None
            if starts := above is None or row.group != above.group:
                parted[number] = "line"
            elif row.reference != above.reference:
                parted[number] = "space"
            cells = [self._cell(row, eps, digits) for eps in (0.0, *self.eps)]
            best |= {(number, column) for column, (_, is_best) in enumerate(cells, 1 + grouped) if is_best}
            rows.append((row.group * starts, label, *(text for text, _ in cells))[not grouped :])
        left_out = ", ".join(dict.fromkeys(row.name for row in self.rows if row.reference))
        return Table(
            title=f"Accuracy in per cent: {self.rows[0].reports[0].conditions}.",
            header=("", "", "Clean", *(f"ε = {label}" for label in eps_labels(self.eps)))[not grouped :],
            rows=rows,
            notes=tuple(self._notes()),
            names=1 + grouped,
            best=frozenset(best),
            meaning_of_best="the best mean of a column"
            + " in its group" * grouped
            + (f", {left_out} left out." if left_out else "."),
            parted=parted,
        )

    def records(self) -> list[dict[str, Any]]:
        """See :meth:`to_frame`."""
        return [
            {"group": row.group, "method": row.name, "run": run, "eps": eps, "accuracy": share}
            for row in self.rows
            for run, report in enumerate(row.reports)
            for eps, share in report.accuracy.items()
        ]

    def plot(self, path: str | os.PathLike[str] | None = None, *, relative_to: str | None = None) -> Figure:
        """Accuracy against ε, a line for each row with a band of ± one standard deviation over its runs.

        Args:
            path: Where to save the picture, whole or not at all; the suffix says in which format.
            relative_to: Name of a row: draw what each row gains over it (:meth:`ComparisonRow.gains_over`), which tells
                lines apart that lie close together. References are left out.

        Returns:
            The figure. It is not registered with ``matplotlib.pyplot``.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If a group has no row ``relative_to``, or one with another number of runs.
        """
        rows = [row for row in self.rows if relative_to is None or not row.reference or row.name == relative_to]
        notes, low, label = _meaning_of_spread(rows), 0.0, "Accuracy (%)"
        if relative_to is not None:
            notes += " Differences are taken run by run." * any(len(row.reports) > 1 for row in rows)
            low, label = -1.0, f"Accuracy minus that of {relative_to} (points)"
        names, unit = list(dict.fromkeys(row.name for row in self.rows)), eps_unit((0.0, *self.eps))
        panels: dict[str, list[Curve]] = {row.group: [] for row in self.rows}
        references = {row: row if relative_to is None else self._row(row.group, relative_to) for row in self.rows}
        for row, name in zip(rows, _labels(rows), strict=True):
            figures = row.figures if relative_to is None else row.gains_over(references[row])
            means = {eps: figure.mean for eps, figure in figures.items()}
            bounds = {
                eps: (max(low, figure.mean - figure.std), min(1.0, figure.mean + figure.std))
                for eps, figure in figures.items()
                if figure.std is not None
            }
            panels[row.group].append(curve(name, means, bounds or None, unit, names.index(row.name)))
        reports = [report for row in rows for report in row.reports]
        # Remarks say what is different from the first report of all, drawn or not.
        remarks = [f"[{number}]: {remark}." for remark, number in _numbered_remarks(rows).items()]
        return draw(
            panels,
            labels=(eps_axis(self.eps, reports[0].norm), label),
            notes=[*short_notes(self.rows[0].reports[0], reports), notes, *remarks],
            path=path,
        )

    def _row(self, group: str, name: str) -> ComparisonRow:
        rows = {row.name: row for row in self.rows if row.group == group}
        if name not in rows:
            where = f" in the group {group!r}" if group else ""
            raise ValueError(f"relative_to must be the name of a row{where} ({', '.join(rows)}), got {name!r}.")
        return rows[name]

    def _cell(self, row: ComparisonRow, eps: float, digits: int) -> tuple[str, bool]:
        """A figure, and whether it is the best of its column: equal in the decimals shown counts as equal."""
        if (figure := row.figures.get(eps)) is None:
            return "–", False
        text = per_cent(figure.mean, digits)
        rivals = [other for other in self.rows if other.group == row.group and other is not row and not other.reference]
        theirs = [per_cent(rival.figures[eps].mean, digits) for rival in rivals if eps in rival.figures]
        best = bool(rivals) and not row.reference and all(float(text) >= float(their) for their in theirs)
        return text if figure.std is None else f"{text} ± {per_cent(figure.std, digits)}", best

    def _notes(self) -> Iterator[str]:
        reports = [report for row in self.rows for report in row.reports]
        errors = [max(each.clean_standard_error, *each.robust_standard_error.values()) for each in reports]
        yield "Robust accuracy: the worst case over the attacks, image by image."
        yield _meaning_of_spread(self.rows)
        yield (
            f"Beside that, the images are a sample: the binomial standard error of one run's figure is up to "
            f"{per_cent(max(errors), 1)} points."
        )
        yield reports[0].survivors
        yield from (f"[{number}]: {remark}." for remark, number in _numbered_remarks(self.rows).items())
        warned: dict[str, dict[str, None]] = {}
        for row in self.rows:
            unchecked = [] if all(report.checked for report in row.reports) else [f"{UNCHECKED}."]
            for warning in [*unchecked, *(warning for report in row.reports for warning in report.warnings)]:
                warned.setdefault(warning, {})[row.full_name] = None
        for warning, names in warned.items():
            yield f"Warning ({', '.join(names)}): {warning}"


def _named(reports: Rows, names: Sequence[str] | None) -> list[tuple[str, str, Runs]]:
    """Group, name and runs of each row."""
    if isinstance(reports, Report):
        raise TypeError("compare takes a list of reports or a mapping from names to reports, got one report: [report].")
    if isinstance(reports, Mapping):
        if names is not None:
            raise ValueError("names go with a list of reports; a mapping has its own.")
        if len({isinstance(value, Mapping) for value in reports.values()}) > 1:
            raise ValueError("Either all values of the mapping are groups (mappings from names to reports) or none is.")
        groups = {str(k): v if isinstance(v, Mapping) else {k: v} for k, v in reports.items()}
        grouped = any(isinstance(value, Mapping) for value in reports.values())
        return [(group * grouped, str(name), runs) for group, rows in groups.items() for name, runs in rows.items()]
    listed = list(reports)
    if names is None:
        return [("", f"Report {number}", runs) for number, runs in enumerate(listed, 1)]
    if isinstance(names, str) or len(names) != len(listed):
        raise ValueError(f"names must hold one name for each of the {len(listed)} reports, got {names!r}.")
    merged: dict[str, list[Report]] = {}
    for name, runs in zip(names, listed, strict=True):
        merged.setdefault(name, []).extend(_runs(runs, name))
    return [("", name, runs) for name, runs in merged.items()]


def _runs(runs: Runs, name: str) -> tuple[Report, ...]:
    listed = tuple(runs) if isinstance(runs, Sequence) else (runs,)
    if not listed or not all(isinstance(report, Report) for report in listed):
        raise TypeError(f"{name!r} must be a RobustnessReport or a list of one or more, got {runs!r}.")
    return listed


def _spread(values: Iterable[float]) -> Spread:
    each = tuple(values)
    return Spread(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None, each)


def _meaning_of_spread(rows: Sequence[ComparisonRow]) -> str:
    """What a ± is, as a sentence."""
    counts = {len(row.reports) for row in rows}
    if counts == {1}:
        return "One run in each row, so no ± over seeds."
    if len(counts) == 1:
        return f"Mean ± sample standard deviation over {counts.pop()} runs (seeds)."
    each = ", ".join(f"{row.full_name} {len(row.reports)}" for row in rows)
    return f"Mean ± sample standard deviation over runs (seeds): {each}."


def _labels(rows: Sequence[ComparisonRow]) -> list[str]:
    """The names of the rows, with the numbers of the remarks on them: ``SIP-AT [1]``."""
    numbers = _numbered_remarks(rows)
    return [" ".join([row.name, *(f"[{numbers[remark]}]" for remark in row.remarks)]) for row in rows]


def _numbered_remarks(rows: Sequence[ComparisonRow]) -> dict[str, int]:
    remarks = dict.fromkeys(remark for row in rows for remark in row.remarks)
    return {remark: number for number, remark in enumerate(remarks, 1)}
