"""The indices by which a sequence of a known length may be asked for one or several of its items."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Indices = slice | Sequence[int] | Tensor | np.ndarray


def positions_of(indices: Any, length: int) -> np.ndarray:
    """The items that are meant, each from 0 to ``length - 1``.

    Args:
        indices: A slice, or a sequence, a tensor or an array of integers; negative ones count from the end.
        length: Of the sequence.

    Raises:
        IndexError: If there is no such item.
        TypeError: If ``indices`` is something else, or they are no integers (booleans are none).
    """
    if isinstance(indices, slice):
        return np.arange(*indices.indices(length))
    if isinstance(indices, (Tensor, np.ndarray)):
        _check_integers(indices)
        indices = indices.tolist()
    if not isinstance(indices, Sequence) or isinstance(indices, (str, bytes)):
        raise TypeError(f"An index must be an integer, a slice or a list of integers, got {type(indices).__name__}.")
    numbers = [index if type(index) is int else _integer(index) for index in indices]
    for number in numbers:
        if not -length <= number < length:
            raise IndexError(f"There is no image {number} in a store of {length}.")
    return np.array(numbers, dtype=np.int64) % length


def as_integer(index: Any) -> int | None:
    """An integer of Python, NumPy or torch; None for anything else (booleans are no integers here)."""
    if isinstance(index, (bool, np.bool_)) or (isinstance(index, (Tensor, np.ndarray)) and index.ndim > 0):
        return None
    if isinstance(index, (Tensor, np.ndarray)):
        _check_integers(index)
    try:
        return operator.index(index)
    except TypeError:
        return None


def _integer(index: Any) -> int:
    number = as_integer(index)
    if number is None:
        raise TypeError(f"An index must be an integer, got {index!r}. For a mask of booleans: mask.nonzero()[:, 0].")
    return number


def _check_integers(indices: Tensor | np.ndarray) -> None:
    whole = indices.dtype.kind in "iu" if isinstance(indices, np.ndarray) else not indices.dtype.is_floating_point
    if isinstance(indices, Tensor):
        whole = whole and indices.dtype != torch.bool and not indices.dtype.is_complex
    if not whole or indices.ndim > 1:
        raise TypeError(
            f"Indices must be integers in one dimension, got {indices.dtype} of shape {tuple(indices.shape)}. For a mask of "
            "booleans: mask.nonzero()[:, 0]."
        )
