"""What all sources of annotations share: one map for each image, of its size, or a word on why there is none."""

from __future__ import annotations

import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sip_plugin.utils import import_extra

Missing = Literal["error", "empty"]
Images = Dataset[Any] | Sequence[str | os.PathLike[str]]


class MissingAnnotationError(FileNotFoundError):
    """An image has no annotation."""


class UnreadableAnnotationError(ValueError):
    """An image's annotation is there and cannot be read."""


class UnmarkedAnnotationError(ValueError):
    """An image's annotation marks something, but no pixel is salient by it."""


class HumanMasks(Dataset[Tensor], ABC):
    """Maps that people drew, one for each image of a data set and in its order.

    ``masks[i]`` is ``bool``, ``(1, H, W)``, of the image's own size, True where salient. It is read on access.

    Attributes:
        images: The images that the maps belong to: their paths, or their ids in the annotation file.
        unannotated: The indices of the images that have an empty map for want of an annotation, by ``missing="empty"``.
    """

    def __init__(
        self, images: Sequence[Any], found: Sequence[list[Any]], files: Sequence[Path], missing: Missing
    ) -> None:
        """Take what was found for each image in its file, at most one annotation that no other image has."""
        self.images = tuple(images)
        self.unannotated: tuple[int, ...] = ()
        owners: dict[Any, Path | int] = {}
        failures: dict[int, Exception] = {}
        self._annotations = [each[0] if each else None for each in found]
        self._files = files
        for index, (image, each) in enumerate(zip(images, found, strict=True)):
            if len(each) > 1 or (each and owners.setdefault(each[0], image) != image):
                others = f"the {self._name(index)} is one of {len(each)}, or also of {owners.get(each[0])}"
                raise ValueError(f"The names of images must tell them apart (folders count): {others}.")
            if not each:
                failures[index] = MissingAnnotationError(f"There is no {self._name(index)}. {self._why_missing(index)}")
            elif missing == "empty":  # read all, so that one warning can count those that fail
                try:
                    self[index]
                except (UnreadableAnnotationError, UnmarkedAnnotationError) as error:
                    failures[index] = error
        self.unannotated = tuple(failures)
        if failures:
            kinds = Counter(type(failure).__name__ for failure in failures.values())
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            says = f"{len(failures)} of {len(self)} images have no annotation ({counts}). {failures[min(failures)]} "
            if missing != "empty":
                raise MissingAnnotationError(f'{says}missing="empty" takes them with an empty map.')
            says += "They get an empty map, so nothing of them is protected; see .unannotated."
            warnings.warn(says, UserWarning, stacklevel=3)  # at the line that makes the maps

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images)"

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]
        size, turned = self._image_size(self.images[index])
        if index in self.unannotated:
            return torch.zeros(1, *size, dtype=torch.bool)
        name = f"The {self._name(index)}"
        try:
            marked, drawn = self._read(self._annotations[index], size)
        except Exception as error:  # whatever the decoder of a broken annotation raises
            raise UnreadableAnnotationError(f"{name} cannot be read: {error}") from error
        if marked.shape != size or turned:
            raise ValueError(
                f"{name} is {marked.shape[1]}×{marked.shape[0]} pixels, the image {size[1]}×{size[0]} pixels"
                f"{', turned by its EXIF data (PIL.ImageOps.exif_transpose)' if turned else ''}. A map must be of its "
                "image's own size, and the image stored upright."
            )
        if drawn and not marked.any():
            raise UnmarkedAnnotationError(f'{name} marks no pixel: {drawn} Or take it as empty, missing="empty".')
        return torch.from_numpy(marked)[None]

    @abstractmethod
    def _read(self, annotation: Any, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str]:
        """The salient pixels in an image of a size, and the likely mistake if there are none ("" if that is no mistake)."""

    def _name(self, index: int) -> str:
        return f"annotation of {self.images[index]} in {self._files[index]}"

    def _why_missing(self, index: int) -> str:
        """What helps to find out why an image has no annotation."""
        return ""

    def _image_size(self, image: Path | int) -> tuple[tuple[int, int], bool]:
        """The size of an image, and whether its EXIF data turn or mirror it: it may have been annotated either way."""
        with import_extra("PIL.Image", "annotations").open(image) as file:
            return (file.height, file.width), file.getexif().get(0x0112) in range(2, 9)


def check_threshold(threshold: float) -> float:
    """Refuse a share of annotators outside ``(0, 1]`` with a ValueError: it would mark every pixel, or none."""
    if not 0 < threshold <= 1:  # nor is NaN
        raise ValueError(f"threshold must be a share of annotators in (0, 1], got {threshold!r}.")
    return float(threshold)


def check_chosen(chosen: Iterable[Any], known: Iterable[Any], file: Path) -> None:
    """Refuse categories or labels that the file does not have, or none at all, with a ValueError."""
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"Choose of {file} ({', '.join(map(str, known))}), or None for all; got {list(chosen)}.")


def longest_end(image: Path, *places: Mapping[tuple[str, ...], Iterable[Any]]) -> list[Any]:
    """What belongs to the longest end of an image's path that there is, in the first of several places."""
    ends = [image.parts[i:] for i in range(len(image.parts))]
    return next((list(found[end]) for found in places for end in ends if end in found), [])


def upload_name(parts: Sequence[str]) -> str:
    """The name of a file that was uploaded to Label Studio, which puts eight characters of its own before it."""
    return re.sub("^[0-9a-f]{8}-", "", parts[-1]) if {"upload", "images"} & set(parts[:-1]) else parts[-1]


def image_paths(images: Any) -> tuple[Path, ...]:
    """The paths of the images, in the data set's order. A TypeError if there are none."""
    try:
        return tuple(map(Path, [path for path, _ in images.samples] if hasattr(images, "samples") else images))
    except TypeError as error:
        raise TypeError(
            "images must be a data set with .samples (path, label), as ImageFolder and CUB200 are, or a list of paths, got "
            f"{type(images).__name__}. For part of a data set: torch.utils.data.Subset(maps, subset.indices)."
        ) from error
