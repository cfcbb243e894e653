"""Train standard, Madry and SIP-AT networks on scikit-learn's digits, and report their robust accuracy under AutoAttack.

    python examples/quickstart.py        # about five minutes on one core; writes to out/quickstart-digits/

SIP-AT here is SIP-S: its salience maps come from the input gradient of the Madry network. The maps restrict training only:
AutoAttack (standard version) may change every element.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is

import torch
import torchattacks
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.record import run_record, write_json, write_text
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import evaluate_robustness
from sip_plugin.salience import GradientSalience, plot_salience

METHODS = {"standard": "Standard", "madry": "Madry", "sip-at": "SIP-AT (SIP-S)"}
BUDGET: dict[str, Any] = {"eps": 0.2, "alpha": 0.05, "steps": 10}  # of the attacks in training, L∞
TEST_EPS = (0.05, 0.1, 0.15, 0.2)
BATCH_SIZE, LEARNING_RATE, WIDTH = 64, 0.1, 16


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 handwritten digits that scikit-learn carries: 1,297 images and labels to train, then 500 to test.

    Images are ``(N, 1, 8, 8)`` in [0, 1].
    """
    images, labels = sklearn_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
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


def train(criterion: AdversarialTrainer, images: Tensor, labels: Tensor, epochs: int, title: str) -> list[float]:
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
            loss = criterion(images[rows], labels[rows])  # was criterion(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        losses.append(total / batches)
    model.eval()
    return losses


def table(results: dict[str, dict[str, Any]]) -> str:
    """Clean and robust accuracy in per cent, as Markdown."""
    columns = ["Training", "Clean (all test images)", "Clean (attacked images)", *(f"ε = {eps:g}" for eps in TEST_EPS)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for method, result in results.items():
        accuracies = (result["clean_all"], result["clean_attacked"], *result["robust"].values())
        lines.append(f"| {METHODS[method]} | " + " | ".join(f"{100 * value:.1f}" for value in accuracies) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run everything. The result is also in the output folder, as JSON, Markdown and PNG, with each network's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--attacked", type=int, default=128, help="how many test images AutoAttack is run on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart-digits"), help="folder of the results")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    torch.set_num_threads(1)  # for images this small, several threads take longer than one
    x, y, x_test, y_test = (part.to(options.device) for part in load_digits())
    attacked = x_test[: options.attacked], y_test[: options.attacked]
    print(f"{len(x)} training and {len(x_test)} test images; AutoAttack on the first {len(attacked[0])} test images.")

    models: dict[str, nn.Module] = {}
    results: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        torch.manual_seed(options.seed)  # the same initial weights and order of images for each method
        model = models[method] = network().to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        salience = GradientSalience(models["madry"]) if method == "sip-at" else None
        losses = train(AdversarialTrainer(model, method, salience=salience, **BUDGET), x, y, options.epochs, method)
        model.to(memory_format=torch.contiguous_format)
        report = evaluate_robustness(model, attacked, eps=TEST_EPS, seed=options.seed)
        report.to_json(options.out / f"{method}.report.json")
        results[method] = {
            "clean_all": (model(x_test).argmax(1) == y_test).float().mean().item(),
            "clean_attacked": report.clean_accuracy,
            "robust": {f"{eps:g}": value for eps, value in report.robust_accuracy.items()},
            "warnings": list(report.warnings),
            "training_loss_per_epoch": losses,
        }

    settings = {"epochs": options.epochs, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "width": WIDTH}
    settings |= BUDGET | {"test_eps": TEST_EPS, "attacked": len(attacked[0])}
    data = {"data": "scikit-learn load_digits", "train_images": len(x), "test_images": len(x_test)}
    result = run_record(options.seed) | data | {"settings": settings, "results": results}
    result["seconds"] = time.perf_counter() - began
    write_json(options.out / "result.json", result)
    write_text(options.out / "table.md", table(results))
    attack, images = torchattacks.PGD(models["standard"], **BUDGET), (x_test[:6], y_test[:6])
    maps = GradientSalience(models["madry"])(images[0])
    both = {"adversarial": attack(*images), "projected": SIPWrapper(attack, maps)(*images)}
    plot_salience(images[0], maps, **both, path=options.out / "picture.png")
    print(f"\nAccuracy in per cent; networks trained at ε = {BUDGET['eps']}.\n\n{table(results)}")
    for method, found in results.items():
        for warning in found["warnings"]:
            print(f"Warning ({METHODS[method]}): {warning}")
    print(f"{result['seconds']:.0f} s. Table, raw result and picture: {options.out}/")
    return result


if __name__ == "__main__":
    main()
