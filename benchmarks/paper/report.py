"""Tables and curves from the result files, and PAPER.md: the paper's tables with ours beside them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.settings import differences
from benchmarks.record import write_text
from sip_plugin.evaluation import RobustnessReport

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "paper"
PUBLISHED: dict[str, Any] = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
NETWORK_NAMES = {
    "resnet18": "ResNet-18",
    "wrn-34-10": "WRN-34-10",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
}
REFERENCE = METHODS["standard"].label
Runs = dict[str, dict[str, list[RobustnessReport]]]


def read_results(preset: Preset, folder: Path) -> Runs:
    """Network -> method -> the reports of its seeds, for all cells of a preset's data set that have a result.

    Raises:
        ValueError: If there is none, or cells do not belong in one table: other settings, data or teachers.
    """
    results = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))}
    results = {path: result for path, result in results.items() if not path.name.endswith(".report.json")}
    if not results:
        raise ValueError(f"There are no results under {folder}/cells: make some with the command `table`.")
    _check_one_table(results)
    runs: Runs = {}
    # The preset's networks and methods in its order, then whatever else there is.
    archs = [*preset.archs, *(arch for arch in NETWORKS if arch not in preset.archs)]
    for path, result in sorted(results.items(), key=lambda item: item[1]["cell"]["seed"]):
        cell = result["cell"]
        report = RobustnessReport.from_json(path.with_suffix(".report.json"))
        runs.setdefault(cell["arch"], {}).setdefault(cell["method"], []).append(report)
    return {arch: {m: runs[arch][m] for m in METHODS if m in runs[arch]} for arch in archs if arch in runs}


def _check_one_table(results: dict[Path, dict[str, Any]]) -> None:
    teacher: dict[str, Any] | None = None
    (first_path, first), *_ = results.items()
    for path, result in results.items():
        name = "{dataset}-{arch}-{method}-seed{seed}".format(**result["cell"])
        if path.stem != name:
            raise ValueError(f"{path} is of another cell than its name says: {name}.")
        ours, theirs = (
            {key: value for key, value in r["cell"].items() if key not in ("arch", "method", "seed")}
            | {"data": r["data"]["content"]}
            for r in (first, result)
        )
        differing = differences(ours, theirs)
        own = (result["teacher"] or {}).get("weights_sha256")
        if own is not None:
            teacher = teacher or result["teacher"]
            if own != teacher["weights_sha256"]:
                differing.append("teacher: other weights")
        if differing:
            raise ValueError(
                f"{path.name} and {first_path.name} do not belong in one table ({'; '.join(differing)}). Keep them in "
                "--results folders of their own."
            )


def write_report(preset: Preset, folder: Path) -> None:
    """Write ``table.md``, ``table.tex`` and ``curves.png`` beside the results, and print the table."""
    runs = read_results(preset, folder)
    comparison = RobustnessReport.compare(
        {
            NETWORK_NAMES.get(arch, arch): {METHODS[method].label: reports for method, reports in rows.items()}
            for arch, rows in runs.items()
        },
        references=[REFERENCE] if any("standard" in rows for rows in runs.values()) else [],
    )
    print(comparison)
    comparison.to_markdown(folder / "table.md")
    comparison.to_latex(folder / "table.tex")
    comparison.plot(folder / "curves.png")
    print(f"\ntable.md, table.tex, curves.png: {folder}/")


def published_table(dataset: str, arch: str) -> str:
    """One network's part of the paper's table, and below each row ours where it was run."""
    ours = _results_so_far(dataset).get(arch, {})
    lines = _head(["Method", "", "Clean", *(f"ε = {name}" for name in PUBLISHED["columns"][1:])])
    for method, figures in PUBLISHED["tables"][dataset][arch].items():
        label = METHODS[method].label
        lines.append(_row([label, "paper", *(f"{mean:.2f} ± {std:.2f}" for mean, std in figures)]))
        if method in ours:
            lines.append(_row([label, f"ours ({len(ours[method])})", *map(_spread, _figures(ours[method]))]))
    return "\n".join(lines)


def differences_table(ours: str, dataset: str) -> str:
    """What each method gains over Madry, in points: in the paper's table of a data set, and in a preset of ours."""
    lines = _head(["Method", "", "Clean", *(f"ε = {name}" for name in PUBLISHED["columns"][1:])])
    sources = [
        (f"paper, {NETWORK_NAMES[arch]}", {method: [mean for mean, _ in row] for method, row in rows.items()})
        for arch, rows in PUBLISHED["tables"][dataset].items()
    ]
    for arch, reports in _results_so_far(ours).items():
        means = {method: [statistics.mean(values) for values in _figures(runs)] for method, runs in reports.items()}
        sources.append((f"ours, {arch}", means))
    methods = [m for m in METHODS if m not in ("standard", "madry") and any(m in rows for _, rows in sources)]
    for method in methods:
        for name, rows in sources:
            if method in rows and "madry" in rows:
                gains = [a - b for a, b in zip(rows[method], rows["madry"], strict=True)]
                lines.append(_row([METHODS[method].label, name, *(f"{round(gain, 1) + 0:+.1f}" for gain in gains)]))
    return "\n".join(lines)


def _results_so_far(preset: str) -> Runs:
    folder = RESULTS / preset
    return read_results(PRESETS[preset], folder) if (folder / "cells").is_dir() else {}


def own_table(preset: str) -> str:
    """The table of a preset of ours, as its committed file has it, and its curves."""
    if not (RESULTS / preset / "table.md").exists():
        return "*Not run yet.*"
    table = (RESULTS / preset / "table.md").read_text(encoding="utf-8").strip()
    return f"{table}\n\n![Accuracy against ε](../results/paper/{preset}/curves.png)"


def write_page(path: Path = HERE / "PAPER.md") -> None:
    """Fill the tables of PAPER.md in again; what stands between them is left alone."""
    write_text(path, filled(path.read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """The page with its tables, each between two comments that name it, made anew."""
    makers = {"published": published_table, "differences": differences_table, "own": own_table}

    def made(match: re.Match[str]) -> str:
        maker, *arguments = match["name"].split()
        return f"<!-- table: {match['name']} -->\n\n{makers[maker](*arguments)}\n\n<!-- end -->"  # type: ignore[operator]

    return re.sub(r"<!-- table: (?P<name>[^>]*?) -->.*?<!-- end -->", made, page, flags=re.DOTALL)


def _figures(reports: list[RobustnessReport]) -> list[list[float]]:
    """Clean and robust accuracies in per cent, each over the runs."""
    clean = [100 * report.clean_accuracy for report in reports]
    robust = [[100 * report.robust_accuracy[eps] for report in reports] for eps in reports[0].eps]
    return [clean, *robust]


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _head(columns: list[str]) -> list[str]:
    return [_row(columns), "|" + "---|" * len(columns)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
