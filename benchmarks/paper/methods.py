"""The rows of the tables: a training method, and where its salience maps come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.paper.data import Maps
from benchmarks.paper.seeds import derived
from sip_plugin.salience import GradientSalience
from sip_plugin.salience.selection import top_mass_mask
from sip_plugin.training import FAT, MART, PART, SIPAT, TRADES, Madry, Method, Standard

Salience = Literal["teacher", "human", "random", "least"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: What the tables call it.
        method: Makes its method.
        salience: Its maps: of the ``teacher`` (SIP-S), ``human`` (SIP-H), or a control: as many elements at ``random``, or
            as many with the ``least`` gradient of the teacher.
    """

    label: str
    method: Callable[[], Method]
    salience: Salience | None = None


METHODS = {
    "standard": Row("Basic", Standard),
    "madry": Row("Madry", Madry),
    "trades": Row("TRADES", TRADES),
    "fat": Row("FAT", FAT),
    "part": Row("PART", PART),
    "mart": Row("MART", MART),
    "sip-s": Row("SIP-S", SIPAT, "teacher"),
    "sip-h": Row("SIP-H", SIPAT, "human"),
    "sip-trades": Row("SIP-S + TRADES", TRADES, "teacher"),
    "sip-fat": Row("SIP-S + FAT", FAT, "teacher"),
    "sip-random": Row("control: random map", SIPAT, "random"),
    "sip-least": Row("control: least gradient", SIPAT, "least"),
}
"""Name -> row."""


class RandomLike:
    """For each map another one with as many elements, at random: the same budget without any salience.

    Args:
        maps: The maps, each ``bool`` of any shape.
        seed: With the index it determines the map.
    """

    def __init__(self, maps: Maps, seed: int = 0) -> None:
        self.maps, self.seed = maps, seed

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Tensor:
        salience = self.maps[index]
        generator = torch.Generator().manual_seed(derived(self.seed, index))
        order = torch.randperm(salience.numel(), generator=generator)
        return salience.flatten()[order].view(salience.shape)


class LeastGradient:
    """For each image as many elements as its map by eq. 8 has, but those with the least gradient of the teacher."""

    def __init__(self, source: GradientSalience) -> None:
        self.source = source

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The maps of a batch ``(N, C, H, W)``: ``bool``, of the images' shape."""
        magnitude = self.source.magnitude(images, labels).flatten(1)
        assert self.source.mass is not None  # a share of the gradient's magnitude always is
        count = top_mass_mask(magnitude, self.source.mass).sum(1, keepdim=True)
        rank = torch.empty_like(magnitude, dtype=torch.int64)
        places = torch.arange(magnitude.shape[1], device=images.device).expand_as(rank)
        rank.scatter_(1, magnitude.argsort(dim=1, stable=True), places)
        return (rank < count).view(images.shape)
