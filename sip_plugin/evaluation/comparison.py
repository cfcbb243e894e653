"""Several reports in one table: the layout of the paper's tables 1 to 3."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from sip_plugin.evaluation.comparison_table import comparison_table
from sip_plugin.evaluation.conditions import differences
from sip_plugin.evaluation.plots import plot_comparison, plot_gains
from sip_plugin.evaluation.radii import PerEps
from sip_plugin.evaluation.report import RobustnessReport
from sip_plugin.evaluation.tables import Table
from sip_plugin.evaluation.tabular import Tabular

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = RobustnessReport | Sequence[RobustnessReport]
"""One network, or several that differ in their seeds."""
Rows = Mapping[str, Runs] | Mapping[str, Mapping[str, Runs]] | Sequence[Runs]
"""What :meth:`RobustnessReport.compare` takes: rows by name, or by group and name, or a list."""


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
    reports: tuple[RobustnessReport, ...]
    reference: bool = False
    remarks: tuple[str, ...] = ()

    @cached_property
    def clean(self) -> Spread:
        """The clean accuracy."""
        return _spread(report.clean_accuracy for report in self.reports)

    @cached_property
    def robust(self) -> PerEps[Spread]:
        """The robust accuracy at each ε that all runs of the row have."""
        first, *others = (report.robust_accuracy for report in self.reports)
        common = [eps for eps in first if all(eps in other for other in others)]
        return PerEps({eps: _spread(accuracy[eps] for accuracy in (first, *others)) for eps in common})

    @property
    def figures(self) -> PerEps[Spread]:
        """The accuracies at each ε, that on the clean images at 0."""
        return PerEps({0.0: self.clean, **self.robust})

    def gains_over(self, other: ComparisonRow) -> PerEps[Spread]:
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
        return PerEps(
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
        radii: PerEps[None] = PerEps()
        for row in self.rows:
            radii.update((eps, None) for eps in row.robust if eps not in radii)
        return tuple(sorted(radii))

    def table(self, digits: int = 1) -> Table:
        """The paper's layout: a row for each method, a column for the clean accuracy and each ε."""
        return comparison_table(self, digits)

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
        return plot_comparison(self, path) if relative_to is None else plot_gains(self, relative_to, path)


def compare(
    reports: Rows,
    names: Sequence[str] | None,
    references: Sequence[str],
    allow_differences: bool,
) -> RobustnessComparison:
    """See :meth:`RobustnessReport.compare`."""
    rows = [(group, name, _runs(runs, name)) for group, name, runs in _named(reports, names)]
    if not rows:
        raise ValueError("compare needs at least one report.")
    for name in (name for row in rows for name in row[:2]):
        if not isinstance(name, str):
            raise TypeError(f"The names of rows and groups must be strings, got {name!r}.")
    unknown = set(references) - {name for _, name, _ in rows}
    if isinstance(references, str) or unknown:
        raise ValueError(
            f"references must be names of rows ({', '.join(name for _, name, _ in rows)}), got {references!r}."
        )
    first = rows[0][2][0]
    compared = []
    for group, name, runs in rows:
        found = [difference for report in runs for difference in differences(report, first)]
        never = [each.remark for each in found if each.never]
        serious = [each.remark for each in found if each.serious and not allow_differences]
        if never or serious:
            advice = "" if never else " allow_differences=True makes the table and marks such rows."
            raise ValueError(f"The reports do not belong in one table: {name!r} has {(never or serious)[0]}.{advice}")
        remarks = dict.fromkeys(each.remark for each in found)
        compared.append(ComparisonRow(group, name, runs, name in references, tuple(remarks)))
    return RobustnessComparison(tuple(compared))


def _named(reports: Rows, names: Sequence[str] | None) -> list[tuple[str, str, Runs]]:
    """Group, name and runs of each row."""
    if isinstance(reports, RobustnessReport):
        raise TypeError("compare takes a list of reports or a mapping from names to reports, got one report: [report].")
    if isinstance(reports, Mapping):
        if names is not None:
            raise ValueError("names go with a list of reports; a mapping has its own.")
        if len({isinstance(value, Mapping) for value in reports.values()}) > 1:
            raise ValueError("Either all values of the mapping are groups (mappings from names to reports) or none is.")
        rows: list[tuple[str, str, Runs]] = []
        for key, value in reports.items():
            if isinstance(value, Mapping):
                rows += [(key, name, runs) for name, runs in value.items()]
            else:
                rows.append(("", key, value))
        return rows
    if not isinstance(reports, Iterable):
        raise TypeError(f"compare takes a list of reports or a mapping from names to reports, got {reports!r}.")
    reports = list(reports)
    if names is None:
        return [("", f"Report {number}", runs) for number, runs in enumerate(reports, 1)]
    if isinstance(names, str) or len(names) != len(reports):
        raise ValueError(f"names must hold one name for each of the {len(reports)} reports, got {names!r}.")
    merged: dict[str, list[RobustnessReport]] = {}
    for name, runs in zip(names, reports, strict=True):
        merged.setdefault(name, []).extend(_runs(runs, name))
    return [("", name, runs) for name, runs in merged.items()]


def _runs(runs: Runs, name: str) -> tuple[RobustnessReport, ...]:
    listed = tuple(runs) if isinstance(runs, Sequence) else (runs,)
    if not listed or not all(isinstance(report, RobustnessReport) for report in listed):
        raise TypeError(f"{name!r} must be a RobustnessReport or a list of one or more, got {runs!r}.")
    return listed


def _spread(values: Iterable[float]) -> Spread:
    each = tuple(values)
    return Spread(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None, each)
