"""The rows of the tables: a training method, and where its salience maps come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.paper.data import Maps
from benchmarks.paper.seeds import derived
from sip_plugin.salience import GradientSalience
from sip_plugin.salience.selection import top_mass_mask
from sip_plugin.training import FAT, MART, PART, SIPAT, TRADES, Madry, Method, Standard, rising

Salience = Literal["teacher", "human", "random", "least", "same-class", "other-class"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: What the tables call it.
        method: Makes its method.
        salience: Its maps: of the ``teacher`` (SIP-S), ``human`` (SIP-H), or a control: as many elements at ``random``, as
            many with the ``least`` gradient of the teacher, or those of another image of the ``same-class`` or of an
            ``other-class``.
        mass: The share of the teacher's gradient that the map of an image holds.
        per_pixel: Whether all channels of a pixel are salient or none.
        against: The row that it is compared with, beside Madry's.
    """

    label: str
    method: Callable[[], Method]
    salience: Salience | None = None
    mass: float = 0.5
    per_pixel: bool = False
    against: str | None = None


_RISING = partial(FAT, rising(0, 1, 3, None))

METHODS = {
    "standard": Row("Basic", Standard),
    "madry": Row("Madry", Madry),
    "trades": Row("TRADES", TRADES),
    "fat": Row("FAT", FAT),
    "fat-rising": Row("FAT, rising τ", _RISING, against="fat"),
    "part": Row("PART", PART),
    "mart": Row("MART", MART),
    "sip-s": Row("SIP-S", SIPAT, "teacher", against="sip-random"),
    "sip-h": Row("SIP-H", SIPAT, "human"),
    "sip-trades": Row("SIP-S + TRADES", TRADES, "teacher", against="trades"),
    "sip-fat": Row("SIP-S + FAT", FAT, "teacher", against="fat"),
    "sip-fat-rising": Row("SIP-S + FAT, rising τ", _RISING, "teacher", against="fat-rising"),
    "sip-s-pixel": Row("SIP-S per pixel", SIPAT, "teacher", per_pixel=True, against="sip-random-pixel"),
    "sip-s-25": Row("SIP-S, mass 0.25", SIPAT, "teacher", mass=0.25, against="sip-random-25"),
    "sip-s-75": Row("SIP-S, mass 0.75", SIPAT, "teacher", mass=0.75, against="sip-random-75"),
    "sip-random": Row("control: random map", SIPAT, "random"),
    "sip-least": Row("control: least gradient", SIPAT, "least", against="sip-random"),
    "sip-random-pixel": Row("control: random pixels", SIPAT, "random", per_pixel=True),
    "sip-random-25": Row("control: random map, mass 0.25", SIPAT, "random", mass=0.25),
    "sip-random-75": Row("control: random map, mass 0.75", SIPAT, "random", mass=0.75),
    "sip-same-class": Row("control: another image's map, same class", SIPAT, "same-class", against="sip-s"),
    "sip-other-class": Row("control: another image's map, another class", SIPAT, "other-class", against="sip-s"),
}
"""Name -> row."""


class RandomLike:
    """For each map another one with as many elements, at random: the same budget without any salience.

    Args:
        maps: The maps, each ``bool``, ``(C, H, W)``. One whose channels agree gets whole pixels.
        seed: With the index it determines the map.
    """

    def __init__(self, maps: Maps, seed: int = 0) -> None:
        self.maps, self.seed = maps, seed

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Tensor:
        salience = self.maps[index]
        part = salience[:1] if torch.equal(salience, salience[:1].expand_as(salience)) else salience
        generator = torch.Generator().manual_seed(derived(self.seed, index))
        order = torch.randperm(part.numel(), generator=generator)
        return part.flatten()[order].view(part.shape).expand_as(salience)


class AnotherImages:
    """For each image the map of another one, drawn at random: salience that is not the image's own.

    Args:
        maps: The maps.
        labels: Of their images.
        same_class: Draw from the other images of the image's class, rather than from those of the other classes.
        seed: With the index it determines which.
    """

    def __init__(self, maps: Maps, labels: Tensor, same_class: bool, seed: int = 0) -> None:
        self.maps, self.labels, self.same_class, self.seed = maps, labels, same_class, seed

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Tensor:
        allowed = (self.labels == self.labels[index]) == self.same_class
        allowed[index] = False
        others = allowed.nonzero().flatten()
        generator = torch.Generator().manual_seed(derived(self.seed, index))
        return self.maps[int(others[torch.randint(len(others), (), generator=generator)])]


class LeastGradient:
    """For each image as many elements as its map by eq. 8 has, but those with the least gradient of the teacher."""

    def __init__(self, source: GradientSalience) -> None:
        self.source = source

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The maps of a batch ``(N, C, H, W)``: ``bool``, of the images' shape."""
        magnitude = self.source.magnitude(images, labels).flatten(1)
        assert self.source.mass is not None  # a share of the gradient's magnitude always is
        count = top_mass_mask(magnitude, self.source.mass).sum(1, keepdim=True)
        rank = magnitude.argsort(dim=1, stable=True).argsort(dim=1)
        return (rank < count).view(images.shape)
