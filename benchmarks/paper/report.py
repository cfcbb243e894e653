"""Tables and curves from the result files; PAPER.md, which has the paper's tables with ours beside them, and README.md."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.settings import differences
from benchmarks.record import write_text
from sip_plugin.evaluation import RobustnessReport

HERE = Path(__file__).resolve().parent
PAGES = (HERE / "PAPER.md", HERE.parents[1] / "README.md")
RESULTS = HERE.parent / "results" / "paper"
PUBLISHED: dict[str, Any] = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
NETWORK_NAMES = {
    "resnet18": "ResNet-18",
    "wrn-34-10": "WRN-34-10",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
}
REFERENCE = METHODS["standard"].label
Runs = dict[str, dict[str, dict[int, RobustnessReport]]]


def read_results(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> Runs:
    """Network -> method -> seed -> report, for all cells of a preset's data set that have a result.

    Args:
        preset: Whose networks come first, in its order.
        folder: Of the results.
        seeds: Leave out the cells of other seeds, for instance of one that has not all its cells yet.

    Raises:
        ValueError: If there is none, or cells do not belong in one table: other settings, data or teachers.
    """
    results = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))}
    results = {path: result for path, result in results.items() if not path.name.endswith(".report.json")}
    if not results:
        raise ValueError(f"There are no results under {folder}/cells: make some with the command `table`.")
    _check_one_table(results)
    if seeds is not None:
        results = {path: result for path, result in results.items() if result["cell"]["seed"] in seeds}
        if not results:
            raise ValueError(f"There are no results of seed {', '.join(map(str, seeds))} under {folder}/cells.")
    runs: Runs = {}
    # The preset's networks and methods in its order, then whatever else there is.
    archs = [*preset.archs, *(arch for arch in NETWORKS if arch not in preset.archs)]
    for path, result in sorted(results.items(), key=lambda item: item[1]["cell"]["seed"]):
        cell = result["cell"]
        report = RobustnessReport.from_json(path.with_suffix(".report.json"))
        runs.setdefault(cell["arch"], {}).setdefault(cell["method"], {})[cell["seed"]] = report
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


def write_report(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> None:
    """Write ``table.md``, ``table.tex`` and ``curves.png`` beside the results, and print the table; see `read_results`."""
    runs = read_results(preset, folder, seeds)
    comparison = RobustnessReport.compare(
        {
            NETWORK_NAMES.get(arch, arch): {
                METHODS[method].label: list(reports.values()) for method, reports in rows.items()
            }
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
            columns = zip(*map(_figures, ours[method].values()), strict=True)
            lines.append(_row([label, f"ours ({len(ours[method])})", *map(_spread, columns)]))
    return "\n".join(lines)


def differences_table(ours: str, dataset: str) -> str:
    """What each method gains over Madry, in points: in the paper's table of a data set, and in a preset of ours.

    Ours are means, with standard deviation, of the differences between two networks of one seed.
    """
    lines = _head(["Method", "", "Clean", *(f"ε = {name}" for name in PUBLISHED["columns"][1:])])
    sources: list[tuple[str, dict[str, list[str]]]] = []
    for arch, published in PUBLISHED["tables"][dataset].items():
        means = {method: [mean for mean, _ in row] for method, row in published.items()}
        gains = {method: _gains([row], [means["madry"]]) for method, row in means.items()}
        sources.append((f"paper, {NETWORK_NAMES[arch]}", gains))
    for arch, rows in _results_so_far(ours).items():
        madry = rows.get("madry", {})
        gains = {}
        for method, seeds in rows.items():
            shared = [seed for seed in seeds if seed in madry]
            if shared:
                gains[method] = _gains(*([_figures(runs[seed]) for seed in shared] for runs in (seeds, madry)))
        sources.append((f"ours, {arch}", gains))
    for method in METHODS:
        if method not in ("standard", "madry"):
            lines += [_row([METHODS[method].label, name, *gains[method]]) for name, gains in sources if method in gains]
    return "\n".join(lines)


def _gains(rows: list[list[float]], others: list[list[float]]) -> list[str]:
    """The difference of each figure: the mean over the runs, and the standard deviation if there are several."""
    texts = []
    for mine, theirs in zip(zip(*rows, strict=True), zip(*others, strict=True), strict=True):
        gains = [a - b for a, b in zip(mine, theirs, strict=True)]
        deviation = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        texts.append(f"{round(statistics.mean(gains), 1) + 0:+.1f}{deviation}")
    return texts


def _results_so_far(preset: str) -> Runs:
    folder = RESULTS / preset
    return read_results(PRESETS[preset], folder) if (folder / "cells").is_dir() else {}


def own_table(preset: str) -> str:
    """The table of a preset of ours, as its committed file has it."""
    file = RESULTS / preset / "table.md"
    return file.read_text(encoding="utf-8").strip() if file.exists() else "*Not run yet.*"


def write_pages() -> None:
    """Fill the tables of PAPER.md and README.md in again; what stands between them is left alone."""
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """A page with its tables, each between two comments that name it, made anew."""
    makers = {"published": published_table, "differences": differences_table, "own": own_table}

    def made(match: re.Match[str]) -> str:
        maker, *arguments = match["name"].split()
        return f"<!-- table: {match['name']} -->\n\n{makers[maker](*arguments)}\n\n<!-- end -->"  # type: ignore[operator]

    return re.sub(r"<!-- table: (?P<name>[^>]*?) -->.*?<!-- end -->", made, page, flags=re.DOTALL)


def _figures(report: RobustnessReport) -> list[float]:
    """Clean and robust accuracies in per cent."""
    return [100 * report.clean_accuracy, *(100 * accuracy for accuracy in report.robust_accuracy.values())]


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _head(columns: list[str]) -> list[str]:
    return [_row(columns), "|" + "---|" * len(columns)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
