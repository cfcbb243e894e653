"""Which images a participant sees, at which levels and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

IMAGES = 10
"""Of different classes, for each participant; each is shown at every level."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """An image's id and the level ε·255 at which it is shown; 0 is the clean image."""

    image: str
    level: float


@dataclass(frozen=True)
class Assignment:
    """The attacked network whose images a participant sees, and the trials in their order."""

    version: str
    trials: tuple[Trial, ...]


def assign(manifest: Mapping[str, Any], seed: int, participant: int) -> Assignment:
    """The trials of participant 0, 1, 2, … of a study: a pure function of its arguments.

    Ten images of different classes, each at every level, in an order drawn at random from those in which an image never
    follows itself. Over the first n participants, for every n, all classes, all images and all levels are shown equally
    often, within one; with one or two versions and a multiple of ten classes this holds within each version too.

    Args:
        manifest: Its ``images`` (``id`` and ``class``), ``levels`` and ``versions`` are used.
        seed: Of the study.
        participant: From 0, in the order of arrival.

    Raises:
        ValueError: If there are fewer than ten classes, or some have more images than others.
    """
    pool: dict[Any, list[str]] = {}
    for image in manifest["images"]:
        pool.setdefault(image["class"], []).append(image["id"])
    each = len(next(iter(pool.values()), ()))
    if len(pool) < IMAGES or any(len(ids) != each for ids in pool.values()):
        raise ValueError(f"The pool must have at least {IMAGES} classes, all with the same number of images.")
    # The classes come round and round in one order, so any ten in a row differ; in each round a class shows its next image.
    # A pass is the fewest rounds that show every image equally often to a whole number of participants. A cycle is a pass
    # for each version, in which every group of images meets all versions. The next cycle has another order.
    versions: Sequence[str] = manifest["versions"]
    rounds = math.lcm(each, IMAGES // math.gcd(len(pool), IMAGES))
    groups = rounds * len(pool) // IMAGES
    cycle, place = divmod(participant, groups * len(versions))
    turn, group = divmod(place, groups)
    round_, chunk = divmod(group, len(pool) // IMAGES)
    version = _shuffled(versions, f"{seed}/{cycle}/versions")[(chunk + round_ + turn) % len(versions)]
    classes = _shuffled(list(pool), f"{seed}/{cycle}/classes")
    chosen = []
    for index in range(IMAGES * group, IMAGES * (group + 1)):
        name = classes[index % len(classes)]
        chosen.append(_shuffled(pool[name], f"{seed}/{cycle}/{name}")[index // len(classes) % each])
    trials = [Trial(image, level) for image in chosen for level in manifest["levels"]]
    return Assignment(version, tuple(_order(trials, Random(f"{seed}/{participant}"))))


def _shuffled(items: Sequence[_T], key: str) -> list[_T]:
    """The items in random order. Of Python's generators ``random()`` alone promises the same numbers in later versions."""
    random, left = Random(key), list(items)
    for k in range(len(left)):
        other = k + int(random.random() * (len(left) - k))
        left[k], left[other] = left[other], left[k]
    return left


def _order(trials: Sequence[Trial], random: Random) -> list[Trial]:
    """One of the orders in which no image follows itself, all equally likely: drawn again until it is one of them."""
    while True:
        order = list(trials)
        for k in range(len(order)):
            other = k + int(random.random() * (len(order) - k))
            order[k], order[other] = order[other], order[k]
            if k and order[k].image == order[k - 1].image:
                break
        else:
            return order
