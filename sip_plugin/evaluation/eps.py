"""Radii ε: how they are written, and a dict that finds them however they were computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, TypeVar

Value = TypeVar("Value")

NORMS = {"Linf": "L∞", "L2": "L2"}


class EpsDict(dict[float, Value]):
    """A dict from ε to a value that also finds an ε which was computed another way, such as ``np.float32(8 / 255)``.

    Raises:
        KeyError: If there is nothing within a relative 1e-6; it lists the radii there are.
    """

    def __missing__(self, eps: Any) -> Value:
        for key, value in self.items():
            if same_eps(key, eps):
                return value
        raise KeyError(f"There is nothing at eps = {eps}, only at {', '.join(eps_labels(self))}.")

    def __contains__(self, eps: Any) -> bool:
        return any(same_eps(key, eps) for key in self)

    def get(self, eps: Any, default: Any = None) -> Any:
        """The value at ``eps``, or ``default`` where there is none."""
        return next((value for key, value in self.items() if same_eps(key, eps)), default)


def same_eps(a: float, b: float) -> bool:
    """Whether two radii are the same one but for rounding (float32 rounds by 6e-8)."""
    return math.isclose(a, b, rel_tol=1e-6)


def distinct_eps(radii: Iterable[float]) -> tuple[float, ...]:
    """The radii, ascending, without those that are the same as the one before."""
    found = sorted(radii)
    return tuple(found[:1] + [radius for before, radius in pairwise(found) if not same_eps(before, radius)])


def eps_unit(eps: Iterable[float]) -> float:
    """1/255 where all radii are multiples of 0.5/255 and not all are decimals of at most three digits; otherwise 1."""
    radii = list(eps)
    multiples = all(same_eps(510 * radius, round(510 * radius)) for radius in radii)
    return 1 / 255 if multiples and not all(same_eps(radius, round(radius, 3)) for radius in radii) else 1.0


def eps_labels(eps: Iterable[float]) -> list[str]:
    """The radii as a reader writes them: ``8/255``, or ``0.5``."""
    radii = list(eps)
    if eps_unit(radii) == 1:
        return [f"{radius:.6g}" for radius in radii]
    return [f"{round(510 * radius) / 2:g}/255" if radius else "0" for radius in radii]
