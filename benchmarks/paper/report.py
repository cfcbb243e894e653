"""Tables and curves from the result files, and the paper's tables with ours beside them, for PAPER.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.intervals import Difference, paired_differences, points
from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.settings import differences
from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.comparison import Spread
from sip_plugin.evaluation.eps import EpsDict
from sip_plugin.utils import atomic_write

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
    runs: Runs = {}
    # The preset's networks and methods in its order, then whatever else there is.
    archs = [*preset.archs, *(arch for arch in NETWORKS if arch not in preset.archs)]
    for path, result in _one_table(preset, folder, seeds).items():
        cell = result["cell"]
        images = path.with_suffix(".report.json")
        if not images.exists():
            raise ValueError(f"{path} has no {images.name} beside it: remove it, and `table` makes both again.")
        report = RobustnessReport.from_json(images)
        runs.setdefault(cell["arch"], {}).setdefault(cell["method"], {})[cell["seed"]] = report
    return {arch: {m: runs[arch][m] for m in METHODS if m in runs[arch]} for arch in archs if arch in runs}


def _one_table(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> dict[Path, dict[str, Any]]:
    """The results of a table, those of the preset's ``base`` included, by the seed; checked."""
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
    return dict(sorted(results.items(), key=lambda item: item[1]["cell"]["seed"]))


def _results(folder: Path) -> dict[Path, dict[str, Any]]:
    found = sorted((folder / "cells").glob("[!.]*.json"))  # without what a kill may have left of one
    paths = (path for path in found if not path.name.endswith(".report.json"))
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
            | {"data": r["data"]["content"], "processes": r["training"]["processes"]}
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

    ``curves.png`` has the accuracies, ``gains.png`` the differences to Madry where every row has Madry's seeds; for
    ``shares.png`` of a preset with maps of several sizes see `draw_shares`.
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
    if preset.base and len(runs) == 1 and any("madry" in rows for rows in runs.values()):
        draw_shares(preset, folder, seeds)
        written += ", shares.png"
    elif preset.base:
        (folder / "shares.png").unlink(missing_ok=True)
        written += (
            f" (no shares.png: that takes one network, with a row of Madry's, here or in {preset.base} beside it)"
        )
    print(comparison)
    print(f"\n{written}: {folder}/")


def draw_shares(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> None:
    """``shares.png``: clean accuracy and that at the largest ε against the share of salient elements, each seed a dot.

    A line for the teacher's maps and one for random maps, both from Madry's networks, which have none; the maps of other
    images stand beside them.
    """
    (rows,) = read_results(preset, folder, seeds).values()
    shares = salient_shares(preset, folder, seeds)
    kinds: dict[str, list[str]] = {}
    for method in rows:
        kinds.setdefault(METHODS[method].salience or "", []).append(method)
    figure = Figure((8.4, 3.4), layout="constrained")
    eps = preset.evaluation.eps[-1]
    for axes, radius, what in zip(
        figure.subplots(1, 2), (0.0, eps), ("Clean accuracy (%)", f"Accuracy at ε = {255 * eps:g}/255 (%)"), strict=True
    ):
        for (kind, label, style), marker in zip(_LINES, "osD^", strict=True):
            methods = sorted([*kinds.get(kind, []), *(["madry"] if style else [])], key=shares.__getitem__)
            dots = [
                (100 * shares[method], [100 * report.accuracy[radius] for report in rows[method].values()])
                for method in methods
            ]
            means = [statistics.fmean(accuracies) for _, accuracies in dots]
            (line,) = axes.plot([share for share, _ in dots], means, f"{style}{marker}", label=label)
            for share, accuracies in dots:
                axes.plot(
                    [share] * len(accuracies), accuracies, marker, color=line.get_color(), markersize=3, alpha=0.5
                )
        axes.set_xlabel("Salient elements in training (%); 0: Madry")
        axes.set_ylabel(what)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    with atomic_write(folder / "shares.png") as file:
        figure.savefig(file, dpi=200)


def salient_shares(preset: Preset, folder: Path, seeds: Sequence[int] | None = None) -> dict[str, float]:
    """For each method the share of elements that were salient in training, after crops: the mean of epochs and seeds."""
    shares: dict[str, list[float]] = {}
    for result in _one_table(preset, folder, seeds).values():
        epochs = (epoch.get("salient", 0.0) for epoch in result["training"]["epochs"])
        shares.setdefault(result["cell"]["method"], []).append(statistics.fmean(epochs))
    return {method: statistics.fmean(found) for method, found in shares.items()}


_LINES = (
    ("teacher", "SIP-S", "-"),
    ("random", "control: random map", "--"),
    ("same-class", "another image's map, same class", ""),
    ("other-class", "another image's map, another class", ""),
)


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


def differences_table(ours: str, dataset: str | None = None) -> str:
    """What each method gains over Madry, in points: in a preset of ours, and in the paper's table of a data set.

    Ours have intervals, see `paired_differences`; ours (n) is of n seeds.
    """
    lines = _head("Method")
    rows: list[tuple[str, str, list[str]]] = []
    for arch, published in PUBLISHED["tables"][dataset].items() if dataset else ():
        madry = [mean for mean, _ in published["madry"]]
        for method, figures in published.items():
            gains = [points(mean - base) for (mean, _), base in zip(figures, madry, strict=True)]
            rows.append((method, f"paper, {NETWORK_NAMES[arch]}", gains))
    for arch, runs in _results_so_far(ours).items():
        for method in runs:
            if found := _gains(runs, arch, method, "madry"):
                rows.append((method, *found))
    for method in METHODS:
        if method not in ("standard", "madry"):
            lines += [_row([METHODS[method].label, name, *gains]) for of, name, gains in rows if of == method]
    return "\n".join(lines)


def against_table(method: str, ours: str) -> str:
    """What a method has more than each other one, in points, in a preset of ours; as in `differences_table`."""
    lines = _head(f"{METHODS[method].label} against")
    for arch, runs in _results_so_far(ours).items():
        for other in runs:
            if found := _gains(runs, arch, method, other):
                lines.append(_row([METHODS[other].label, found[0], *found[1]]))
    return "\n".join(lines)


def controls_table(ours: str) -> str:
    """What each row of a preset of ours has more than the row that it is to be compared with; as in `against_table`."""
    lines = _head("")
    for arch, runs in _results_so_far(ours).items():
        for method, other in ((method, METHODS[method].against) for method in runs):
            if other and (found := _gains(runs, arch, method, other)):
                lines.append(_row([f"{METHODS[method].label} against {METHODS[other].label}", found[0], *found[1]]))
    return "\n".join(lines)


def conclusions(ours: str) -> str:
    """A sentence for each method of a preset: what its differences to Madry, and to one row more, show.

    Methods that it takes from another preset are judged there, where they may have more seeds.
    """
    base = PRESETS[ours].base
    elsewhere = PRESETS[base].methods if base else ()
    words = {1: "is ahead of", -1: "is behind", 0: "cannot be told from"}
    sentences = []
    for runs in _results_so_far(ours).values():
        for method in (method for method in runs if method not in ("standard", "madry", *elsewhere)):
            clauses = []
            for other in filter(None, ("madry", METHODS[method].against)):
                if found := gains_over(runs, method, other):
                    (_, clean), *_, (eps, robust) = found.items()
                    clauses.append(
                        f"{words[clean.shown]} {METHODS[other].label} on clean images ({clean}) and "
                        f"{words[robust.shown]} it at {255 * eps:g}/255 ({robust})"
                    )
            if clauses:
                sentences.append(f"- {METHODS[method].label} {'; it '.join(clauses)}.")
    return "\n".join(sentences)


def gains_over(runs: dict[str, dict[int, RobustnessReport]], method: str, other: str) -> EpsDict[Difference] | None:
    """What a method has more than another one over the seeds that both have; None if there are none, or of itself."""
    seeds = _shared_seeds(runs, method, other)
    if not seeds or method == other:
        return None
    return paired_differences(*([runs[name][seed] for seed in seeds] for name in (method, other)))


def _gains(
    runs: dict[str, dict[int, RobustnessReport]], arch: str, method: str, other: str
) -> tuple[str, list[str]] | None:
    """As `gains_over`, as cells of a table; and whose they are, of how many seeds."""
    found = gains_over(runs, method, other)
    whose = f"ours ({len(_shared_seeds(runs, method, other))}), {arch}"
    return None if found is None else (whose, [*map(str, found.values())])


def _shared_seeds(runs: dict[str, dict[int, RobustnessReport]], *methods: str) -> list[int]:
    first, second = (runs.get(method, {}) for method in methods)
    return [seed for seed in first if seed in second]


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
