"""The networks whose gradients become maps: trained once, kept with the conditions of their training."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.paper.networks import ConvNet
from benchmarks.small import Data, Settings, accuracy, train
from sip_plugin import AdversarialTrainer


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network in eval mode, and the record of its training."""

    network: nn.Module
    conditions: dict[str, Any]
    seconds: float
    losses: list[float]


def trained(method: str, data: Data, settings: Settings, *, seed: int, bf16: bool, folder: Path) -> Trained:
    """A network trained by ``method`` (``"standard"``, ``"madry"``), taken from ``folder`` if it is there.

    Raises:
        ValueError: If the one in ``folder`` was trained on other data, with other settings or another seed.
    """
    conditions = {"method": method, "data": data.source, "seed": seed, "bf16": bf16, **dataclasses.asdict(settings)}
    path = folder / f"{method}.pt"
    torch.manual_seed(seed)
    network = ConvNet(data.train[0].shape[1], data.classes, settings.width)
    if not path.exists():
        _save(path, conditions, network, *_train(network, method, data, settings, bf16))
    kept = torch.load(path, weights_only=True)
    if kept["conditions"] != conditions:
        raise ValueError(f"{path} was trained with {kept['conditions']}, not with {conditions}. Choose another --work.")
    network.load_state_dict(kept["network"])
    return Trained(network.eval(), conditions, kept["seconds"], kept["losses"])


def _train(network: nn.Module, method: str, data: Data, settings: Settings, bf16: bool) -> tuple[float, list[float]]:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = AdversarialTrainer(network, method, eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
    began = time.perf_counter()
    losses = train(criterion, data, settings, bf16=bf16, title=method)
    return time.perf_counter() - began, losses


def _save(path: Path, conditions: dict[str, Any], network: nn.Module, seconds: float, losses: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"conditions": conditions, "network": network.state_dict(), "seconds": seconds, "losses": losses}, part)
    part.replace(path)


def accuracies(
    network: nn.Module, images: Tensor, labels: Tensor, settings: Settings, *, seed: int
) -> dict[str, float]:
    """Clean accuracy, and accuracy under PGD (20 steps, free to change every element)."""
    torch.manual_seed(seed)
    attack = torchattacks.PGD(network, eps=settings.eps, alpha=settings.alpha, steps=20)
    adversarial = torch.cat([attack(x, y) for x, y in zip(images.split(128), labels.split(128), strict=True)])
    return {
        "clean": accuracy(network, images, labels),
        "pgd20": accuracy(network, adversarial, labels),
    }
