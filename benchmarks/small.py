"""Data in memory and a training loop for a small network, for the benchmarks of salience maps and of the evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.paper.data import Source, load_splits
from sip_plugin import AdversarialTrainer


@dataclasses.dataclass(frozen=True)
class Data:
    """Images ``(N, C, H, W)`` in [0, 1] with labels ``(N,)``, and where they came from."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    source: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained; ε, α and steps are those of its attack (L∞)."""

    epochs: int
    batch_size: int
    learning_rate: float
    eps: float
    alpha: float
    steps: int
    width: int
    augment: bool


CIFAR10 = Settings(
    epochs=30, batch_size=64, learning_rate=0.1, eps=8 / 255, alpha=2 / 255, steps=10, width=32, augment=True
)


def load(name: str, source: Source) -> Data:
    """All images of ``"cifar10"`` or ``"digits"``; for errors see :func:`benchmarks.paper.data.load_splits`."""
    splits: Any = load_splits(name, source, validation_share=0.0, seed=0)
    return Data(splits.train.dataset.tensors, splits.test.tensors, splits.classes, splits.origin)


def train(criterion: AdversarialTrainer, data: Data, settings: Settings, *, bf16: bool, title: str) -> list[float]:
    """Train on the CPU, with one cycle of the learning rate.

    Returns:
        The mean loss of each epoch.
    """
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
    for epoch in tqdm(range(settings.epochs), f"train {title}", unit="epoch"):
        criterion.set_epoch(epoch, settings.epochs)
        model.train()
        total = 0.0
        for rows in torch.randperm(len(images)).split(settings.batch_size)[:batches]:
            x = augmented(images[rows]) if settings.augment else images[rows]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = criterion(x.to(memory_format=torch.channels_last), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        losses.append(total / batches)
    model.eval()
    return losses


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


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified correctly."""
    right = [(model(x).argmax(1) == y).float() for x, y in zip(images.split(250), labels.split(250), strict=True)]
    return torch.cat(right).mean().item()
