"""What all maps drawn by people have in common: their size, their threshold, and what becomes of a missing one."""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sip_plugin.salience.annotations.files import image_size

Missing = Literal["error", "empty"]


class MissingAnnotationError(FileNotFoundError):
    """An image has no annotation."""


class UnreadableAnnotationError(ValueError):
    """An image's annotation is there and cannot be read."""


class UnmarkedAnnotationError(ValueError):
    """An image's annotation marks something, but no pixel is salient by it."""


class HumanMasks(Dataset[Tensor], ABC):
    """Maps that people drew, one for each image of a data set and in its order.

    ``masks[i]`` is ``bool``, ``(1, H, W)``, of the annotated image's own size; 1 marks a salient pixel. A map of another
    size than its image is an error that names both. Maps are read when asked for, so that they work in the workers of a
    ``DataLoader``.

    Attributes:
        images: The images that the maps belong to: their paths, or their ids in the annotation file.
    """

    def __init__(self, images: Sequence[Path | int]) -> None:
        self.images = tuple(images)
        self._empty: frozenset[int] = frozenset()

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The indices of the images that have an empty map because their annotation is missing, is unreadable, or marks no
        pixel enough."""
        return tuple(sorted(self._empty))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[operator.index(index)]
        if index in self._empty:
            return torch.zeros(1, *self._size(index), dtype=torch.bool)
        marked, size = self._read(index), self._size(index)
        if marked.shape != size:
            raise ValueError(
                f"{self._source(index)} is {_pixels(marked.shape)}, but the image {self.images[index]} is {_pixels(size)}. "
                "A map must be of its image's own size: was one of the two resized or turned?"
            )
        return torch.from_numpy(np.ascontiguousarray(marked))[None]

    # --- what the kinds of annotation differ in ---

    @abstractmethod
    def _source(self, index: int) -> str:
        """What an error calls the annotation: the file, and the place in it."""

    @abstractmethod
    def _find(self, index: int) -> None:
        """Raise MissingAnnotationError if the image has no annotation, without reading it."""

    @abstractmethod
    def _read(self, index: int) -> NDArray[np.bool_]:
        """The marked pixels, ``(H, W)``. Raises Missing-, Unreadable- and UnmarkedAnnotationError."""

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of the image."""
        path = self.images[index]
        assert isinstance(path, Path)
        return image_size(path)

    # --- missing annotations ---

    def _check(self, missing: Missing) -> None:
        """Look for every annotation, once, at the end of the constructor."""
        if missing not in ("error", "empty"):
            raise ValueError(f'missing must be "error" or "empty", got {missing!r}.')
        # For empty maps each annotation is read, so that one warning can count all that fail.
        failures = self._failures(read=missing == "empty")
        if not failures:
            return
        first = next(iter(failures.values()))
        if missing == "error":
            raise MissingAnnotationError(
                f"{len(failures)} of {len(self)} images have no annotation. The first: {first} To train on them all the "
                'same, with nothing of them protected: missing="empty".'
            )
        absent, unmarked = (
            sum(isinstance(failure, kind) for failure in failures.values())
            for kind in (MissingAnnotationError, UnmarkedAnnotationError)
        )
        unreadable = len(failures) - absent - unmarked
        faint = f", {unmarked} mark no salient pixel" if unmarked else ""
        warnings.warn(
            f"{len(failures)} of {len(self)} images get an empty map, so nothing of them is protected: {absent} annotations "
            f"are missing, {unreadable} are unreadable{faint}. The first: {first} See .unannotated for all.",
            UserWarning,
            stacklevel=3,  # the line that makes the maps
        )
        self._empty = frozenset(failures)

    def _failures(self, read: bool) -> dict[int, Exception]:
        failures: dict[int, Exception] = {}
        for index in range(len(self)):
            try:
                self._find(index)
                if read:
                    self[index]
            except (MissingAnnotationError, UnreadableAnnotationError, UnmarkedAnnotationError) as error:
                failures[index] = error
        return failures


def check_threshold(threshold: float) -> float:
    """Refuse what is no share of annotators in (0, 1].

    Raises:
        ValueError: If ``threshold`` is no such number.
    """
    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not number or not 0 < threshold <= 1 or math.isnan(threshold):
        raise ValueError(
            f"threshold must be a share of annotators in (0, 1], got {threshold!r}: a pixel is salient if at least that "
            "share marked it (1 for all of them; a very small one for anybody)."
        )
    return float(threshold)


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]} pixels"
