"""Tables and curves from the result files, and the paper's tables with ours beside them, for PAPER.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.settings import differences
from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.comparison import Spread

HERE = Path(__file__).resolve().parent
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
    results = _results(folder)
    if preset.base:
        results |= {
            path: result
            for path, result in _results(folder.parent / preset.base).items()
            if result["cell"]["method"] in preset.methods and result["cell"]["seed"] in preset.seeds
        }
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
        images = path.with_suffix(".report.json")
        if not images.exists():
            raise ValueError(f"{path} has no {images.name} beside it: remove it, and `table` makes both again.")
        report = RobustnessReport.from_json(images)
        runs.setdefault(cell["arch"], {}).setdefault(cell["method"], {})[cell["seed"]] = report
    return {arch: {m: runs[arch][m] for m in METHODS if m in runs[arch]} for arch in archs if arch in runs}


def _results(folder: Path) -> dict[Path, dict[str, Any]]:
    paths = (path for path in sorted((folder / "cells").glob("*.json")) if not path.name.endswith(".report.json"))
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _check_one_table(results: dict[Path, dict[str, Any]]) -> None:
    sources: dict[str, str] = {}
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
        for kind, complaint in (
            ("weights_sha256", "teacher: other weights"),
            ("annotations_sha256", "other annotations"),
        ):
            own = (result["teacher"] or {}).get(kind)
            if own is not None and own != sources.setdefault(kind, own):
                differing.append(complaint)
        if differing:
            raise ValueError(
                f"{path.name} and {first_path.name} do not belong in one table ({'; '.join(differing)}). Keep them in "
                "--results folders of their own."
            )


def write_report(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> None:
    """Write ``table.md``, ``table.tex`` and the curves beside the results, and print the table; see `read_results`.

    ``curves.png`` has the accuracies, ``gains.png`` the differences to Madry where every row has Madry's seeds.
    """
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
    comparison.to_markdown(folder / "table.md")
    comparison.to_latex(folder / "table.tex")
    comparison.plot(folder / "curves.png")
    written = "table.md, table.tex, curves.png"
    drawn = [(rows, reports) for rows in runs.values() for method, reports in rows.items() if method != "standard"]
    if all(list(reports) == list(rows.get("madry", ())) for rows, reports in drawn):
        comparison.plot(folder / "gains.png", relative_to=METHODS["madry"].label)
        written += ", gains.png"
    else:
        (folder / "gains.png").unlink(missing_ok=True)  # of other cells
        written += " (no gains.png: not every row has the seeds of a row of Madry's)"
    print(comparison)
    print(f"\n{written}: {folder}/")


def published_table(dataset: str, arch: str) -> str:
    """One network's part of the paper's table, and below each row ours where it was run."""
    ours = _results_so_far(dataset).get(arch, {})
    lines = _head("Method")
    for method, figures in PUBLISHED["tables"][dataset][arch].items():
        label = METHODS[method].label
        lines.append(_row([label, "paper", *(f"{mean:.2f} ± {std:.2f}" for mean, std in figures)]))
        if method in ours:
            (row,) = RobustnessReport.compare({method: list(ours[method].values())}).rows
            lines.append(_row([label, f"ours ({len(row.reports)})", *map(_per_cent, row.figures.values())]))
    return "\n".join(lines)


def differences_table(ours: str, dataset: str) -> str:
    """What each method gains over Madry, in points: in the paper's table of a data set, and in a preset of ours.

    Ours are means, with standard deviation, of the differences between two networks of one seed, of which ours (n) has n.
    """
    lines = _head("Method")
    rows: list[tuple[str, str, list[str]]] = []
    for arch, published in PUBLISHED["tables"][dataset].items():
        madry = [mean for mean, _ in published["madry"]]
        for method, figures in published.items():
            points = [_points(mean - base) for (mean, _), base in zip(figures, madry, strict=True)]
            rows.append((method, f"paper, {NETWORK_NAMES[arch]}", points))
    for arch, runs in _results_so_far(ours).items():
        for method in runs:
            count, points = gains(runs, method, "madry")
            if points:
                rows.append((method, f"ours ({count}), {arch}", points))
    for method in METHODS:
        if method not in ("standard", "madry"):
            lines += [_row([METHODS[method].label, name, *points]) for of, name, points in rows if of == method]
    return "\n".join(lines)


def against_table(method: str, ours: str) -> str:
    """What a method has more than each other one, in points, in a preset of ours; as in `differences_table`."""
    lines = _head(f"{METHODS[method].label} against")
    for arch, runs in _results_so_far(ours).items():
        for other in runs:
            count, points = gains(runs, method, other)
            if points:
                lines.append(_row([METHODS[other].label, f"ours ({count}), {arch}", *points]))
    return "\n".join(lines)


def gains(runs: dict[str, dict[int, RobustnessReport]], method: str, other: str) -> tuple[int, list[str]]:
    """The number of seeds that two methods share, and the differences of their figures; none of a method to itself."""
    shared = [seed for seed in runs.get(method, {}) if seed in runs.get(other, {})]
    if not shared or method == other:
        return 0, []
    mine, theirs = RobustnessReport.compare(
        {name: [runs[name][seed] for seed in shared] for name in (method, other)}
    ).rows
    return len(shared), [_points(100 * gain.mean, gain.std) for gain in mine.gains_over(theirs).values()]


def _points(gain: float, deviation: float | None = None) -> str:
    """A difference in points, with the standard deviation over several runs as a share."""
    return f"{round(gain, 1) + 0:+.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _results_so_far(preset: str) -> Runs:
    folder = RESULTS / preset
    return read_results(PRESETS[preset], folder) if (folder / "cells").is_dir() else {}


def _per_cent(figure: Spread) -> str:
    return f"{100 * figure.mean:.2f}" + ("" if figure.std is None else f" ± {100 * figure.std:.2f}")


def _head(first: str) -> list[str]:
    """The head of a table with the paper's columns."""
    columns = [first, "", "Clean", *(f"ε = {name}" for name in PUBLISHED["columns"][1:])]
    return [_row(columns), "|" + "---|" * len(columns)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
