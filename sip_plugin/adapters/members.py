"""Attacks made of other attacks hand each member some of the batch's images; this says which. Knows no attack library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowFinder:
    """Finds images of a batch again by their exact values, and with them their maps.

    Of several identical images in part of a batch it cannot be told which one is meant; they get all their maps together,
    so that no image is changed where its own map forbids it.

    Args:
        images: The batch, ``(N, C, H, W)``.
        salience: Its binary map, broadcastable to the images.
    """

    def __init__(self, images: Tensor, salience: Tensor) -> None:
        self.count = len(images)
        self.salience = salience
        size = int(images[0].numel()) * images.element_size() // min(images.element_size(), 8)
        self.factors = torch.randint(-(2**62), 2**62, (size,), generator=torch.Generator().manual_seed(0)) | 1
        self.places: dict[int, list[int]] = {}
        for place, print_ in enumerate(self._fingerprints(images)):
            self.places.setdefault(print_, []).append(place)

    def maps(self, images: Tensor) -> Tensor:
        """The maps of some of the batch's images, in the order given.

        Raises:
            ValueError: If one of them is not of the batch.
        """
        prints = self._fingerprints(images)
        if any(print_ not in self.places for print_ in prints):
            raise ValueError("An attack handed its member an image that is not one of the batch's clean images.")
        if len(self.salience) == 1 or len(images) == self.count:
            return self.salience
        places = [self.places[print_] for print_ in prints]
        maps = self.salience[[several[0] for several in places]]
        for row, several in enumerate(places):
            if len(several) > 1:
                maps[row] = self.salience[several].any(0)
        return maps

    def _fingerprints(self, images: Tensor) -> list[int]:
        # Integer sums do not depend on the order of summation, so an image's is the same in any batch and on any device.
        factors = self.factors.to(images.device)
        prints: list[int] = []
        for part in images.detach().contiguous().flatten(1).split(64):
            prints += (part.view(_INTEGERS[images.element_size()]).long() * factors).sum(1).tolist()
        return prints


class Member:
    """Stands in for a member during a call: what it is asked to attack goes to ``run``, everything else to the member.

    Args:
        attack: The member.
        run: Called as ``run(attack, images, *args, **kwargs)``.
        method: The name under which the composite calls its members, besides calling them directly.
    """

    def __init__(self, attack: Any, run: Callable[..., Any], method: str = "forward") -> None:
        self.__dict__.update(attack=attack, run=run, method=method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the member would be called with goes to ``run``."""
        return self.__dict__["run"](self.__dict__["attack"], *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "attack" not in self.__dict__ or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copy and pickle ask before there is anything to ask
        if name == self.__dict__["method"]:
            return self
        return getattr(self.__dict__["attack"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["attack"], name, value)

    def release(self) -> Any:
        """The member itself; the stand-in forgets the batch, whoever still holds it."""
        self.__dict__["run"] = None
        return self.__dict__["attack"]
