"""Brush strokes, polygons, rectangles and ellipses in Label Studio's export."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations import base
from sip_plugin.salience.annotations.base import HumanMasks, Images, Missing
from sip_plugin.utils import import_extra

_Region = dict[str, Any]  # a result of the export, with all its labels in "labels"
_DRAWN = {"rle", "points", "height", "radiusX"}  # the value of a region holds one of these, that of a keypoint none
_SHAPES = _DRAWN | {"vertices", "imageDataURL"}  # or one of those, of which no map is made


class LabelStudioMasks(HumanMasks):
    """Brush strokes, polygons, rectangles and ellipses of a Label Studio project, from its export in the format *JSON*.

    A pixel is salient if the brush covers it at all, or its centre lies in a shape, in at least ``threshold`` of the image's
    annotations. Skipped tasks, drafts and predictions do not count; an annotation without regions does (somebody looked and
    marked nothing). Keypoints, as prompts of Segment Anything, are left out.

    A task belongs to the image of its file name, without the eight characters that an upload puts before it; where names
    repeat, the folders decide.

    Args:
        images: A data set with ``.samples`` (torchvision's ``ImageFolder``), or a list of image paths.
        export: The exported JSON file.
        threshold: The share of annotations from which on a pixel is salient, in ``(0, 1]``.
        labels: The labels whose regions are salient; None for all.
        image: The field of a task's data that holds its image, or a function from a task to its image's path.
        missing: ``"error"``, or ``"empty"`` for an empty map in place of the first errors below, counted by one warning.

    Raises:
        MissingAnnotationError: (a ``FileNotFoundError``) If an image has no submitted annotation.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a stroke is broken.
        ValueError: If the file is not of that format, a label is unknown, an image has several tasks or shares one, or a
            region is of another kind or was drawn on a turned image; on access, if the image is of another size than the
            annotated one, or turned by its EXIF data.
        ImportError: If Label Studio's SDK is not installed.

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
        self._decode = import_extra("label_studio_sdk.converter.brush", "labelstudio").decode_rle
        self.file = Path(export)
        self.threshold = base.check_threshold(threshold)
        self.labels = None if labels is None else frozenset([labels] if isinstance(labels, str) else labels)
        tasks_of = defaultdict(set)  # the tasks of each end of an image's path
        try:
            listed = json.loads(self.file.read_bytes())
            if any(isinstance(annotation, int) for task in listed for annotation in task["annotations"]):
                raise TypeError("it has the numbers of annotations, not what they hold; export the project once more")
            tasks = [[_regions(a) for a in task["annotations"] if _marks(a)] for task in listed]
            for number, task in enumerate(listed):
                for end in _path_ends(task, image):
                    tasks_of[end].add(number)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.file} is not Label Studio's export in the format JSON (JSON-MIN and CSV are others), or its tasks "
                f"have no image in the field {image!r} (image=): {error!r}."
            ) from error
        if self.labels is not None:
            known = {label for task in tasks for each in task for region in each for label in region["labels"]}
            base.check_chosen(self.labels, sorted(known), self.file)
        paths = base.image_paths(images)
        found = [base.longest_end(path.with_name(_stored_name(path.name)), tasks_of) for path in paths]
        self._with_task = [bool(numbers) for numbers in found]
        found = [[number for number in numbers if tasks[number]] for numbers in found]
        self._strokes = {number: list(map(self._chosen, tasks[number])) for numbers in found for number in numbers}
        super().__init__(paths, found, [self.file] * len(paths), missing)

    def _chosen(self, regions: list[_Region]) -> list[_Region]:
        """The regions of an annotation that have one of the labels."""
        chosen = [region for region in regions if self.labels is None or region["labels"] & self.labels]
        for region in chosen:
            if not _DRAWN & region["value"].keys() or region.get("image_rotation"):
                raise ValueError(
                    f"{self.file} has a region of the type {region['type']!r}, turned by {region.get('image_rotation')}°; "
                    "brush strokes, polygons, rectangles and ellipses on upright images are taken. To leave others out, "
                    "name the labels of those: labels=."
                )
        return chosen

    def _read(self, annotation: int, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str]:
        covered = []
        for regions in filter(None, self._strokes[annotation]):
            covered.append(np.any([self._pixels(region) for region in regions], axis=0))
        votes = np.sum(covered, axis=0) if covered else np.zeros(size)
        return votes / len(self._strokes[annotation]) >= self.threshold, ""

    def _pixels(self, region: _Region) -> NDArray[np.bool_]:
        """The pixels of a region, in an image of the size that it was drawn on."""
        value, size = region["value"], (region["original_height"], region["original_width"])
        if "rle" in value:
            strokes: NDArray[np.uint8] = self._decode(value["rle"]).reshape(*size, 4)
            return strokes[..., 3] > 0
        return _inside(value, size)

    def _why_missing(self, index: int) -> str:
        return "Its task has no submitted annotation." if self._with_task[index] else "There is no task of its name."


def _inside(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in a polygon, rectangle or ellipse, whose measures are in per cent of the image's."""
    per_cent = np.array([size[1], size[0]]) / 100
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    angle = np.deg2rad(value.get("rotation", 0))
    # Of rows, clockwise on the screen.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if "radiusX" in value:
        centre, radii = (np.array([value[a], value[b]]) * per_cent for a, b in (("x", "y"), ("radiusX", "radiusY")))
        along = (np.stack([x, y], axis=-1) - centre) @ turn.T / radii
        found: NDArray[np.bool_] = (along**2).sum(-1) <= 1
        return found
    if "points" in value:
        corners = np.array(value["points"]) * per_cent
    else:  # a rectangle turns about its first corner
        sides = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [value["width"], value["height"]] * per_cent
        corners = np.array([value["x"], value["y"]]) * per_cent + sides @ turn
    inside = np.zeros(size, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:  # an edge that a ray to the left crosses
            inside ^= ((y0 > y) != (y1 > y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
    return inside


def _marks(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation says what is salient: one of keypoints alone is a prompt without its result."""
    prompts = any("keypoint" in str(result.get("type")) for result in annotation["result"])
    return not annotation.get("was_cancelled") and not (prompts and not _regions(annotation))


def _regions(annotation: Mapping[str, Any]) -> list[_Region]:
    """The regions of an annotation. Several results of one id are one region: its pixels, its labels, a text about it."""
    found: dict[str, _Region] = {}
    for result in annotation["result"]:
        value = result.get("value") or {}
        if _SHAPES & value.keys():
            region = found.setdefault(result["id"], {**result, "labels": set()})
            region["labels"] |= {label for name, names in value.items() if name.endswith("labels") for label in names}
            if "rle" in value:
                region["value"] = {"rle": bytes(value["rle"])}  # an eighth of the list
    return list(found.values())


def _path_ends(task: Mapping[str, Any], image: str | Callable[[Mapping[str, Any]], str]) -> list[tuple[str, ...]]:
    """How the path of a task's image ends, from the whole path to its name."""
    given = image(task) if callable(image) else task["data"][image]
    if isinstance(given, list):
        (given,) = given  # several images in one task have no map of their own
    url, query = urlsplit(given), parse_qs(urlsplit(given).query)
    if callable(image):
        text = given
    elif url.path.endswith("/local-files/"):
        text = query["d"][0]
    elif url.path.endswith("/storage-data/uploaded/"):
        text = query["filepath"][0]
    else:  # only an address may end in a query; a path may hold what looks like one
        text = unquote(url.path if url.scheme else given)
    path = PurePosixPath(text.replace("\\", "/"))
    names = {_stored_name(path.name)}
    if "upload" in path.parts:
        names |= {base.upload_name((*path.parts[:-1], name)) for name in names}
    return [(*path.parts[start:-1], name) for start in range(len(path.parts)) for name in names]


def _stored_name(name: str) -> str:
    """A file name as an upload stores it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
