"""Train standard, Madry and SIP-AT networks on a few of scikit-learn's digits, and report their accuracy under AutoAttack.

    python examples/quickstart.py        # about two minutes on two cores; writes to out/quickstart-digits/

SIP-AT here is SIP-S: its salience maps come from the input gradient of the Madry network. The control has random maps with
as many salient elements. The maps restrict training only: AutoAttack (standard version) may change every element.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is

import torch
import torchattacks
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.paper.methods import RandomLike
from benchmarks.record import run_record, write_json, write_text
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import evaluate_robustness
from sip_plugin.salience import GradientSalience

METHODS = {"standard": "Standard", "madry": "Madry", "sip-at": "SIP-AT (SIP-S)", "random": "Control: random maps"}
LOOK_AT = (
    "Look at the clean column: what Madry loses against Standard, and what SIP-AT wins back. The control protects as many "
    "elements at random, so what it wins back is due to the smaller budget and not to salience."
)
BUDGET: dict[str, Any] = {"eps": 0.25, "alpha": 0.0625, "steps": 10}  # of the attacks in training, L∞
TEST_EPS = (0.05, 0.15, 0.25)
TRAINED_ON, SEEDS = 300, (0, 1, 2)
BATCH_SIZE, LEARNING_RATE, WIDTH = 64, 0.1, 16


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 handwritten digits that scikit-learn carries: 300 images and labels to train, then 1,497 to test.

    Images are ``(N, 1, 8, 8)`` in [0, 1]. With few to train on, robustness costs clean accuracy, as on natural images.
    """
    images, labels = sklearn_digits(return_X_y=True)
    split = train_test_split(images, labels, train_size=TRAINED_ON, stratify=labels, random_state=0)
    x, x_test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in split[:2])
    y, y_test = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    return x, y, x_test, y_test


def network(width: int = WIDTH) -> nn.Sequential:
    """Five convolutions with BatchNorm, for images of one channel in [0, 1]."""
    channels = ((1, width, 1), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1))
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (*channels, (2 * width, 4 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def train(
    criterion: AdversarialTrainer, images: Tensor, labels: Tensor, epochs: int, title: str, maps: Tensor | None = None
) -> list[float]:
    """An ordinary training loop; ``criterion`` is the only thing in it that knows of adversarial training.

    Returns:
        The mean loss of each epoch.
    """
    model = criterion.model.train()
    batches = len(images) // BATCH_SIZE
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    losses = []
    for epoch in tqdm(range(epochs), f"train {title}", unit="epoch"):
        criterion.set_epoch(epoch, epochs)
        total = 0.0
        for rows in torch.randperm(len(images)).split(BATCH_SIZE)[:batches]:
            # was criterion(model(images[rows]), labels[rows])
            loss = criterion(images[rows], labels[rows], None if maps is None else maps[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        losses.append(total / batches)
    model.eval()
    return losses


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Clean and robust accuracy in per cent, mean and standard deviation over the seeds, as Markdown."""
    columns = ["Training", "Clean (all test images)", "Clean (attacked images)", *(f"ε = {eps:g}" for eps in TEST_EPS)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for method, runs in results.items():
        accuracies = zip(*((r["clean_all"], r["clean_attacked"], *r["robust"].values()) for r in runs), strict=True)
        cells = [f"{100 * fmean(v):.1f}" + (f" ± {100 * stdev(v):.1f}" if len(v) > 1 else "") for v in accuracies]
        lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(images: Tensor, maps: Tensor, perturbations: dict[str, Tensor], path: Path) -> None:
    """Images and perturbations from -ε (blue) by 0 (white) to ε (red), salient pixels in a frame."""
    figure = Figure(figsize=(2 * (1 + len(perturbations)), 2 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(perturbations), squeeze=False)
    panels = {"image, salient pixels framed": images} | perturbations
    for column, (title, pictures) in enumerate(panels.items()):
        scale = {"cmap": "RdBu_r", "vmin": -BUDGET["eps"], "vmax": BUDGET["eps"]} if column else {"cmap": "gray"}
        axes[0, column].set_title(title, size="small")
        for ax, pixels, salient in zip(axes[:, column], pictures.cpu(), maps.cpu(), strict=True):
            shown = ax.imshow(pixels[0], **scale)
            ax.set_axis_off()
            for y, x in salient[0].nonzero().tolist():
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="tab:green", lw=2))
    figure.colorbar(shown, ax=axes, shrink=0.5, ticks=[-BUDGET["eps"], 0, BUDGET["eps"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def train_all(seed: int, options: argparse.Namespace) -> dict[str, tuple[nn.Module, list[float]]]:
    """A network trained by each method, from the same weights and with the same order of images; and its losses."""
    x, y = (part.to(options.device) for part in load_digits()[:2])
    trained: dict[str, tuple[nn.Module, list[float]]] = {}
    for method in METHODS:
        torch.manual_seed(seed)
        model: nn.Module = network().to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        maps = None
        if method in ("sip-at", "random"):
            maps = GradientSalience(trained["madry"][0])(x)
            if method == "random":  # as many elements, from a generator of its own
                control = RandomLike(maps, seed)
                maps = torch.stack([control[index] for index in range(len(control))])
        criterion = AdversarialTrainer(model, "sip-at" if method == "random" else method, **BUDGET)
        losses = train(criterion, x, y, options.epochs, f"{method}, seed {seed}", maps)
        trained[method] = model.to(memory_format=torch.contiguous_format), losses  # type: ignore[call-overload]
    return trained


def attack(
    method: str, number: int, trained: tuple[nn.Module, list[float]], options: argparse.Namespace
) -> dict[str, Any]:
    """What there is to say of a network; those of each seed are attacked on test images of their own."""
    (model, losses), seed = trained, options.seeds[number]
    x, y = (part.to(options.device) for part in load_digits()[2:])
    rows = slice(number * options.attacked, (number + 1) * options.attacked)
    report = evaluate_robustness(model, (x[rows], y[rows]), eps=TEST_EPS, seed=seed)
    report.to_json(options.out / f"{method}.{seed}.report.json")
    return {
        "seed": seed,
        "clean_all": (model(x).argmax(1) == y).float().mean().item(),
        "clean_attacked": report.clean_accuracy,
        "robust": {f"{eps:g}": value for eps, value in report.robust_accuracy.items()},
        "warnings": list(report.warnings),
        "training_loss_per_epoch": losses,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run everything. The result is also in the output folder, as JSON, Markdown and PNG, with each network's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--attacked", type=int, default=32, help="how many test images each seed's networks are attacked on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--processes", type=int, default=2, help="how many networks are trained, or attacked, at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart-digits"), help="folder of the results")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    torch.set_num_threads(1)  # for images this small, several threads take longer than one
    x, _, x_test, y_test = (part.to(options.device) for part in load_digits())
    print(f"{len(x)} training and {len(x_test)} test images; AutoAttack on {options.attacked} others for each seed.")

    processes: Any = nullcontext()
    if options.processes > 1:
        spawn = multiprocessing.get_context("spawn")
        processes = ProcessPoolExecutor(options.processes, spawn, torch.set_num_threads, (1,))
    with processes as pool:
        run = pool.map if pool else map
        trained = list(run(train_all, options.seeds, repeat(options)))
        jobs = [
            (method, number, models[method], options) for method in METHODS for number, models in enumerate(trained)
        ]
        found = run(attack, *zip(*jobs, strict=True))
        results = {method: [next(found) for _ in trained] for method in METHODS}
    standard, madry = (trained[-1][method][0] for method in ("standard", "madry"))

    settings = {"epochs": options.epochs, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "width": WIDTH}
    settings |= BUDGET | {"test_eps": TEST_EPS, "attacked": options.attacked, "seeds": list(options.seeds)}
    data = {"data": "scikit-learn load_digits", "train_images": len(x), "test_images": len(x_test)}
    result = run_record(options.seeds[0]) | data | {"settings": settings, "results": results}
    result["seconds"] = time.perf_counter() - began
    write_json(options.out / "result.json", result)
    write_text(options.out / "table.md", table(results))
    pgd, images = torchattacks.PGD(standard, **BUDGET), (x_test[:4], y_test[:4])
    maps = GradientSalience(madry)(images[0])
    changes = {"PGD": pgd(*images), "PGD in SIPWrapper": SIPWrapper(pgd, maps)(*images)}
    changes = {name: adversarial - images[0] for name, adversarial in changes.items()}
    picture(images[0], maps, changes, options.out / "picture.png")
    print(f"\nAccuracy in per cent; networks trained at ε = {BUDGET['eps']}.\n\n{table(results)}\n{LOOK_AT}")
    for method, runs in results.items():
        for warning in sorted({warning for run in runs for warning in run["warnings"]}):
            print(f"Warning ({METHODS[method]}): {warning}")
    print(f"{result['seconds']:.0f} s. Table, raw result and picture: {options.out}/")
    return result


if __name__ == "__main__":
    main()
