"""The files that annotations belong to and come in."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

_ORIENTATION = 0x0112  # the EXIF tag


class HasSamples(Protocol):
    """A data set that says which files its images come from, as torchvision's ``ImageFolder`` and ``CUB200`` do."""

    @property
    def samples(self) -> Sequence[tuple[str | os.PathLike[str], Any]]:
        """The path and the label of each image."""
        ...


Images = HasSamples | Sequence[str | os.PathLike[str]]


def image_paths(images: Images) -> tuple[Path, ...]:
    """The paths of the images, in the data set's order.

    Raises:
        TypeError: If ``images`` is neither a data set with ``.samples`` nor a list of paths.
    """
    samples = getattr(images, "samples", None)
    listed = images if samples is None else [path for path, _ in samples]
    if isinstance(listed, (str, os.PathLike)) or not isinstance(listed, Iterable):
        raise TypeError(
            "images must be a data set whose .samples are (path, label), as ImageFolder's and CUB200's are, or a list of "
            f"image paths, got {type(images).__name__}. For part of a data set, take the same part of its maps: "
            "torch.utils.data.Subset(maps, subset.indices)."
        )
    paths = list(listed)
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"images must be paths, got {type(path).__name__} among them.")
    return tuple(Path(path) for path in paths)


def pillow() -> Any:
    """Pillow's ``Image`` module.

    Raises:
        ImportError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Pillow is not installed: pip install 'sip-plugin[annotations]'") from error
    return Image


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that is stored as it is looked at.

    Raises:
        ValueError: If its EXIF data turn or mirror it: what it was annotated with may have followed them, and what loads it
            for training may not.
    """
    with pillow().open(path) as image:
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except (SyntaxError, struct.error):  # damaged, so that nobody can follow them
            orientation = 1
        if orientation in range(2, 9):
            raise ValueError(
                f"The image {path} is turned by its EXIF data, so it may have been annotated in another orientation than it "
                "is stored in. Save it upright, without that entry (PIL.ImageOps.exif_transpose), and its annotation in "
                "the same orientation."
            )
        return image.height, image.width


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header."""
    with pillow().open(path) as image:
        return image.height, image.width


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def check_one_image_each(annotations: Sequence[Hashable | None], images: Sequence[object], source: Path) -> None:
    """Refuse two images that were matched to the same annotation.

    Raises:
        ValueError: If there are such images.
    """
    owners: dict[Hashable, object] = {}
    for annotation, image in zip(annotations, images, strict=True):
        if annotation is not None and owners.setdefault(annotation, image) != image:
            raise ValueError(
                f"The images {owners[annotation]} and {image} both match {annotation} of {source}, which belongs to one of "
                "them only. The names of images must tell them apart (folders count)."
            )
