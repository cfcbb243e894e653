"""evaluate_robustness against independent AutoAttack runs, one for each ε, on one Madry-trained network: accuracy and time.

    python -m benchmarks.evaluation --data-dir DIR [--network FILE] [--images 256] [--unfolded] [--out FOLDER]

Trains the network (saved in FILE, and read from there if it exists), then attacks the first test images: the package's own
standard evaluation at each ε, evaluate_robustness as it is by default, and with assume_survivors=True. All in one process on
one thread, the package's runs before and after ours. Processor time is reported beside wall time, which other processes
on the machine disturb. With --unfolded ours also run without folding BatchNorm. The result file has the peak memory of APGD
on one batch with and without.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paper.data import Source, add_data_arguments
from benchmarks.paper.networks import ConvNet
from benchmarks.record import run_record, write_json, write_text
from benchmarks.small import CIFAR10, Data, load, train
from benchmarks.speed.measure import PeakMemory
from sip_plugin import AdversarialTrainer
from sip_plugin.evaluation import RobustnessReport, evaluate_robustness

EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
WIDTH = 16
MODES: dict[str, dict[str, Any]] = {"default": {}, "assume_survivors": {"assume_survivors": True}}
UNFOLDED = {f"{mode}, not folded": settings | {"fold_batchnorm": False} for mode, settings in MODES.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write it with the figures it is made of."""
    options = parse(arguments)
    torch.set_num_threads(1)
    data = load("cifar10", Source(options.data_dir, options.download, options.unofficial_data))
    model, training = network(options, data)
    x, y = data.test[0][: options.images], data.test[1][: options.images]
    logging.getLogger("auto-attack").disabled = True
    modes = MODES | (UNFOLDED if options.unfolded else {})
    result = compared(model, x, y, EPS, options.batch_size, options.seed, modes)
    result["peak_bytes_of_apgd"] = peak_memory(model, x[: options.batch_size], y[: options.batch_size])
    text = table(result)
    if options.out is not None:
        conditions = {"data": data.source, "network": f"ConvNet, width {WIDTH}", "training": training}
        write_json(options.out / "result.json", run_record(options.seed) | conditions | result)
        write_text(options.out / "table.md", text)
    print(text)
    return result


def compared(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Sequence[float],
    batch_size: int,
    seed: int,
    modes: dict[str, dict[str, Any]] = MODES,
) -> dict[str, Any]:
    """Both ways on the same images: who is still right at each ε, wall and processor time, agreement image by image."""
    half = len(eps) // 2
    independent: dict[float, Tensor] = {}
    each: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, float]] = {}

    def independently(radii: Sequence[float]) -> None:
        for radius in radii:
            independent[radius], each[shown(radius)] = timed(partial(autoattack, model, x, y, radius, batch_size, seed))
            print(f"{shown(radius)} alone: {int(independent[radius].sum())} right, {each[shown(radius)]}", flush=True)

    reports: dict[str, RobustnessReport] = {}
    independently(eps[:half])
    for mode, settings in modes.items():
        reports[mode], seconds[mode] = timed(
            partial(
                evaluate_robustness,
                model,
                (x, y),
                eps=eps,
                batch_size=batch_size,
                seed=seed,
                progress=False,
                **settings,
            )
        )
        print(f"{mode}: {seconds[mode]}", flush=True)
    independently(eps[half:])
    seconds["independent"] = {clock: sum(run[clock] for run in each.values()) for clock in ("wall", "processor")}
    right = {mode: torch.stack(list(report.correct.values())) for mode, report in reports.items()}
    return {
        "images": len(x),
        "batch_size": batch_size,
        "eps": list(eps),
        "clean_right": int(reports["default"].correct_clean.sum()),
        "right": {"independent": [int(independent[radius].sum()) for radius in eps]}
        | {mode: rows.sum(1).tolist() for mode, rows in right.items()},
        "agreement": {
            mode: [against(independent[r], rows[k]) for k, r in enumerate(eps)] for mode, rows in right.items()
        },
        "seconds": seconds,
        "seconds_of_each_independent_run": each,
        "ratio": {
            mode: {clock: seconds[mode][clock] / seconds["independent"][clock] for clock in ("wall", "processor")}
            for mode in modes
        },
        "warnings": {mode: list(report.warnings) for mode, report in reports.items()},
    }


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, batch_size: int, seed: int) -> Tensor:
    """Which images the package's own standard evaluation leaves right, ``(N,)`` bool."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=seed, device=x.device)
    predicted: Tensor = attack.run_standard_evaluation(x, y, batch_size=batch_size)[1]
    return predicted == y


def peak_memory(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """The most bytes alive at once while one batch is attacked by APGD, with BatchNorm folded and not."""
    found = {}
    for name, fold in {"as it is": False, "folded": True}.items():
        with PeakMemory() as peak:
            evaluate_robustness(
                model,
                (x, y),
                eps=EPS[-1],
                version=["apgd-ce"],
                batch_size=len(x),
                fold_batchnorm=fold,
                sanity_checks=False,
                progress=False,
            )
        found[name] = peak.bytes
    return found


def against(independent: Tensor, ours: Tensor) -> dict[str, Any]:
    """How two verdicts on the same images compare."""
    return {
        "same": float((independent == ours).float().mean()),
        "broken_by_the_independent_run_alone": int((ours & ~independent).sum()),
        "broken_by_ours_alone": int((independent & ~ours).sum()),
    }


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A call's result, and the wall and processor time it took."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def network(options: argparse.Namespace, data: Data) -> tuple[nn.Module, dict[str, Any]]:
    """The Madry-trained network in eval mode, and how it was trained."""
    torch.manual_seed(options.seed)
    model = ConvNet(3, data.classes, WIDTH)
    if options.network is not None and options.network.exists():
        saved = torch.load(options.network, weights_only=True)
        model.load_state_dict(saved["model"])
        return model.eval(), saved["training"]
    settings = dataclasses.replace(CIFAR10, epochs=options.epochs)
    criterion = AdversarialTrainer(model, "madry", eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
    losses = train(criterion, data, settings, bf16=True, title="madry")
    training = {"method": "Madry", "epochs": options.epochs, "images": len(data.train[0]), "loss_per_epoch": losses}
    if options.network is not None:
        options.network.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "training": training}, options.network)
    return model.eval(), training


def shown(eps: float) -> str:
    """0.0313725 as 8/255."""
    return f"{eps * 255:g}/255"


def table(result: dict[str, Any]) -> str:
    """Images still right at each ε, time, and agreement with the independent runs."""
    radii = " | ".join(f"ε = {shown(radius)}" for radius in result["eps"])
    corner = f"of {result['images']} images ({result['clean_right']} right when clean)"
    lines = [
        f"| {corner} | {radii} | processor time | wall time |",
        "|---|" + "---|" * (len(result["eps"]) + 2),
    ]
    modes = list(result["ratio"])
    for mode in ("independent", *modes):
        spent = [f"{result['seconds'][mode][clock]:.0f} s" for clock in ("processor", "wall")]
        if mode in modes:
            spent = [
                f"{s} ({result['ratio'][mode][clock]:.2f})"
                for s, clock in zip(spent, ("processor", "wall"), strict=True)
            ]
        lines.append(f"| {mode} | " + " | ".join([*map(str, result["right"][mode]), *spent]) + " |")
    for mode in modes:
        same = " | ".join(f"{entry['same']:.1%}" for entry in result["agreement"][mode])
        lines.append(f"| {mode}: same verdict as the independent run | {same} | | |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, required=True)
    parser.add_argument("--network", type=Path, help="file of the trained network; made if it does not exist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--unfolded", action="store_true", help="ours also without folding BatchNorm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
