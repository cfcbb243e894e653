"""Several reports in one table, the layout of the paper's tables 1 to 3; and two reports image by image."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from sip_plugin.evaluation.eps import EpsDict, distinct_eps, eps_labels
from sip_plugin.evaluation.plots import Curve, draw
from sip_plugin.evaluation.report import Report, differences, short_notes
from sip_plugin.evaluation.statistics import PairedImages, note_on_extremes, paired_images
from sip_plugin.evaluation.tables import Best, Table, Tabular, per_cent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Report | Sequence[Report]
"""One network, or several that differ in their seeds."""
Rows = Mapping[str, Runs | Mapping[str, Runs]] | Sequence[Runs]
"""What :meth:`RobustnessReport.compare` takes: rows by name, or by group and name, or a list."""


class RobustnessReport(Report):
    """Clean and robust accuracy of one network, image by image.

    The number to report at an ε is ``robust_accuracy[eps]``: the share of images that no attack broke, the worst case over
    the attacks image by image. Accuracies are shares in ``[0, 1]`` of all images, those wrong without any attack included.

    Attributes:
        eps: The radii, ascending. A dict by ε also finds a radius that was computed another way.
        norm: ``"Linf"`` or ``"L2"``.
        attacks: Names of the attacks in the order in which they ran (for AutoAttack its members).
        labels: Class indices, ``(N,)``.
        norms: ``(attacks, N)``, float64: the smallest norm, verified, at which each attack broke each image; infinite where
            it did not (an image that is broken is not attacked again), 0 where the clean image is wrong.
        assumed: ``(N,)``, bool: whether the image counts as right at the smallest ε unattacked, as it survived a larger one.
        settings: What the evaluation was asked for, as plain JSON values (attack, version, seed, assume_survivors, …).
        warnings: What a reader should know before believing the figures, one sentence each.
        seconds: Wall time.
        adversarial: eps -> adversarial images ``(N, C, H, W)`` (the clean image where none was found), if asked for.
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
            reports: ``{"Madry": report, "SIP-AT": [report, report], ...}``, a list being runs with other seeds; or such a
                mapping for each group of rows, ``{"ResNet-18": {"Madry": ...}, ...}``; or a list of reports, each a row.
            names: Names for a list of reports; those of the same name are runs of one row.
            references: Names of rows that do not compete for the best figure (in the paper those trained without attacks).
            allow_differences: Also take reports on other images, at other ε or under another attack than the first one's,
                and mark them. Another norm is never taken.

        Raises:
            ValueError: If a reference is no row, or the reports differ in images, ε, norm or attack. A row that differs in
                ``assume_survivors`` is marked.
        """
        rows = _named(reports, names)
        row_names = [name for _, name, _ in rows]
        if not set(references) <= set(row_names):
            raise ValueError(f"references must be names of rows ({', '.join(row_names)}), got {references!r}.")
        first, compared = rows[0][2][0], []
        for group, name, runs in rows:
            found = dict.fromkeys(remark for report in runs for remark in differences(report, first))
            other_norm = any(report.norm != first.norm for report in runs)
            if other_norm or (found and not allow_differences):
                advice = "" if other_norm else " allow_differences=True makes the table and marks such rows."
                raise ValueError(f"The reports do not belong in one table: {name!r} has {next(iter(found))}.{advice}")
            if any(report.assume_survivors != first.assume_survivors for report in runs):
                found[f"assume_survivors={not first.assume_survivors} instead of {first.assume_survivors}"] = None
            compared.append(ComparisonRow(group, name, runs, name in references, tuple(found)))
        return RobustnessComparison(tuple(compared))

    def compare_images(self, other: RobustnessReport) -> EpsDict[PairedImages]:
        """At each ε, and at 0 for the clean images: how many images this network alone has right, or the other one alone.

        Raises:
            ValueError: If the other report is on other images, or at other ε, or under another norm or attack.
        """
        if found := differences(other, self):
            raise ValueError(f"Images are compared under the same conditions: the other report has {found[0]}.")
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
    """A row of the table: the runs of one method, with a report for each.

    ``group`` is the block that it stands in (in the paper the architecture). A ``reference`` does not compete for the best
    figure. The ``remarks`` say in what its conditions differ from those of the first report.
    """

    group: str
    name: str
    reports: tuple[Report, ...]
    reference: bool = False
    remarks: tuple[str, ...] = ()

    @cached_property
    def figures(self) -> EpsDict[Spread]:
        """The accuracies at each ε that all runs of the row have, that on the clean images at 0."""
        runs = [report.accuracy for report in self.reports]
        common = [eps for eps in runs[0] if all(eps in accuracy for accuracy in runs)]
        return EpsDict({eps: _spread(accuracy[eps] for accuracy in runs) for eps in common})

    def __str__(self) -> str:
        return f"{self.group} {self.name}".strip()

    def gains_over(self, other: ComparisonRow) -> EpsDict[Spread]:
        """What this row has more than another at each ε (0: clean images), run by run: what runs of one seed share cancels.

        Raises:
            ValueError: If the rows have not the same number of runs.
        """
        mine, theirs = self.figures, other.figures
        pairs = {eps: zip(mine[eps].values, theirs[eps].values, strict=True) for eps in mine if eps in theirs}
        return EpsDict({eps: _spread(a - b for a, b in pair) for eps, pair in pairs.items()})


@dataclass(frozen=True)
class RobustnessComparison(Tabular):
    """Clean and robust accuracy of several methods, the ``rows``; made by :meth:`RobustnessReport.compare`."""

    rows: tuple[ComparisonRow, ...]

    @property
    def eps(self) -> tuple[float, ...]:
        """The radii that any row has, ascending."""
        return distinct_eps(eps for row in self.rows for eps in row.figures if eps)

    def table(self, digits: int = 1) -> Table:
        """The paper's layout: a row for each method, a column for the clean accuracy and each ε."""
        grouped, rows = any(row.group for row in self.rows), []
        for before, row, label in zip((None, *self.rows), self.rows, _labels(self.rows)):  # noqa: B905
            new_group = before is None or row.group != before.group
            above = "line" if before is None or new_group else "space" if row.reference != before.reference else ""
            rivals = [each for each in self.rows if each.group == row.group and not each.reference]
            cells = [row.group * new_group, label][not grouped :]
            for eps in (0.0, *self.eps):
                if eps not in row.figures:
                    cells.append("–")
                    continue
                mean, std, _ = row.figures[eps]
                cell = per_cent(mean, digits) + (f" ± {per_cent(std, digits)}" if std is not None else "")
                if not row.reference and len(rivals) > 1:
                    best = max(each.figures[eps].mean for each in rivals if eps in each.figures)
                    # Equal in the decimals shown counts as equal.
                    cell = Best(cell) if per_cent(mean, digits) == per_cent(best, digits) else cell
                cells.append(cell)
            rows.append((above, cells))
        references = ", ".join(dict.fromkeys(row.name for row in self.rows if row.reference))
        left_out = f", {references} left out" if references else ""
        return Table(
            title=f"Accuracy in per cent: {self.rows[0].reports[0].conditions}.",
            header=["", "", "Clean", *(f"ε = {label}" for label in eps_labels(self.eps))][not grouped :],
            rows=rows,
            notes=list(self._notes()),
            names=1 + grouped,
            meaning_of_best="the best mean of a column" + " in its group" * grouped + f"{left_out}.",
        )

    def to_frame(self) -> Any:
        """A tidy :class:`pandas.DataFrame` of the accuracies, one for each method, run and ε (0: clean); needs pandas."""
        records = [
            (row.group, row.name, run, eps, share)
            for row in self.rows
            for run, report in enumerate(row.reports)
            for eps, share in report.accuracy.items()
        ]
        return import_module("pandas").DataFrame(records, columns=["group", "method", "run", "eps", "accuracy"])

    def plot(self, path: str | os.PathLike[str] | None = None, *, relative_to: str | None = None) -> Figure:
        """Accuracy against ε, a line for each row with a band of ± one standard deviation over its runs.

        As :meth:`RobustnessReport.plot`.

        Args:
            path: Where to save the picture.
            relative_to: Name of a row: draw what each row gains over it (:meth:`ComparisonRow.gains_over`), which tells
                lines apart that lie close together. References are left out. A KeyError if a group has no such row.
        """
        rows, low, what = list(self.rows), 0.0, "Accuracy (%)"
        if relative_to is not None:
            rows = [row for row in rows if not row.reference or row.name == relative_to]
            low, what = -1.0, f"Accuracy minus that of {relative_to} (points)"
        names = list(dict.fromkeys(row.name for row in self.rows))
        by_name = {(row.group, row.name): row for row in rows}
        panels: dict[str, list[Curve]] = {row.group: [] for row in rows}
        for row, label in zip(rows, _labels(rows), strict=True):
            figures = row.figures if relative_to is None else row.gains_over(by_name[row.group, relative_to])
            means = {eps: figure.mean for eps, figure in figures.items()}
            spreads = [(eps, mean, std) for eps, (mean, std, _) in figures.items() if std is not None]
            bounds = {eps: (max(low, mean - std), min(1.0, mean + std)) for eps, mean, std in spreads}
            panels[row.group].append(Curve(label, means, bounds, names.index(row.name)))
        first, reports = self.rows[0].reports[0], [report for row in rows for report in row.reports]
        run_by_run = " Differences are taken run by run." * (relative_to is not None and len(reports) > len(rows))
        notes = [*short_notes(first, reports), _meaning_of_spread(rows) + run_by_run, *_remarks(rows).values()]
        return draw(panels, eps=self.eps, norm=first.norm, what=what, notes=notes, path=path)

    def _notes(self) -> Iterator[str]:
        reports = [report for row in self.rows for report in row.reports]
        error = max(share for each in reports for share in each.standard_error.values())
        yield "Robust accuracy: the worst case over the attacks, image by image."
        yield _meaning_of_spread(self.rows)
        sample = "Beside that, the images are a sample: the binomial standard error of one run's figure is up to"
        yield f"{sample} {per_cent(error, 1)} points."
        yield from note_on_extremes((share for each in reports for share in each.accuracy.values()), len(reports[0]))
        yield reports[0].survivors
        yield from _remarks(self.rows).values()
        warned: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for warning in itertools.chain(*(report.cautions for report in row.reports)):
                warned.setdefault(warning, {})[str(row)] = None
        for warning, names in warned.items():
            yield f"Warning ({', '.join(names)}): {warning}"


def _named(reports: Rows, names: Sequence[str] | None) -> list[tuple[str, str, tuple[Report, ...]]]:
    """Group, name and runs of each row."""
    if not isinstance(reports, Mapping):
        listed, merged = list(reports), dict[str, list[Report]]()
        for name, runs in zip(names or [f"Report {number + 1}" for number in range(len(listed))], listed, strict=True):
            merged.setdefault(name, []).extend([runs] if isinstance(runs, Report) else runs)
        reports = merged
    grouped = any(isinstance(value, Mapping) for value in reports.values())
    groups: Mapping[str, Any] = reports if grouped else {"": reports}
    named = [(group, name, runs) for group, rows in groups.items() for name, runs in rows.items()]
    return [(group, name, (runs,) if isinstance(runs, Report) else tuple(runs)) for group, name, runs in named]


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
    each = ", ".join(f"{row} {len(row.reports)}" for row in rows)
    return f"Mean ± sample standard deviation over runs (seeds): {each}."


def _labels(rows: Sequence[ComparisonRow]) -> list[str]:
    """The names of the rows, with the numbers of the remarks on them: ``SIP-AT [1]``."""
    numbers = list(_remarks(rows))
    return [" ".join([row.name, *(f"[{1 + numbers.index(remark)}]" for remark in row.remarks)]) for row in rows]


def _remarks(rows: Sequence[ComparisonRow]) -> dict[str, str]:
    """The remarks on the rows, each with its number before it."""
    found = dict.fromkeys(remark for row in rows for remark in row.remarks)
    return {remark: f"[{number}]: {remark}." for number, remark in enumerate(found, 1)}
