"""The images, the network and the maps of the comparison, and how many images one attack leaves correct."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer

Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]
"""What makes the bare attack's adversarial images, and what makes the projected one's."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all attacks share: a network, images that it classifies correctly, their labels and maps, its training data."""

    model: nn.Module
    x: Tensor
    y: Tensor
    salience: Tensor
    training: TensorDataset

    def first(self, count: int) -> Setting:
        """The same with its first images only."""
        return dataclasses.replace(self, x=self.x[:count], y=self.y[:count], salience=self.salience[:count])

    def with_one_map(self) -> Setting:
        """The same with the first image's map for all of them."""
        return dataclasses.replace(self, salience=self.salience[:1].expand_as(self.x))

    def targets(self) -> Tensor:
        """A wrong class for each image."""
        return (self.y + 1) % 10

    def starting_points(self) -> Tensor:
        """For each image a training image that is taken for another class, by itself and in the image's free elements."""
        donors = self.training.tensors[0]
        points = []
        with torch.no_grad():
            alone = self.model(donors).argmax(1)
            for image, label, salience in zip(self.x, self.y, self.salience, strict=True):
                mixed = self.model(torch.where(salience, image, donors)).argmax(1)
                points.append(donors[((alone != label) & (mixed != label)).nonzero()[0, 0]])
        return torch.stack(points)

    def correct(self, batch: Tensor) -> int:
        """How many images are classified correctly; one with NaN counts as unchanged."""
        unusable = batch.isnan().flatten(1).any(1)
        batch = torch.where(unusable.view(-1, 1, 1, 1), self.x, batch)
        with torch.no_grad():
            return int((self.model(batch).argmax(1) == self.y).sum())


def setting(count: int, seed: int) -> Setting:
    """The first ``count`` digits that the network was not trained on and classifies correctly, half of each salient."""
    torch.manual_seed(seed)
    images, labels = digits()
    model = trained_network(images[:1500], labels[:1500])
    with torch.no_grad():
        right = (model(images[1500:]).argmax(1) == labels[1500:]).nonzero().flatten()[:count] + 1500
    x, y = images[right], labels[right]
    return Setting(model, x, y, torch.rand(x.shape) < 0.5, TensorDataset(images[:1500], labels[:1500]))


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits as noisy colour images, (1797, 3, 16, 16) in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    images = F.interpolate(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, scale_factor=2)
    noise = torch.rand(len(images), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return 0.1 + 0.7 * images + 0.15 * noise, torch.tensor(labels)


def trained_network(images: Tensor, labels: Tensor) -> nn.Module:
    """An ordinary, not a robust, classifier."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    criterion = AdversarialTrainer(model, "standard")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for x, y in DataLoader(TensorDataset(images, labels), batch_size=50, shuffle=True):
            optimizer.zero_grad()
            criterion(x, y).backward()
            optimizer.step()
    return model.eval()


def seeded(seed: int, attack: Callable[[], Tensor]) -> Tensor:
    """An attack's result under one seed for every generator that attacks draw from."""

    class Seeded(np.random.RandomState):
        """ART makes generators of its own without a seed."""

        def __init__(self, own: Any = None) -> None:
            super().__init__(seed if own is None else own)

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    # CMA-ES, on which ART's ThresholdAttack is built, seeds NumPy anew by the clock.
    with mock.patch.object(np.random, "RandomState", Seeded), mock.patch.object(np.random, "seed"):
        return attack()


def compared(ways: Ways, part: Setting, seed: int) -> dict[str, int]:
    """How many images stay correct under the bare attack, its result masked late, and the projected attack."""
    bare, projected = (seeded(seed, way) for way in ways)
    assert torch.equal(projected[part.salience], part.x[part.salience])
    late = torch.where(part.salience, part.x, bare)
    return {"bare": part.correct(bare), "late": part.correct(late), "projected": part.correct(projected)}
