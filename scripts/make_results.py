"""Fill in the measured figures of README.md, docs/ and benchmarks/paper/PAPER.md from the committed result files.

python scripts/make_results.py          # write them
python scripts/make_results.py --check  # say whether they are up to date

A page marks each table or paragraph that is made here by two comments, ``<!-- results: NAME -->`` and ``<!-- end -->``. What
stands outside of them is written by hand.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a clone that is not installed too

from benchmarks.paper import report
from benchmarks.paper.intervals import Difference, points
from benchmarks.paper.methods import METHODS
from benchmarks.paper.presets import PRESETS
from benchmarks.record import write_text
from sip_plugin.evaluation import RobustnessReport

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    ROOT / page for page in ("README.md", "docs/results.md", "docs/questions.md", "benchmarks/paper/PAPER.md")
)
RESULTS = ROOT / "benchmarks" / "results"
STRENGTH = ("PGD", "APGDT Linf", "CW", "PGDL2", "DeepFool", "Pixle", "FAB Linf", "Square Linf", "AutoAttack")


def filled(page: str) -> str:
    """A page with all that is made from results made anew."""

    def made(match: re.Match[str]) -> str:
        name, *arguments = match["name"].split()
        return f"<!-- results: {match['name']} -->\n\n{unbroken(MAKERS[name](*arguments))}\n\n<!-- end -->"

    return re.sub(r"<!-- results: (?P<name>[^>]*?) -->.*?<!-- end -->", made, page, flags=re.DOTALL)


def unbroken(text: str) -> str:
    """With no-break spaces in figures, such as ``ε = 1/255``, ``44.7 ± 0.6`` and ``[−1.2, +1.8]``."""
    return re.sub(
        r"(?<=ε) = (?=\d)|(?<=\d) ± (?=\d)|(?<=\d) (?=%)|(?<=\d,) (?=[+−]\d)",
        lambda m: m[0].replace(" ", "\u00a0"),
        text,
    )


@functools.cache
def record(path: str) -> Any:
    """A result file, by its path under ``benchmarks/results``."""
    return json.loads((RESULTS / path).read_text(encoding="utf-8"))


def committed_table(folder: str) -> str:
    """The table that a benchmark wrote beside its result."""
    return (RESULTS / folder / "table.md").read_text(encoding="utf-8").strip()


@functools.cache
def runs(preset: str = "cifar10-cpu") -> dict[str, Any]:
    """The reports of a comparison on two CPU cores: method -> seed -> report."""
    (found,) = report.read_results(PRESETS[preset], RESULTS / "paper" / preset).values()
    return found


def gain(method: str, other: str, preset: str = "cifar10-cpu") -> list[Difference]:
    """What a method has more than another one in points, with intervals: clean, then at each ε."""
    found = report.gains_over(runs(preset), method, other)
    assert found is not None  # both have been run
    return list(found.values())


def comparison_summary() -> str:
    """Three rows of the comparison: Madry, SIP-S and the control with random maps."""
    rows = RobustnessReport.compare(
        {METHODS[method].label: list(runs()[method].values()) for method in ("madry", "sip-s", "sip-random")}
    ).rows
    lines = ["| Training | Clean | ε = 1/255 | ε = 2/255 | ε = 4/255 | ε = 8/255 |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = (f"{100 * figure.mean:.1f} ± {100 * (figure.std or 0):.1f}" for figure in row.figures.values())
        lines.append(f"| {row.name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def comparison_verdict() -> str:
    """The sentence beneath these rows: whether it is salience."""
    words, clean, largest = _verdict("sip-s", "cifar10-cpu")
    return _paragraph(
        f"""**{words}**: SIP-S against the control with a random map of the same size is {clean} points on clean images and
        {largest} at 8/255 (95 % intervals over seeds and images)."""
    )


def larger_verdict() -> str:
    """The same of the larger network, for maps of elements and of pixels; shorter, as it follows that one."""
    methods, preset = ("sip-s", "sip-s-pixel"), "cifar10-cpu-long"
    sentences = []
    for method in methods:
        words, clean, largest = _verdict(method, preset)
        sentences.append(f"**{words}**: {METHODS[method].label} {clean} points on clean images, {largest} at 8/255.")
    seeds = _same(len(runs(preset)[method]) for method in methods)
    return _paragraph(" ".join(sentences) + f" {seeds} seeds each.")


def _verdict(method: str, preset: str) -> tuple[str, Difference, Difference]:
    """What the differences to the control say, clean and at 8/255."""
    control = METHODS[method].against
    assert control is not None
    clean, *_, largest = gain(method, control, preset)
    found = {
        (1, 0): "Here salience helps on clean images",
        (1, 1): "Here salience helps",
        (0, 1): "Here salience helps at 8/255",
        (1, -1): "Here salience gains clean accuracy and loses robustness",
        (0, 0): "Nothing here shows that salience helps",
        (-1, 1): "Here salience gains robustness and loses clean accuracy",
        (-1, 0): "Here random maps do better on clean images",
        (0, -1): "Here random maps do better at 8/255",
        (-1, -1): "Here random maps do better than salience",
    }[clean.shown, largest.shown]
    return found, clean, largest


def comparison_setting() -> str:
    """How the networks of the comparison were trained and attacked."""
    cells = [record(f"paper/cifar10-cpu/cells/{path.name}") for path in _cells()]
    images, tested, parameters = _same(
        (cell["data"]["training_images"], cell["data"]["test_images"], cell["network"]["parameters"]) for cell in cells
    )
    share = _same(cell["teacher"]["salient_share"] for cell in cells if cell["teacher"])
    training = cells[0]["cell"]["training"]
    shares = report.salient_shares(PRESETS["cifar10-cpu"], RESULTS / "paper" / "cifar10-cpu")
    whose, random, least = (f"{100 * shares[method]:.1f}" for method in ("sip-s", "sip-random", "sip-least"))
    return _paragraph(
        f"""CIFAR-10, but a sixth of it ({images:,} training images) and a network of five convolutions
        ({parameters:,} parameters), {training["epochs"]} epochs; every method but the standard one trained at
        ε = {training["eps"] * 255:g}/255 (L∞, {training["steps"]} steps of {training["alpha"] * 255:g}/255);
        {len(runs()["madry"])} seeds. SIP-S has its maps from a larger Madry-trained network ({100 * share:.1f} % of the
        elements are salient). The controls preserve as many elements of each image: at random, or those with the least
        gradient. Crops cut off more of theirs, which are not in the middle: in training {whose} % of the elements are
        salient with SIP-S, {random} % and {least} % with the controls. AutoAttack on {tested:,} test images, free to change
        every element."""
    )


def salient_shares(preset: str) -> str:
    """How many elements were salient in training, method by method."""
    shares = report.salient_shares(PRESETS[preset], RESULTS / "paper" / preset)
    listed = "; ".join(f"{METHODS[m].label}: {100 * shares[m]:.1f} %" for m in METHODS if shares.get(m))
    return _paragraph(f"Elements salient in training, after crops, which cut off more of random maps: {listed}.")


def comparison_findings() -> str:
    """What agrees with the paper, and what does not."""
    published = {
        arch: [sip[0] - madry[0] for sip, madry in zip(rows["sip-s"], rows["madry"], strict=True)]
        for arch, rows in report.PUBLISHED["tables"]["cifar10"].items()
    }
    resnet, wide = published["resnet18"], published["wrn-34-10"]
    over_madry = gain("sip-s", "madry")
    fat, trades = (gain(other, "sip-s")[0] for other in ("fat", "trades"))
    return "\n".join(
        [
            _item(
                f"""Clean accuracy of SIP-S over Madry's: {over_madry[0]} points here; {resnet[0]:+.1f} on the
                paper's ResNet-18 and {wide[0]:+.1f} on its WRN-34-10. At 8/255: {over_madry[-1]} here; {resnet[-1]:+.1f} and
                {points(wide[-1])} there."""
            ),
            _item(
                f"""Clean accuracy of FAT over that of SIP-S: {fat} points; of TRADES: {trades}. In the paper SIP-S is ahead
                of both."""
            ),
        ]
    )


def conclusions(preset: str) -> str:
    """A sentence for each row of a comparison."""
    return "\n".join(_item(line.removeprefix("- ")) for line in report.conclusions(preset).splitlines())


def digits_setting() -> str:
    """How the networks of ``make demo`` were trained and attacked."""
    result = record("quickstart-digits/result.json")
    settings = result["settings"]
    return _paragraph(
        f"""scikit-learn's digits, 8×8: {result["train_images"]:,} images to train, {result["test_images"]} to test; five
        convolutions (width {settings["width"]}), {settings["epochs"]} epochs, trained at ε = {settings["eps"]:g} (L∞,
        {settings["steps"]} steps of {settings["alpha"]:g}); AutoAttack (standard version) on
        {settings["attacked"]} other test images for each seed, free to change every element. Accuracy in per cent, mean ±
        standard deviation over {len(settings["seeds"])} seeds:"""
    )


def maps_setting() -> str:
    """Of which images and network the maps are."""
    result = record("salience_maps/result.json")
    network = result["networks"]["madry"]
    clean, robust = (f"{100 * network['test_accuracy'][name]:.1f} %" for name in ("clean", "pgd20"))
    return _paragraph(
        f"""Maps of {result["images"]:,} training images of CIFAR-10, from the gradient of a Madry-trained
        network ({network["training"]["epochs"]} epochs; {clean} of the test images right, {robust} under PGD-20 at 8/255).
        Mean ± standard deviation over the images, in per cent but for the IoU:"""
    )


def strength() -> str:
    """Some rows of the table of torchattacks' attacks."""
    head, rule, *rows = committed_table("attack_strength").splitlines()
    chosen = {row.strip("| ").split(" | ")[0]: row for row in rows}
    return "\n".join([head, rule, *(chosen[name] for name in ("FGSM", *STRENGTH))])


def ratios(name: str) -> str:
    """The ratios of a result file under ``speed/``, in the words of the file."""
    lines = ["| | time ratio | middle half of the rounds | rounds |", "|---|---|---|---|"]
    for what, ratio in _speed(name)["results"].items():
        low, _, high = statistics.quantiles(ratio["ratios"], method="inclusive")
        lines.append(f"| {what} | {ratio['median_ratio']:.3f} | {low:.3f}–{high:.3f} | {len(ratio['ratios'])} |")
    return "\n".join(lines)


def epochs(name: str) -> str:
    """Images per second and the share of the card's peak, by the way of the search."""
    lines = ["| search | images per second | of the peak |", "|---|---:|---:|"]
    for way, found in _speed(name)["results"].items():
        lines.append(f"| {way} | {found['images_per_second']:,.0f} | {100 * found['share_of_peak']:.0f} % |")
    return "\n".join(lines)


def peak_memory() -> str:
    """Of a training step."""
    ours, theirs = (_speed("training_step")["peak_bytes"][name] for name in ("sip-plugin madry", "torchattacks.PGD"))
    return (
        f"Peak memory of a Madry step (tensors alive at once) over torchattacks' in a plain loop: {ours / theirs:.3f}."
    )


def store_size() -> str:
    """Of CIFAR-10's maps."""
    store = _speed("mask_store")["store"]
    size = store["bytes"] / 1e6
    return f"CIFAR-10's {store['images']:,} maps of 3,072 elements take {size:.2f} MB in a `MaskStore`."


def evaluation_setting() -> str:
    """Which network was attacked, and by what."""
    result = record("evaluation/result.json")
    width, epochs = result["network"].partition(", ")[2], result["training"]["epochs"]
    return _paragraph(
        f"""One Madry-trained network (five convolutions, {width}, {epochs} epochs), the first {result["images"]} of the
        CIFAR-10 test images: pyautoattack's standard evaluation run anew at each ε, and `evaluate_robustness` as it
        is by default and with `assume_survivors=True`; images still right. One process on one thread, with other work on
        the machine for most of the time:"""
    )


def folded_training() -> str:
    """What networks trained with a folded search have more than those of the same seeds without."""
    (folded,) = report.read_results(PRESETS["cifar10-cpu"], RESULTS / "folded_training").values()
    pairs = [(each.accuracy, runs()["madry"][seed].accuracy) for seed, each in folded["madry"].items()]
    clean, robust = (", ".join(points(100 * (ours[eps] - own[eps])) for ours, own in pairs) for eps in (0, 8 / 255))
    return _paragraph(
        f"""Madry's networks of the [comparison](#the-papers-comparison-on-two-cpu-cores), trained again with folding
        and attacked at 8/255 alone ([raw results](../benchmarks/results/folded_training/cells)), seed by seed: {clean}
        points on clean images, {robust} at 8/255."""
    )


def _speed(name: str) -> Any:
    return record(f"speed/{name}.json")


def _cells() -> list[Path]:
    return sorted((RESULTS / "paper" / "cifar10-cpu" / "cells").glob("*-seed[0-9].json"))


def _same(values: Iterable[Any]) -> Any:
    (value,) = set(values)
    return value


def _paragraph(text: str, **options: Any) -> str:
    return textwrap.fill(
        unbroken(" ".join(text.split())), 125, break_long_words=False, break_on_hyphens=False, **options
    )


def _item(text: str) -> str:
    return _paragraph(f"- {text}", subsequent_indent="  ")


MAKERS: dict[str, Callable[..., str]] = {
    "published": report.published_table,
    "differences": report.differences_table,
    "against": report.against_table,
    "controls": report.controls_table,
    "conclusions": conclusions,
    "table": committed_table,
    "comparison-summary": comparison_summary,
    "comparison-verdict": comparison_verdict,
    "larger-verdict": larger_verdict,
    "comparison-setting": comparison_setting,
    "comparison-findings": comparison_findings,
    "salient-shares": salient_shares,
    "digits-setting": digits_setting,
    "maps-setting": maps_setting,
    "strength": strength,
    "ratios": ratios,
    "epochs": epochs,
    "folded-training": folded_training,
    "peak-memory": peak_memory,
    "store-size": store_size,
    "evaluation-setting": evaluation_setting,
}


def main() -> int:
    """Write the pages, or check them."""
    stale = [page for page in PAGES if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        if stale:
            print(f"{', '.join(page.name for page in stale)}: run python scripts/make_results.py", file=sys.stderr)
        return bool(stale)
    for page in stale:
        write_text(page, filled(page.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
