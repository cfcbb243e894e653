"""The main job: train standard, Madry and SIP-AT networks, attack them with AutoAttack, print the table, save a picture.

    python examples/quickstart.py                                       # scikit-learn's digits, a few minutes on two cores
    python examples/quickstart.py --dataset cifar10 --data-dir DIR      # CIFAR-10, add --download to fetch it

SIP-AT here is SIP-S: its salience maps come from the gradient of the Madry network. The evaluation is never restricted by
them: AutoAttack (standard version) may change every element.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.record import run_record, write_json, write_text
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import evaluate_robustness
from sip_plugin.salience import GradientSalience

METHODS = ("standard", "madry", "sip-at")
LABELS = {"standard": "Standard", "madry": "Madry", "sip-at": "SIP-AT (SIP-S)"}


@dataclasses.dataclass
class Data:
    """A data set in memory: images ``(N, C, H, W)`` in [0, 1], labels ``(N,)``, and where they came from."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    source: str


@dataclasses.dataclass
class Settings:
    """How the job runs on one data set."""

    epochs: int
    batch_size: int
    learning_rate: float
    eps: float
    alpha: float
    steps: int
    test_eps: tuple[float, ...]
    attacked: int
    width: int
    augment: bool
    threads: int | None = None


SETTINGS = {
    "digits": Settings(
        epochs=20,
        batch_size=64,
        learning_rate=0.1,
        eps=0.2,
        alpha=0.05,
        steps=10,
        test_eps=(0.05, 0.1, 0.15, 0.2),
        attacked=128,
        width=16,
        augment=False,
        threads=1,  # handing such small images out to several threads takes longer than working on them
    ),
    "cifar10": Settings(
        epochs=30,
        batch_size=64,
        learning_rate=0.1,
        eps=8 / 255,
        alpha=2 / 255,
        steps=10,
        test_eps=(1 / 255, 2 / 255, 4 / 255, 8 / 255),
        attacked=256,
        width=32,
        augment=True,
    ),
}


def load_digits() -> Data:
    """The 1,797 handwritten digits, 8×8, that scikit-learn carries: 1,297 to train, 500 to test."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    images, labels = sklearn_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
    x, x_test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in split[:2])
    y, y_test = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    return Data((x, y), (x_test, y_test), 10, "scikit-learn load_digits")


def load_cifar10(root: str, *, download: bool, unofficial: str | None) -> Data:
    """CIFAR-10 through torchvision, which checks the official files.

    Args:
        root: The folder that holds ``cifar-10-batches-py``.
        download: Fetch the archive if it is not there.
        unofficial: The name of a folder under ``root`` in the same layout that is not the official archive.
    """
    from torchvision.datasets import CIFAR10

    if unofficial is not None:

        class CIFAR10(CIFAR10):  # type: ignore[no-redef,misc]
            base_folder = unofficial
            train_list: ClassVar = [[f"data_batch_{k}", None] for k in range(1, 6)]
            test_list: ClassVar = [["test_batch", None]]
            meta: ClassVar = {"filename": "batches.meta", "key": "label_names", "md5": None}

    def tensors(train: bool) -> tuple[Tensor, Tensor]:
        part = CIFAR10(root, train=train, download=download)
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 255, torch.tensor(part.targets)

    source = "official archive" if unofficial is None else f"not the official archive: {unofficial}"
    return Data(tensors(True), tensors(False), 10, f"CIFAR-10, {source}")


class ConvNet(nn.Sequential):
    """Five convolutions with BatchNorm; takes images in [0, 1]."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in (
            (channels, width, 1),
            (width, width, 1),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 1),
            (2 * width, 4 * width, 2),
        ):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def augmented(images: Tensor) -> Tensor:
    """A random crop of each image after a padding of 4, and a random flip.

    Salience maps are made of the images that come out, so they cannot be out of place.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (count, 1, 1, 1)) + torch.arange(height).view(1, 1, -1, 1)
    columns = torch.randint(0, 9, (count, 1, 1, 1)) + torch.arange(width)
    crops = padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, crops.flip(3), crops)


def progress(**options: Any) -> tqdm[Any]:
    """A progress bar; where the output is a file, a line now and then."""
    return tqdm(mininterval=0.2 if sys.stderr.isatty() else 20, dynamic_ncols=True, **options)


def train(
    criterion: AdversarialTrainer, data: Data, settings: Settings, *, device: str, bf16: bool, title: str
) -> list[float]:
    """An ordinary training loop; ``criterion`` is the only thing in it that knows of adversarial training."""
    model = criterion.model
    images, labels = data.train
    batches = len(images) // settings.batch_size
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * batches
    )
    losses = []
    with progress(total=settings.epochs * batches, desc=f"train {title}", unit="batch") as bar:
        for epoch in range(settings.epochs):
            criterion.set_epoch(epoch, settings.epochs)
            model.train()
            total = 0.0
            for rows in torch.randperm(len(images)).split(settings.batch_size)[:batches]:
                x, y = images[rows], labels[rows]
                if settings.augment:
                    x = augmented(x)
                x = x.to(device, memory_format=torch.channels_last)
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    loss = criterion(x, y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.item()
                bar.update()
            losses.append(total / batches)
            bar.set_postfix(epoch=f"{epoch + 1}/{settings.epochs}", loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: str) -> float:
    """Share of images classified correctly."""
    right = [
        (model(x.to(device)).argmax(1).cpu() == y).float()
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    ]
    return torch.cat(right).mean().item()


def table(results: dict[str, dict[str, Any]], settings: Settings) -> str:
    """Clean and robust accuracy in per cent, as Markdown."""
    head = [
        "Training",
        "Clean (all test images)",
        "Clean (attacked images)",
        *(f"ε = {shown(e)}" for e in settings.test_eps),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, result in results.items():
        values = [result["clean_all"], result["clean_attacked"], *result["robust"].values()]
        lines.append(f"| {LABELS[method]} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def shown(eps: float) -> str:
    """0.0313725 as 8/255, 0.05 as 0.05."""
    units = eps * 255
    return f"{round(units)}/255" if abs(units - round(units)) < 1e-9 and units <= 16 else f"{eps:g}"


def picture(path: Path, model: nn.Module, mask_fn: GradientSalience, data: Data, settings: Settings) -> None:
    """Images, their salience maps, PGD's perturbation bare and projected (×10, around grey), the adversarial images."""
    device = next(model.parameters()).device
    right = model(data.test[0][:200].to(device)).argmax(1).cpu() == data.test[1][:200]
    rows = right.nonzero().flatten()[:6]
    images, labels = data.test[0][rows].to(device), data.test[1][rows].to(device)
    attack = torchattacks.PGD(model, eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
    maps = mask_fn(images, labels)
    bare = attack(images, labels)
    wrapped = SIPWrapper(attack, mask_fn)(images, labels)
    columns = {
        "image": images,
        "salience map": maps.float(),
        "PGD's perturbation ×10": 0.5 + 10 * (bare - images),
        "projected perturbation ×10": 0.5 + 10 * (wrapped - images),
        "adversarial image (SIP)": wrapped,
    }
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(2.1 * len(columns), 2.05 * len(rows) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for column, (title, batch) in enumerate(columns.items()):
        for row, image in enumerate(batch.detach().cpu().clamp(0, 1).permute(0, 2, 3, 1)):
            axis = axes[row][column]
            axis.imshow(image.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """The command line; options left out take the data set's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, default="digits")
    parser.add_argument("--data-dir", help="folder that holds cifar-10-batches-py (cifar10 only)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is not in --data-dir")
    parser.add_argument(
        "--unofficial-data",
        metavar="FOLDER",
        help="folder under --data-dir in CIFAR-10's layout that is not the archive",
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--attacked", type=int, help="how many test images AutoAttack is run on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16")
    parser.add_argument("--out", type=Path, help="folder of the results (default: out/quickstart-DATASET)")
    options = parser.parse_args(arguments)
    if options.dataset == "cifar10" and options.data_dir is None:
        parser.error(
            "--dataset cifar10 needs --data-dir (the folder that holds cifar-10-batches-py); add --download to fetch it"
        )
    for name in ("epochs", "attacked"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    given = {name: getattr(options, name) for name in ("epochs", "attacked") if getattr(options, name) is not None}
    options.out = options.out or Path("out") / f"quickstart-{options.dataset}"
    return options, dataclasses.replace(SETTINGS[options.dataset], **given)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole job; the result is also in the output folder as JSON, Markdown and PNG, with each network's report."""
    options, settings = parse(arguments)
    began = time.perf_counter()
    if options.dataset == "digits":
        data = load_digits()
    else:
        data = load_cifar10(options.data_dir, download=options.download, unofficial=options.unofficial_data)
    settings.attacked = min(settings.attacked, len(data.test[0]))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = options.device
    models: dict[str, nn.Module] = {}
    results: dict[str, dict[str, Any]] = {}
    attacked = data.test[0][: settings.attacked], data.test[1][: settings.attacked]
    print(
        f"{data.source}: {len(data.train[0])} training images, {len(data.test[0])} test images; AutoAttack (standard, L∞) "
        f"on the first {settings.attacked} of them."
    )
    for method in METHODS:
        torch.manual_seed(options.seed)  # the same initial weights and order of images for each method
        model = ConvNet(data.train[0].shape[1], data.classes, settings.width)
        model = models[method] = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        salience = GradientSalience(models["madry"]) if method == "sip-at" else None
        criterion = AdversarialTrainer(
            model, method, salience=salience, eps=settings.eps, alpha=settings.alpha, steps=settings.steps
        )
        start = time.perf_counter()
        losses = train(criterion, data, settings, device=device, bf16=options.bf16, title=method)
        trained = time.perf_counter()
        model.to(memory_format=torch.contiguous_format)
        report = evaluate_robustness(model, attacked, eps=settings.test_eps, seed=options.seed)
        report.to_json(options.out / f"{method}.report.json")
        results[method] = {
            "clean_all": accuracy(model, *data.test, device),
            "clean_attacked": report.clean_accuracy,
            "robust": {shown(eps): value for eps, value in report.robust_accuracy.items()},
            "warnings": list(report.warnings),
            "training_loss_per_epoch": losses,
            "training_seconds": trained - start,
            "attack_seconds": report.seconds,
        }
    picture(options.out / "picture.png", models["standard"], GradientSalience(models["madry"]), data, settings)
    text = table(results, settings)
    result = {
        **run_record(options.seed),
        "data": data.source,
        "train_images": len(data.train[0]),
        "test_images": len(data.test[0]),
        "settings": dataclasses.asdict(settings) | {"bf16": options.bf16, "device": device},
        "evaluation": report.settings["attack"] | {"norm": report.norm, "restricted_by_maps": False},
        "parameters": sum(p.numel() for p in models["madry"].parameters()),
        "results": results,
        "seconds": time.perf_counter() - began,
    }
    write_json(options.out / "result.json", result)
    write_text(options.out / "table.md", text)
    print(
        f"\nAccuracy in per cent; AutoAttack on {settings.attacked} test images; trained at ε = {shown(settings.eps)}.\n"
    )
    print(text)
    for method, found in results.items():
        for warning in found["warnings"]:
            print(f"Warning ({LABELS[method]}): {warning}")
    print(f"{result['seconds']:.0f} s. Table, raw result and picture: {options.out}/")
    return result


if __name__ == "__main__":
    main()
