"""Tables and figure 5 from the answers of a study."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.human_study import estimates
from benchmarks.record import run_record, write_json, write_text
from sip_plugin.evaluation.plots import COLOURS
from sip_plugin.evaluation.statistics import wilson_interval
from sip_plugin.evaluation.tables import Table, Tabular
from sip_plugin.utils import atomic_write, import_extra

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ALL = "all"
"""The group of all participants, whichever version they saw."""
_STATEMENTS = (
    (1, "minimally perturbed images are almost always missed", "below 20 %", 0.0, 0.2),
    (4, "identified as perturbed a majority of the time", "above 50 %", 0.5, 1.0),
    (8, "success rates over 80 %", "above 80 %", 0.8, 1.0),
)  # level, the paper's words (sections 1 and 5.2), how we read them, and between what the rate has to be


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the answers: that of `serve`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and the figure")
    parser.add_argument(
        "--least-median-ms",
        type=float,
        default=300,
        help="who answers faster in half of the trials is left out (default: 300)",
    )
    parser.add_argument("--samples", type=int, default=10_000, help="of the bootstrap (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def run(options: argparse.Namespace) -> None:
    """Analyse, print the tables, write them with the figure and the data.

    Raises:
        FileNotFoundError: If there are no answers.
        ValueError: If too few participants are left.
    """
    study = read(options.data / "study.sqlite", options.least_median_ms)
    groups = analyse(study, options.samples, np.random.default_rng(options.seed))
    tables = make_tables(study, groups, options.samples)
    options.out.mkdir(parents=True, exist_ok=True)
    for form, name in (("text", "tables.txt"), ("latex", "tables.tex")):
        write_text(options.out / name, "\n\n".join(getattr(table, f"to_{form}")() for table in tables))
    parts = ["# The human study", *study.notes, "![Detection rate by ε, with intervals](figure5.png)"]
    write_text(options.out / "README.md", "\n\n".join([*parts, *(table.to_markdown() for table in tables)]))
    for name, frame in (("answers", study.answers), ("participants", study.participants), ("estimates", _rows(groups))):
        frame = frame.assign(simulated=frame.get("simulated", int(study.simulated > 0)))
        write_text(options.out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    drawn = figure(study, groups)
    for suffix in ("png", "pdf"):
        with atomic_write(options.out / f"figure5.{suffix}") as file:
            drawn.savefig(file, dpi=200, format=suffix)
    settings = {"samples": options.samples, "least_median_ms": options.least_median_ms}
    write_json(options.out / "record.json", run_record(options.seed) | settings | {"study": study.conditions})
    print("\n\n".join(map(str, tables)))
    print(f"\nREADME.md, tables.txt, tables.tex, figure5.png, figure5.pdf, CSV files: {options.out}/")


@dataclass(frozen=True)
class Study:
    """What participants answered.

    Attributes:
        participants: One row each: ``participant``, ``version``, ``simulated``, ``answers``, ``median_ms``, ``perturbed``
            (how often they said so), ``excluded`` (why, or an empty text).
        answers: One row each, of all participants, with ``version`` and ``excluded``.
        levels: ε·255, ascending from 0.
        conditions: What the server kept of the study.
        reasons: For which participants are left out; the first that holds counts.
        notes: What every table and picture has to say of the data.
    """

    participants: pd.DataFrame
    answers: pd.DataFrame
    levels: tuple[float, ...]
    conditions: dict[str, str]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def simulated(self) -> int:
        """How many participants are not people."""
        return int(self.participants.simulated.sum())

    @property
    def included(self) -> pd.DataFrame:
        """The participants that are not left out."""
        return self.participants[self.participants.excluded == ""]


def read(path: Path, least_median_ms: float = 300) -> Study:
    """The answers in a server's file, with who is left out and why.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If nobody took part, or levels or numbers of trials differ between finished participants.
    """
    import pandas as pd

    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: --data is the folder that `serve` keeps the answers in.")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        people = pd.read_sql_query(
            "SELECT id AS participant, version, started, finished, browser, simulated FROM participants ORDER BY number",
            connection,
        )
        answers = pd.read_sql_query(
            "SELECT a.participant, p.version, a.trial, a.image, a.class, a.level, a.perturbed, a.reaction_ms, a.received, "
            "a.simulated FROM answers a JOIN participants p ON p.id = a.participant ORDER BY p.number, a.trial",
            connection,
        )
        conditions = dict(connection.execute("SELECT key, value FROM study").fetchall())
    finally:
        connection.close()
    if people.empty:
        raise ValueError(f"Nobody has taken part yet: {path} has no participants.")
    each = answers.groupby("participant").agg(
        answers=("perturbed", "size"), perturbed=("perturbed", "sum"), median_ms=("reaction_ms", "median")
    )
    people = people.join(each, on="participant").fillna({"answers": 0, "perturbed": 0})
    people = people.astype({"answers": int, "perturbed": int})
    rules = {
        "not finished": people.finished.isna(),
        f"median reaction under {least_median_ms:g} ms": people.median_ms < least_median_ms,
        "always the same answer": (people.perturbed == 0) | (people.perturbed == people.answers),
    }
    people["excluded"] = np.select(list(rules.values()), list(rules), "")
    answers = answers.merge(people[["participant", "excluded"]], on="participant")
    finished = answers[answers.participant.isin(people[people.finished.notna()].participant)]
    counts = finished.groupby(["participant", "level"]).size().unstack(fill_value=0)
    if len(counts) and counts.to_numpy().min() != counts.to_numpy().max():
        raise ValueError(f"Finished participants of {path} do not have the same number of answers at each level.")
    simulated, notes = int(people.simulated.sum()), []
    if simulated:
        notes.append(f"Simulated, not a study: {simulated} of {len(people)} participants are not people.")
    if str(conditions.get("preview", "0")).lower() in ("1", "true"):
        notes.append("Preview, not a study.")
    levels = tuple(map(float, counts.columns))
    return Study(people, answers, levels, conditions, tuple(rules), tuple(notes))


@dataclass(frozen=True)
class Group:
    """The estimates of a version's participants, or of all.

    Attributes:
        people: How many.
        trials: Of one at one level.
        values: By quantity and level (None: of all levels), each with its 95 % interval; see
            :func:`benchmarks.human_study.estimates.bootstrap`.
        wilson: The levels whose rate has Wilson's interval.
        models: Log-odds of logistic models, with 95 % interval and p-value; NaN where there is no maximum.
    """

    people: int
    trials: int
    values: dict[tuple[str, float | None], tuple[float, float, float]]
    wilson: frozenset[float]
    models: dict[str, tuple[float, float, float, float]]


def analyse(study: Study, samples: int, random: np.random.Generator) -> dict[str, Group]:
    """The estimates by version, if there is more than one with three participants or more, and of all.

    Raises:
        ValueError: If fewer than three participants are left.
    """
    data = study.answers[study.answers.excluded == ""]
    if len(study.included) < 3:
        raise ValueError(
            f"{len(study.included)} of {len(study.participants)} participant(s) are left; intervals need three."
        )
    people = study.included.version.value_counts()
    versions = sorted(people[people >= 3].index) if len(people) > 1 else []
    groups: dict[str, Group] = {}
    for name in (*versions, ALL):
        part = data if name == ALL else data[data.version == name]
        shares = part.pivot_table(index="participant", columns="level", values="perturbed", aggfunc="mean")
        trials = len(part) // shares.size
        value, _, intervals, wilson = estimates.bootstrap(shares.to_numpy(), trials, study.levels, samples, random)
        rows = np.column_stack([value, intervals]).tolist()
        values = {key: (v, low, high) for key, (v, low, high) in zip(estimates.names(study.levels), rows, strict=True)}
        finite = all(np.isfinite(group.values["slope", None][0]) for group in groups.values())
        models = _models(part, bool(np.isfinite(values["slope", None][0])), versions if name == ALL else [], finite)
        of_wilson = frozenset(np.asarray(study.levels)[wilson].tolist())
        groups[name] = Group(len(shares), trials, values, of_wilson, models)
    return groups


def _models(
    data: pd.DataFrame, finite: bool, versions: Sequence[str], all_finite: bool
) -> dict[str, tuple[float, float, float, float]]:
    """Of a doubling of ε, and of each version against the first; ``finite``: whether the likelihood has a maximum."""
    data = data[data.level > 0].assign(doublings=lambda frame: np.log2(frame.level))
    fit = estimates.gee("perturbed ~ doublings", data) if finite else None
    found = {"slope of log2(ε)": _term(fit, "doublings")}
    if len(versions) > 1:
        coded, data = f"C(version, Treatment({versions[0]!r}))", data[data.version.isin(versions)]
        fit = estimates.gee(f"perturbed ~ doublings * {coded}", data) if all_finite else None
        people = f" ({data.participant.nunique()} participants)"
        for version in versions[1:]:
            against = f"{version} against {versions[0]}"
            found[f"{against}, at ε = 1{people}"] = _term(fit, f"{coded}[T.{version}]")
            found[f"{against}, slope{people}"] = _term(fit, f"doublings:{coded}[T.{version}]")
    return found


def _term(fit: Any, name: str) -> tuple[float, float, float, float]:
    if fit is None or not fit.converged:
        return (np.nan,) * 4
    low, high = fit.conf_int().loc[name]
    return float(fit.params[name]), float(low), float(high), float(fit.pvalues[name])


@dataclass(frozen=True)
class Printed(Tabular):
    """A table of an analysis."""

    made: Table

    def table(self, digits: int = 1) -> Table:
        """The table."""
        return self.made


def make_tables(study: Study, groups: Mapping[str, Group], samples: int) -> list[Printed]:
    """The tables of an analysis, each with what has to be said of the data before its title."""
    levels, flag = study.levels, "".join(f"{note} " for note in study.notes)
    columns = [f"ε = {level:g}" for level in levels]

    def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *notes: str, names: int = 1) -> Printed:
        return Printed(Table(flag + title, header, [("", row) for row in rows], notes, names))

    left_out = [(f"left out: {why}", str((study.participants.excluded == why).sum())) for why in study.reasons]
    of_versions = [(f"analysed, {name}", str(count)) for name, count in study.included.version.value_counts().items()]
    total, analysed = str(len(study.participants)), str(len(study.included))
    rates, sensitivity, models, thresholds = [], [], [], []
    for name, group in groups.items():
        label = f"{name} ({group.people})"
        shares = [group.values["rate", level] for level in levels]
        wilson = [(share, *wilson_interval(share, group.people * group.trials)) for share, *_ in shares]
        marks = ["*" * (level in group.wilson) for level in levels]
        rates.append([label, *(_interval(each, 100, 1) + mark for each, mark in zip(shares, marks, strict=True))])
        rates.append([f"{label}, Wilson", *(_interval(each, 100, 1) for each in wilson)])
        for what in ("d'", "criterion"):
            sensitivity.append([label, what, *(_interval(group.values[what, level]) for level in levels[1:])])
        for term, (*log_odds, p) in group.models.items():
            shown = "< 0.001" if p < 0.001 else "–" if np.isnan(p) else f"{p:.3f}"
            models.append([label, term, _interval(log_odds), _interval(np.exp(log_odds)), shown])
        threshold = np.exp2(group.values["threshold", None])
        if not np.prod(group.values["slope", None][1:]) > 0:
            threshold = np.full(3, np.nan)
        outside = ", outside the levels shown" if threshold[0] < levels[1] or threshold[0] > levels[-1] else ""
        thresholds.append([label, _interval(threshold) + outside])
    method = (
        f"Brackets: 95 % interval, bootstrap-t over participants, {samples:,} samples; – where it gives none (over 5 % of "
        "the samples have no estimate or no spread). About people, for the images of this pool."
    )
    few = ["Of fewer than 40 participants, intervals of these models are too narrow, and p too small."]
    few = few if any(group.people < 40 for group in groups.values()) else []
    no_maximum = (
        "– where the model has no maximum: fewer than two levels above 0, or answers that ε separates or all equal."
    )
    return [
        table(
            "Participants.",
            ["", "participants"],
            [("took part", total), *left_out, ("analysed", analysed), *of_versions],
            "Of several reasons the first counts.",
        ),
        table(
            'Detection rate: the share of answers "perturbed", in per cent.',
            ["", *columns],
            rates,
            "ε in units of 1/255. ε = 0: clean images, where the rate is that of false alarms.",
            method,
            "*: of rates under 5 or over 95 %, or without one by bootstrap: Wilson's interval, answers divided "
            "by their design effect (at least 1).",
            "Wilson: 95 % interval as if each answer were by a participant of its own.",
        ),
        table(
            "What the paper says of its figure 5, and what was found.",
            ["the paper", "read as", "found", "agrees"],
            _paper(groups[ALL], levels),
            "The paper: sections 1 and 5.2; 330 participants, CUB-200-2011. The text has no other figures.",
            "agrees: yes if the whole interval does, no if none of it does, open otherwise.",
            names=2,
        ),
        table(
            "Sensitivity d' and criterion.",
            ["", "", *columns[1:]],
            sensitivity,
            "From the rates of all trials together, H at ε and F at ε = 0: d' = z(H) - z(F), criterion = -(z(H) + z(F))/2.",
            "Rates are taken as (k + 1/2)/(n + 1), so that 0 and 1 have a z, too (Hautus 1995).",
            method,
            names=2,
        ),
        table(
            "Logistic models of the answers at ε > 0.",
            ["", "term", "log-odds", "odds ratio", "p"],
            models,
            "Generalised estimating equations, participants as clusters. Brackets: 95 %, robust standard errors, corrected "
            "for few participants (Mancl and DeRouen 2001).",
            "1 more of log2(ε) is a doubling of ε. Versions are compared where three participants or more are left.",
            no_maximum,
            *few,
            names=2,
        ),
        table(
            "The ε at which half are detected, in units of 1/255.",
            ["", "ε"],
            thresholds,
            "Where the logistic model in log2(ε) is at one half; – where its slope has no interval or one that holds 0.",
            no_maximum,
            method,
        ),
    ]


def _interval(value: Iterable[float], factor: float = 1, digits: int = 2) -> str:
    middle, low, high = (
        "> 1000" if factor * part > 1000 else f"{round(factor * part, digits) + 0:.{digits}f}".replace("nan", "–")
        for part in value
    )
    return f"{middle} [{low}, {high}]"


def _paper(group: Group, levels: Sequence[float]) -> Iterator[list[str]]:
    for level, words, read_as, least, most in _STATEMENTS:
        shown, agrees = "not shown", "–"
        if level in levels:
            share, low, high = group.values["rate", level]
            shown = f"{_interval((share, low, high), 100, 1)} %"
            if not np.isnan(low):
                inside, apart = least <= low and high <= most, high < least or low > most
                agrees = "yes" if inside else "no" if apart else "open"
        yield [f"ε = {level}: {words}", read_as, shown, agrees]


def figure(study: Study, groups: Mapping[str, Group]) -> Figure:
    """Draw figure 5: detection rates by ε, with intervals; what are not people's answers has that written across."""
    drawn: Figure = import_extra("matplotlib.figure", "plots").Figure((6.4, 4.2), layout="constrained")
    axes = drawn.subplots()
    places = np.arange(len(study.levels))
    for look, (name, group) in enumerate(groups.items()):
        share, low, high = 100 * np.array([group.values["rate", level] for level in study.levels]).T
        aside = 0.08 * (look - (len(groups) - 1) / 2)
        axes.errorbar(
            places + aside,
            share,
            np.clip([share - low, high - share], 0, None),
            color=COLOURS[look % len(COLOURS)],
            marker="osD^vP"[look % 6],
            markersize=5,
            linewidth=1.2,
            capsize=3,
            label=f"{name} ({group.people} participants)",
        )
    axes.axhline(50, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xticks(places, [f"{level:g}" for level in study.levels])
    axes.set(xlabel="ε in units of 1/255 (L∞); 0: clean images", ylabel='answers "perturbed" (%)', ylim=(0, 100))
    axes.legend(loc="upper left", frameon=False)
    notes = [*study.notes, "Bars: 95 % intervals over participants; method in the tables."]
    drawn.suptitle("\n".join(notes), fontsize=9, color="0.35", x=0.01, ha="left")
    if study.notes:
        words = "SIMULATED" if study.simulated else "PREVIEW"
        axes.text(
            *(0.7, 0.12, words), transform=axes.transAxes, ha="center", va="center", fontsize=36, color="0.85", zorder=0
        )
    return drawn


def _rows(groups: Mapping[str, Group]) -> pd.DataFrame:
    """All estimates, one a row; without a level where it is of all levels together. The threshold is log2(ε·255)."""
    import pandas as pd

    methods = ("bootstrap-t", "Wilson, design effect")
    rows = [
        (
            name,
            group.people,
            group.trials,
            quantity,
            level,
            *value,
            methods[quantity == "rate" and level in group.wilson],
        )
        for name, group in groups.items()
        for (quantity, level), value in group.values.items()
    ]
    columns = ["version", "participants", "trials", "quantity", "level", "estimate", "low", "high", "interval"]
    return pd.DataFrame(rows, columns=columns)
