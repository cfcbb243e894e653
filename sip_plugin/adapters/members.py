"""Attacks made of other attacks hand each member some of the batch's images; this says which. Knows no attack library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowFinder:
    """Finds images of a batch again by their exact values.

    Of several identical images the first one after the last image found is taken, since members get their images in
    the batch's order.

    Args:
        images: The batch, ``(N, C, H, W)``.
    """

    def __init__(self, images: Tensor) -> None:
        self.count = len(images)
        self.shape = images.shape[1:]
        size = int(images[0].numel()) * images.element_size() // min(images.element_size(), 8)
        self.factors = torch.randint(-(2**62), 2**62, (size,), generator=torch.Generator().manual_seed(0)) | 1
        self.places: dict[int, list[int]] = {}
        for place, print_ in enumerate(self._fingerprints(images)):
            self.places.setdefault(print_, []).append(place)

    def find(self, images: Tensor) -> Tensor:
        """The places of some of the batch's images, int64 ``(n,)`` on their device.

        Raises:
            ValueError: If one of them is not of the batch.
        """
        found: list[int] = []
        for print_ in self._fingerprints(images):
            places = self.places.get(print_)
            if places is None:
                raise ValueError("An attack handed its member an image that is not one of the batch's clean images.")
            last = found[-1] if found else -1
            found.append(next((place for place in places if place > last), places[0]))
        return torch.tensor(found, device=images.device)

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
        if name == self.__dict__["method"]:
            return self
        return getattr(self.__dict__["attack"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["attack"], name, value)

    def release(self) -> Any:
        """The member itself; the stand-in forgets the batch, whoever still holds it."""
        self.__dict__["run"] = None
        return self.__dict__["attack"]
