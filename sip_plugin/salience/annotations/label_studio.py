"""Brush strokes in Label Studio's export."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.base import (
    HumanMasks,
    Images,
    Missing,
    MissingAnnotationError,
    UnreadableAnnotationError,
    check_one_image_each,
    check_threshold,
    image_paths,
)

_Region = dict[str, Any]  # a result of the export, with all its labels in "labels"
_SHAPES = {"rle", "points", "vertices", "x", "imageDataURL"}  # the value of a region holds one of these


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
        _import_decoder()
        paths = image_paths(images)
        super().__init__(paths)
        self.file = Path(export)
        self.threshold = check_threshold(threshold)
        self.labels = None if labels is None else frozenset([labels] if isinstance(labels, str) else labels)
        try:
            tasks = json.loads(self.file.read_bytes())
            found = [_annotations(task) for task in tasks]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.file} is not Label Studio's export in the format JSON, a list of tasks with data and annotations "
                f"(JSON-MIN and CSV are others): {error!r}."
            ) from error
        known = {label for task in found for regions in task for region in regions for label in region["labels"]}
        if self.labels is not None and (not self.labels or self.labels - known):
            raise ValueError(
                f"labels must be labels of {self.file} ({', '.join(sorted(known))}) or None for all, got "
                f"{sorted(self.labels)}."
            )
        places = [_image_path(task, image, self.file) for task in tasks]
        self._annotations = [[] if task is None else found[task] for task in _match(paths, places, self.file)]
        self._check(missing)

    def __repr__(self) -> str:
        return f"LabelStudioMasks({len(self)} images of {self.file}, threshold={self.threshold:g})"

    def _source(self, index: int) -> str:
        return f"The annotation of {self.images[index]} in {self.file}"

    def _find(self, index: int) -> None:
        if not self._annotations[index]:
            raise MissingAnnotationError(f"{self.file} has no submitted annotation of the image {self.images[index]}.")

    def _read(self, index: int) -> NDArray[np.bool_]:
        size = self._size(index)
        votes = np.zeros(size, dtype=np.int64)
        for regions in self._annotations[index]:
            votes += self._covered(regions, size, index)
        return np.asarray(votes / len(self._annotations[index]) >= self.threshold)

    def _covered(self, regions: list[_Region], size: tuple[int, int], index: int) -> NDArray[np.bool_]:
        """The pixels that the strokes of one annotation cover."""
        covered = np.zeros(size, dtype=bool)
        for region in regions:
            if self.labels is not None and not region["labels"] & self.labels:
                continue
            if "rle" not in region["value"]:
                raise ValueError(
                    f"{self._source(index)} has a region of the type {region.get('type')!r}; only brush strokes are taken. "
                    "Export the project in the format COCO and use COCOMasks, or name the labels of the strokes, labels=."
                )
            drawn_on = region.get("original_height"), region.get("original_width")
            turned = region.get("image_rotation") or 0
            if drawn_on != size or turned:
                raise ValueError(
                    f"{self._source(index)} was drawn on {drawn_on[1]}×{drawn_on[0]} pixels, turned by {turned}°, but "
                    f"the image is {size[1]}×{size[0]} pixels. Annotation and image must be of one size and orientation."
                )
            try:
                covered |= _decode(region["value"]["rle"], *size)
            except (ValueError, TypeError, IndexError) as error:
                raise UnreadableAnnotationError(f"{self._source(index)} cannot be read: {error}") from error
        return covered


# --- regions ----------------------------------------------------------------------------------------------------------


def _annotations(task: Mapping[str, Any]) -> list[list[_Region]]:
    """The regions of each of a task's submitted annotations (a skipped one is not)."""
    submitted = [each for each in task["annotations"] if not each.get("was_cancelled")]
    return [_regions(each["result"]) for each in submitted if each.get("result") is not None]


def _regions(results: Sequence[Mapping[str, Any]]) -> list[_Region]:
    """The regions in the results. Several results of one id are one region: its pixels, its labels, a text about it."""
    found: dict[Any, _Region] = {}
    for number, result in enumerate(results):
        value = result.get("value") or {}
        if not _SHAPES & value.keys():
            continue
        region = found.setdefault(result.get("id", number), {**result, "labels": set()})
        region["labels"] |= {label for name, names in value.items() if name.endswith("labels") for label in names}
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of a broken stroke, decoding raises
            region["value"] = {"rle": bytes(value["rle"])}  # an eighth of the list
    return list(found.values())


def _import_decoder() -> Callable[[bytes], NDArray[np.uint8]]:
    """The SDK's decoder of brush strokes; an ImportError names the extra."""
    try:
        decoder: Callable[[bytes], NDArray[np.uint8]] = import_module("label_studio_sdk.converter.brush").decode_rle
    except ImportError as error:
        raise ImportError("Label Studio's SDK is not installed: pip install 'sip-plugin[labelstudio]'") from error
    return decoder


def _decode(stroke: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels that a stroke covers. Raises ValueError, TypeError or IndexError if it is broken."""
    values = int.from_bytes(stroke[:4], "big")
    if values != height * width * 4:  # before the decoder makes room for them
        raise ValueError(f"a stroke is of {values} values, not of {height} * {width} * 4.")
    covered: NDArray[np.bool_] = _import_decoder()(stroke).reshape(height, width, 4)[..., 3] > 0
    return covered


# --- which task belongs to which image --------------------------------------------------------------------------------


def _image_path(task: Mapping[str, Any], image: str | Callable[[Mapping[str, Any]], str], file: Path) -> PurePosixPath:
    """The path of a task's image, from a field of the task's data or a function.

    Raises:
        ValueError: If there is no such field.
    """
    if callable(image):
        return PurePosixPath(image(task))
    address = task["data"].get(image)
    if not isinstance(address, str):
        raise ValueError(
            f"The task {task.get('id')} in {file} has no image in its field {image!r}; it has: {', '.join(task['data'])}. "
            "Name the field, image=."
        )
    url = urlsplit(address)
    if url.path.endswith("/local-files/"):
        return PurePosixPath(parse_qs(url.query).get("d", [""])[0])
    # Only an address may end in a query; a path may hold what looks like one.
    return PurePosixPath(unquote(url.path if url.scheme else address))


def _match(images: Sequence[Path], places: Sequence[PurePosixPath], file: Path) -> list[int | None]:
    """The number of each image's task, None for an image without one: the task of its name; of several, the one with which
    the most folders agree.

    Raises:
        ValueError: If an image has several tasks, or a task several images.
    """
    by_name = defaultdict(list)
    for number, place in enumerate(places):
        name = _stored_name(place.name)
        # An upload has eight characters of its own before the name.
        for each in {name, re.sub("^[0-9a-f]{8}-", "", name)} if "upload" in place.parts else {name}:
            by_name[each].append(number)
    numbers = []
    for image in images:
        named = by_name.get(_stored_name(image.name), [])
        agreement = [_shared_folders(image, places[number]) for number in named]
        best = [number for number, count in zip(named, agreement, strict=True) if count == max(agreement)]
        if len(best) > 1:
            raise ValueError(
                f"{file} has {len(best)} tasks for the image {image}, as {places[best[0]]} and {places[best[1]]}. Names "
                "must tell tasks apart (folders count); image= takes a function from a task to its image's path."
            )
        numbers.append(best[0] if best else None)
    check_one_image_each([None if number is None else places[number] for number in numbers], images, file)
    return numbers


def _stored_name(name: str) -> str:
    """A file name as an upload stores it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _shared_folders(image: Path, place: PurePosixPath) -> int:
    """How many folders two paths share, counted from the file."""
    pairs = zip(image.parts[-2::-1], place.parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
