"""Brush strokes in Label Studio's export."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.files import Images, image_paths, upright_size
from sip_plugin.salience.annotations.label_studio_export import Region, annotations_of, image_of, read_tasks, tasks_of
from sip_plugin.salience.annotations.masks import (
    HumanMasks,
    Missing,
    MissingAnnotationError,
    UnreadableAnnotationError,
    check_threshold,
)


class LabelStudioMasks(HumanMasks):
    """Brush strokes of a Label Studio project, from its export in the format *JSON*.

    A pixel belongs to an annotation if the brush covers it at all, as in Label Studio's own conversion to COCO; it is
    salient if it belongs to at least ``threshold`` of the image's annotations. Skipped tasks, drafts and predictions do not
    count; an annotation without strokes does (somebody looked and marked nothing). Label Studio's own SDK decodes the
    strokes. Polygons, rectangles and ellipses are an error: export them in the format *COCO*, for :class:`COCOMasks`.

    A task belongs to the image of its file name, without the eight characters that an upload puts before it; where names
    repeat, the folders decide.

    Args:
        images: The data set that the maps are for: one with ``.samples`` (torchvision's ``ImageFolder``), or a list of
            image paths. The files must be there; their size is compared with the annotated one.
        export: The exported JSON file.
        threshold: The share of annotations from which on a pixel is salient, in ``(0, 1]``.
        labels: The labels whose strokes are salient; None for all.
        image: The field of a task's data that holds its image, or a function from a task to its image's path.
        missing: ``"error"``, or ``"empty"`` for an empty map where an image has no submitted annotation, or an unreadable
            one, with one warning that counts them; every annotation is decoded once for that.

    Raises:
        ImportError: If Label Studio's SDK is not installed.
        MissingAnnotationError: (a ``FileNotFoundError``) If an image has no submitted annotation.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a stroke is broken.
        ValueError: If the file is not of that format, a label is unknown, or an image has several tasks or shares one; on
            access, if the image is of another size than the annotated one, or turned by its EXIF data.

    Example:
        >>> photos = torchvision.datasets.ImageFolder("photos")
        >>> data = SalientDataset(photos, LabelStudioMasks(photos, "project-1.json"), transform)
    """

    def __init__(
        self,
        images: Images,
        export: str | os.PathLike[str],
        *,
        threshold: float = 0.5,
        labels: Sequence[str] | None = None,
        image: str | Callable[[Mapping[str, Any]], str] = "image",
        missing: Missing = "error",
    ) -> None:
        _decoder()
        paths = image_paths(images)
        super().__init__(paths)
        self.file = Path(export)
        self.threshold = check_threshold(threshold)
        self.labels = None if labels is None else frozenset([labels] if isinstance(labels, str) else labels)
        if self.labels is not None and not self.labels:
            raise ValueError("labels must name a label or more, or be None for all.")
        tasks = read_tasks(self.file)
        places = [image_of(task, image, self.file) for task in tasks]
        found = [annotations_of(task) for task in tasks]
        self._check_labels(found)
        self._annotations = [[] if number is None else found[number] for number in tasks_of(paths, places, self.file)]
        self._check(missing)

    def __repr__(self) -> str:
        return f"LabelStudioMasks({len(self)} images of {self.file}, threshold={self.threshold:g})"

    def _source(self, index: int) -> str:
        return f"The annotation of {self.images[index]} in {self.file}"

    def _find(self, index: int) -> None:
        if not self._annotations[index]:
            raise MissingAnnotationError(f"{self.file} has no submitted annotation of the image {self.images[index]}.")

    def _read(self, index: int) -> NDArray[np.bool_]:
        self._find(index)
        size = self._size(index)
        votes = np.zeros(size, dtype=np.int64)
        for regions in self._annotations[index]:
            votes += self._covered(regions, size, index)
        salient: NDArray[np.bool_] = votes / len(self._annotations[index]) >= self.threshold
        return salient

    def _size(self, index: int) -> tuple[int, int]:
        path = self.images[index]
        assert isinstance(path, Path)
        return upright_size(path)  # a browser turns the image before it is drawn on

    def _covered(self, regions: list[Region], size: tuple[int, int], index: int) -> NDArray[np.bool_]:
        """The pixels that the strokes of one annotation cover."""
        covered = np.zeros(size, dtype=bool)
        for region in regions:
            if self.labels is not None and not region.labels & self.labels:
                continue
            if not region.is_brush:
                raise ValueError(
                    f"{self._source(index)} has a region of the type {region.kind!r}; only brush strokes are taken. Export "
                    "the project in the format COCO and use COCOMasks, or name the labels of the strokes, labels=."
                )
            if region.size != size or region.rotation:
                raise ValueError(
                    f"{self._source(index)} was drawn on {region.size[1]}×{region.size[0]} pixels, turned by "
                    f"{region.rotation}°, but the image is {size[1]}×{size[0]} pixels. Annotation and image must be of one "
                    "size and orientation."
                )
            try:
                covered |= _decoded(region.stroke, *size)
            except (ValueError, IndexError) as error:
                raise UnreadableAnnotationError(f"{self._source(index)} cannot be read: {error}") from error
        return covered

    def _check_labels(self, found: list[list[list[Region]]]) -> None:
        known = {label for task in found for regions in task for region in regions for label in region.labels}
        if self.labels is not None and (unknown := self.labels - known):
            raise ValueError(
                f"{self.file} has no region with the label {min(unknown)!r}. Its labels: {', '.join(sorted(known))}."
            )


# --- strokes ----------------------------------------------------------------------------------------------------------


def _decoder() -> Callable[[Sequence[int]], NDArray[np.uint8]]:
    """The SDK's decoder of brush strokes; the package that it used to be in will do too."""
    for package in ("label_studio_sdk.converter.brush", "label_studio_converter.brush"):
        try:
            decoder: Callable[[Sequence[int]], NDArray[np.uint8]] = import_module(package).decode_rle
        except ImportError:
            continue
        return decoder
    raise ImportError("Label Studio's SDK is not installed: pip install 'sip-plugin[labelstudio]'")


def _decoded(stroke: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels that a stroke covers.

    Raises:
        ValueError, IndexError: If it is broken.
    """
    if not isinstance(stroke, bytes):
        raise ValueError(f"a stroke must be a list of numbers from 0 to 255, got {stroke!r:.80}.")
    # It begins with the number of values. Checked before the decoder makes room for them.
    values = int.from_bytes(stroke[:4], "big")
    if values != height * width * 4:
        raise ValueError(f"a stroke is of {values} values, not of {height} * {width} * 4.")
    pixels = _decoder()(stroke).reshape(height, width, 4)
    covered: NDArray[np.bool_] = pixels[..., 3] > 0
    return covered
