"""Brush strokes in Label Studio's export."""

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
_SHAPES = {"rle", "points", "vertices", "x", "imageDataURL"}  # the value of a region holds one of these


class LabelStudioMasks(HumanMasks):
    """Brush strokes of a Label Studio project, from its export in the format *JSON*.

    A pixel is salient if the brush covers it at all in at least ``threshold`` of the image's annotations. Skipped tasks,
    drafts and predictions do not count; an annotation without strokes does (somebody looked and marked nothing). Polygons,
    rectangles and ellipses are an error: export them in the format *COCO*, for :class:`COCOMasks`.

    A task belongs to the image of its file name, without the eight characters that an upload puts before it; where names
    repeat, the folders decide.

    Args:
        images: A data set with ``.samples`` (torchvision's ``ImageFolder``), or a list of image paths.
        export: The exported JSON file.
        threshold: The share of annotations from which on a pixel is salient, in ``(0, 1]``.
        labels: The labels whose strokes are salient; None for all.
        image: The field of a task's data that holds its image, or a function from a task to its image's path.
        missing: ``"error"``, or ``"empty"`` for an empty map in place of the first errors below, counted by one warning.

    Raises:
        MissingAnnotationError: (a ``FileNotFoundError``) If an image has no submitted annotation.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a stroke is broken.
        ValueError: If the file is not of that format, a label is unknown, an image has several tasks or shares one, or a
            region is no brush stroke or was drawn on a turned image; on access, if the image is of another size than the
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
            tasks = [[_regions(a) for a in task["annotations"] if not a.get("was_cancelled")] for task in listed]
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
        found = [[number for number in numbers if tasks[number]] for numbers in found]
        self._strokes = {number: list(map(self._chosen, tasks[number])) for numbers in found for number in numbers}
        super().__init__(paths, found, [self.file] * len(paths), missing)

    def _chosen(self, regions: list[_Region]) -> list[_Region]:
        """The regions of an annotation that have one of the labels."""
        chosen = [region for region in regions if self.labels is None or region["labels"] & self.labels]
        for region in chosen:
            if "rle" not in region["value"] or region.get("image_rotation"):
                raise ValueError(
                    f"{self.file} has a region of the type {region['type']!r}, turned by {region.get('image_rotation')}°; "
                    "only brush strokes on upright images are taken. For other shapes export the format COCO (COCOMasks), "
                    "or name the labels of the strokes, labels=."
                )
        return chosen

    def _read(self, annotation: int, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str]:
        covered = []
        for regions in filter(None, self._strokes[annotation]):
            sizes = [(region["original_height"], region["original_width"], 4) for region in regions]
            strokes = [self._decode(r["value"]["rle"]).reshape(s) for r, s in zip(regions, sizes, strict=True)]
            covered.append(np.any(strokes, axis=0)[..., 3])
        votes = np.sum(covered, axis=0) if covered else np.zeros(size)
        return votes / len(self._strokes[annotation]) >= self.threshold, ""


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
    if callable(image):
        path = PurePosixPath(image(task))
    elif (url := urlsplit(task["data"][image])).path.endswith("/local-files/"):
        path = PurePosixPath(parse_qs(url.query)["d"][0])
    else:  # only an address may end in a query; a path may hold what looks like one
        path = PurePosixPath(unquote(url.path if url.scheme else task["data"][image]))
    names = {_stored_name(path.name)}
    if "upload" in path.parts:  # an upload has eight characters of its own before the name
        names |= {re.sub("^[0-9a-f]{8}-", "", name) for name in names}
    return [(*path.parts[start:-1], name) for start in range(len(path.parts)) for name in names]


def _stored_name(name: str) -> str:
    """A file name as an upload stores it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
