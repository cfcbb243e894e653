"""How wide a study's intervals will be, and how often they hold the truth, from simulated studies.

Simulated participants differ in how easily they say "perturbed": the rates of one are quantiles of Beta distributions with
the given means, the same quantile at all levels. With a + b = 6 their standard deviation is 19 points around a mean of ½.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks.human_study import estimates
from benchmarks.human_study.analyse import Printed
from benchmarks.human_study.assignment import IMAGES
from benchmarks.human_study.estimates import Array
from benchmarks.record import run_record, write_json
from sip_plugin.evaluation.statistics import wilson_interval
from sip_plugin.evaluation.tables import Table

LEVELS = (0.0, 1.0, 2.0, 4.0, 8.0)
RATES = (0.10, 0.18, 0.36, 0.62, 0.84)
EXTREME = (0.01, 0.18, 0.36, 0.62, 0.97)
SPREAD = 6.0
RESULTS = Path(__file__).resolve().parents[1] / "results" / "human_study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--participants", type=int, nargs="+", default=[50, 60, 100, 330])
    parser.add_argument("--studies", type=int, default=1000, help="simulated for each number of participants")
    parser.add_argument("--samples", type=int, default=1000, help="of each study's bootstrap")
    parser.add_argument("--rates", type=float, nargs=len(LEVELS), default=RATES, help="at ε = 0, 1, 2, 4, 8 /255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of power.json and power.md")


def run(options: argparse.Namespace) -> None:
    """Simulate, print the tables and write them with their figures."""
    result: dict[str, Any] = {"simulated": True, "levels": LEVELS, "rates": list(options.rates), "spread": SPREAD}
    result |= {"studies": options.studies, "samples": options.samples, "sizes": {}}
    for people in options.participants:
        began, random = time.perf_counter(), np.random.default_rng([options.seed, people])
        found = coverage(people, options.rates, options.studies, options.samples, random)
        result["sizes"][str(people)] = found
        print(f"{people} participants: {time.perf_counter() - began:.0f} s", flush=True)
    random = np.random.default_rng([options.seed, 0])
    result["extreme"] = {"rates": EXTREME, "people": 60}
    result["extreme"]["found"] = coverage(60, EXTREME, options.studies, options.samples, random)
    shown = tables(result)
    write_json(options.out / "power.json", run_record(options.seed) | result)
    text = "\n".join(table.to_markdown() for table in shown)
    (options.out / "power.md").write_text(text, encoding="utf-8", newline="\n")
    print("\n\n".join(map(str, shown)))


def simulated_shares(people: int, rates: Sequence[float], random: np.random.Generator) -> Array:
    """Each participant's share of the answer "perturbed" at each level, ``(people, levels)``, of ten trials a level."""
    means, ease = np.asarray(rates), random.random((people, 1))
    answers = random.binomial(IMAGES, beta.ppf(ease, SPREAD * means, SPREAD * (1 - means)))
    shares: Array = answers / IMAGES
    return shares


def coverage(
    people: int, rates: Sequence[float], studies: int, samples: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """For each quantity the truth, the intervals' mean width, and the shares of studies whose interval holds the truth (one
    that there is not does not) and that have none.

    Two come last: that of the slope by GEE, a normal interval from robust standard errors; and Wilson's of the rates.
    """
    truth, _ = estimates.estimates(np.asarray(rates), 10**12, LEVELS)
    intervals = np.empty((studies, len(truth) + 1 + len(LEVELS), 2))
    for study in range(studies):
        shares = simulated_shares(people, rates, random)
        value, error, studentised, _ = estimates.bootstrap(shares, IMAGES, LEVELS, samples, random)
        by_gee = estimates.normal_interval(value[-2:-1], error[-2:-1] * people / (people - 1))  # bias-reduced
        wilson = [wilson_interval(rate, people * IMAGES) for rate in value[: len(LEVELS)].tolist()]
        intervals[study] = np.concatenate([studentised, by_gee, wilson])
    truth = np.concatenate([truth, truth[-2:-1], rates])
    low, high = intervals[..., 0], intervals[..., 1]
    keys = [*estimates.names(LEVELS), ("slope by GEE", None), *(("rate by Wilson", level) for level in LEVELS)]
    held, none = ((low <= truth) & (truth <= high)).mean(0), np.isnan(low).mean(0)
    width = np.nanmean(high - low, axis=0)
    return [
        {"quantity": quantity, "level": level, "truth": t, "width": w, "coverage": h, "none": n}
        for (quantity, level), t, w, h, n in zip(keys, *(a.tolist() for a in (truth, width, held, none)), strict=True)
    ]


def tables(result: dict[str, Any]) -> list[Printed]:
    """Widths and coverages, a column for each number of participants; and both for rates near 0 and 1."""
    sizes, found = list(result["sizes"]), []
    notes = [
        f"{result['studies']:,} simulated studies of each kind, ten trials for each participant and level; bootstrap-t, "
        f"{result['samples']:,} samples. ε in units of 1/255.",
        "Participants differ: each has a rate of its own from Beta distributions (a + b = "
        f"{result['spread']:g}) with the true rates as means.",
        "Rates under 5 or over 95 % in a study: Wilson's interval with the design effect. An interval that there is not "
        "does not hold the truth.",
    ]
    for what, title in (
        ("width", "Simulated, not a study: the mean width of the 95 % intervals."),
        ("coverage", "Simulated, not a study: how often the 95 % intervals hold the truth, in per cent."),
    ):
        rows = [_row([(cell, what) for cell in cells]) for cells in zip(*result["sizes"].values(), strict=True)]
        found.append(Printed(Table(title, ["", "truth", *(f"{size} people" for size in sizes)], rows, notes)))
    extreme = result["extreme"]
    rows = [_row([(cell, what) for what in ("width", "coverage", "none")]) for cell in extreme["found"]]
    title = f"Simulated, not a study: {extreme['people']} people and rates near 0 and 1."
    return [*found, Printed(Table(title, ["", "truth", "width", "holds the truth (%)", "has none (%)"], rows, notes))]


def _row(cells: Sequence[tuple[dict[str, Any], str]]) -> tuple[str, list[str]]:
    """Of a table: the quantity, its truth, and values of cells by their names."""
    quantity, level, truth = (cells[0][0][name] for name in ("quantity", "level", "truth"))
    factor = 100 if quantity.startswith("rate") else 1
    unit = " (%)" if factor > 1 else " (log2 of ε)" if quantity == "threshold" else ""
    label = f"{quantity}{unit}" + ("" if level is None else f", ε = {level:g}")
    digits = 1 if factor > 1 else 2
    shown = [
        f"{factor * cell[what]:.{digits}f}" if what == "width" else f"{100 * cell[what]:.1f}" for cell, what in cells
    ]
    return "", [label, f"{factor * truth:.{digits}f}", *shown]
