"""What all maps drawn by people have in common: their images, their size, their threshold, and missing annotations."""

from __future__ import annotations

import operator
import os
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Missing = Literal["error", "empty"]
Images = Dataset[Any] | Sequence[str | os.PathLike[str]]
_ORIENTATION = 0x0112  # the EXIF tag


class MissingAnnotationError(FileNotFoundError):
    """An image has no annotation."""


class UnreadableAnnotationError(ValueError):
    """An image's annotation is there and cannot be read."""


class UnmarkedAnnotationError(ValueError):
    """An image's annotation marks something, but no pixel is salient by it."""


class HumanMasks(Dataset[Tensor], ABC):
    """Maps that people drew, one for each image of a data set and in its order.

    ``masks[i]`` is ``bool``, ``(1, H, W)``, of the annotated image's own size; 1 marks a salient pixel. A map of another
    size than its image is an error that names both. Maps are read on access, so this works in the workers of a
    ``DataLoader``.

    Attributes:
        images: The images that the maps belong to: their paths, or their ids in the annotation file.
        unannotated: The indices of the images that have an empty map because their annotation is missing, is unreadable, or
            marks no pixel enough.
    """

    def __init__(self, images: Sequence[Path | int]) -> None:
        self.images = tuple(images)
        self.unannotated: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[operator.index(index)]
        if index in self.unannotated:
            return torch.zeros(1, *self._size(index), dtype=torch.bool)
        self._find(index)
        marked, size = self._read(index), self._size(index)
        if marked.shape != size:
            raise ValueError(
                f"{self._source(index)} is {marked.shape[1]}×{marked.shape[0]} pixels, but the image {self.images[index]} "
                f"is {size[1]}×{size[0]} pixels. A map must be of its image's own size: was one resized or turned?"
            )
        return torch.from_numpy(np.ascontiguousarray(marked))[None]

    @abstractmethod
    def _source(self, index: int) -> str:
        """The name of the annotation in errors: the file, and the place in it."""

    @abstractmethod
    def _find(self, index: int) -> None:
        """Raise MissingAnnotationError if the image has no annotation, without reading it."""

    @abstractmethod
    def _read(self, index: int) -> NDArray[np.bool_]:
        """The marked pixels of an annotation that is there, ``(H, W)``. Raises Unreadable- and UnmarkedAnnotationError."""

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of the image, which must be stored upright."""
        path = self.images[index]
        assert isinstance(path, Path)
        return image_size(path, upright=True)

    def _check(self, missing: Missing) -> None:
        """Look for every annotation, once, at the end of the constructor."""
        if missing not in ("error", "empty"):
            raise ValueError(f'missing must be "error" or "empty", got {missing!r}.')
        failures: dict[int, Exception] = {}
        for index in range(len(self)):
            try:
                if missing == "error":
                    self._find(index)
                else:  # each annotation is read, so that one warning can count all that fail
                    self[index]
            except (MissingAnnotationError, UnreadableAnnotationError, UnmarkedAnnotationError) as error:
                failures[index] = error
        if not failures:
            return
        first = next(iter(failures.values()))
        if missing == "error":
            raise MissingAnnotationError(
                f"{len(failures)} of {len(self)} images have no annotation. The first: {first} To train on them all the "
                'same, with nothing of them protected: missing="empty".'
            )
        kinds = [type(failure) for failure in failures.values()]
        warnings.warn(
            f"{len(failures)} of {len(self)} images get an empty map, so nothing of them is protected: "
            f"{kinds.count(MissingAnnotationError)} annotations are missing, "
            f"{kinds.count(UnreadableAnnotationError)} are unreadable, "
            f"{kinds.count(UnmarkedAnnotationError)} mark no salient pixel. The first: {first} See .unannotated for all.",
            UserWarning,
            stacklevel=3,  # the line that makes the maps
        )
        self.unannotated = tuple(failures)


def check_threshold(threshold: float) -> float:
    """Refuse a share of annotators outside ``(0, 1]`` with a ValueError: it would mark every pixel, or none."""
    if isinstance(threshold, (str, bool)) or not 0 < threshold <= 1:  # also refuses NaN
        raise ValueError(
            f"threshold must be a share of annotators in (0, 1], got {threshold!r}: a pixel is salient if at least that "
            "share marked it (1 for all of them; a very small one for anybody)."
        )
    return float(threshold)


def check_one_image_each(annotations: Sequence[Hashable | None], images: Sequence[object], source: Path) -> None:
    """Refuse two images that match the same annotation, with a ValueError."""
    owners: dict[Hashable, object] = {}
    for annotation, image in zip(annotations, images, strict=True):
        if annotation is not None and owners.setdefault(annotation, image) != image:
            raise ValueError(
                f"The images {owners[annotation]} and {image} both match {annotation} of {source}, which belongs to one of "
                "them only. The names of images must tell them apart (folders count)."
            )


# --- files ------------------------------------------------------------------------------------------------------------


def image_paths(images: Images) -> tuple[Path, ...]:
    """The paths of the images, in the data set's order.

    Raises:
        TypeError: If ``images`` is neither a data set with ``.samples`` nor a list of paths.
    """
    samples = getattr(images, "samples", None)
    paths = images if samples is None else [path for path, _ in samples]
    if isinstance(paths, Iterable) and not isinstance(paths, str):
        paths = list(paths)
        if all(isinstance(path, (str, os.PathLike)) for path in paths):
            return tuple(map(Path, paths))
    raise TypeError(
        "images must be a data set whose .samples are (path, label), as ImageFolder's and CUB200's are, or a list of image "
        f"paths, got {type(images).__name__}. For part of a data set, take the same part of its maps: "
        "torch.utils.data.Subset(maps, subset.indices)."
    )


def import_pillow() -> Any:
    """Pillow's ``Image`` module; an ImportError names the extra."""
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("Pillow is not installed: pip install 'sip-plugin[annotations]'") from error


def image_size(path: Path, *, upright: bool) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        ValueError: If its EXIF data turn or mirror it and it should be stored upright: the program that it was annotated
            with may have followed them, and the one that loads it for training may not.
    """
    with import_pillow().open(path) as image:
        try:
            orientation = image.getexif().get(_ORIENTATION, 1) if upright else 1
        except (SyntaxError, struct.error):  # damaged, so that nobody can follow them
            orientation = 1
        if orientation in range(2, 9):
            raise ValueError(
                f"The image {path} is turned by its EXIF data, so it may have been annotated in another orientation than it "
                "is stored in. Save it upright, without that entry (PIL.ImageOps.exif_transpose), and its annotation in "
                "the same orientation."
            )
        return image.height, image.width
