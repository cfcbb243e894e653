"""Instance masks in COCO's format (Lin et al. 2014)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations import base
from sip_plugin.salience.annotations.base import HumanMasks, Images, Missing
from sip_plugin.utils import import_extra


class COCOMasks(HumanMasks):
    """The union of an image's instances in a COCO file, whether polygons or RLE, compressed or not.

    An entry belongs to the image whose path ends as its ``file_name`` does; where tools wrote other folders, to the image of
    its name, with or without the prefix of an upload, if no other image or entry has that name.

    Crowd regions belong to the map. The format does not tell an image in which nothing was found from one that nobody looked
    at: both count as missing.

    Args:
        images: A data set with ``.samples`` (torchvision's ``ImageFolder``), a list of image paths, or a list of image ids
            (``CocoDetection.ids``).
        annotations: The JSON file (``instances_train2017.json``).
        categories: The names or ids of the categories whose instances are salient; None for all.
        missing: ``"error"``, or ``"empty"`` for an empty map in place of the first errors below, counted by one warning.

    Raises:
        MissingAnnotationError: (a ``FileNotFoundError``) If an image has no instance of those categories.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a polygon or an RLE is broken, or all of an instance's
            polygons lie outside the image.
        UnmarkedAnnotationError: (a ``ValueError``, on access) If an image has polygons and no pixel lies in one.
        ValueError: If a category is unknown, or an image has several entries or shares one; on access, if the image is of
            another size than the file says.
        ImportError: If pycocotools is not installed.

    Example:
        >>> photos = torchvision.datasets.ImageFolder("photos")
        >>> data = SalientDataset(photos, COCOMasks(photos, "instances.json", categories=["bird"]), transform)
    """

    def __init__(
        self,
        images: Images | Sequence[int],
        annotations: str | os.PathLike[str],
        *,
        categories: Sequence[str | int] | None = None,
        missing: Missing = "error",
    ) -> None:
        self.file = Path(annotations)
        self._coco = coco = import_extra("pycocotools.coco", "annotations").COCO()
        coco.dataset = json.loads(self.file.read_bytes())  # COCO(file) reads it in the encoding of the system
        numbers = {str(entry["id"]): entry["id"] for entry in coco.dataset["images"]}
        for instance in coco.dataset["annotations"]:  # some tools write the number as a text
            instance["image_id"] = numbers.get(str(instance["image_id"]), instance["image_id"])
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        self._chosen = None
        if categories is not None:
            wanted = {categories} if isinstance(categories, (str, int)) else set(categories)
            base.check_chosen(wanted, [*coco.cats, *(category["name"] for category in coco.cats.values())], self.file)
            self._chosen = {number for number, category in coco.cats.items() if {number, category["name"]} & wanted}
        by_path, by_name, by_upload = defaultdict(set), defaultdict(set), defaultdict(set)
        for number, entry in coco.imgs.items():
            if parts := PurePosixPath(entry.get("file_name", "").replace("\\", "/")).parts:
                by_path[parts].add(number)
                by_name[parts[-1:]].add(number)
                by_upload[(base.upload_name(parts),)].add(number)
        ids = isinstance(images, Sequence) and all(isinstance(image, int) for image in images)
        listed: Any = images if ids else base.image_paths(images)
        # Tools write other folders than those of the images: then the name decides, if it is unique on both sides.
        count = Counter(() if ids else (image.parts[-1:] for image in listed))
        unique = [{end: n for end, n in each.items() if count[end] == len(n) == 1} for each in (by_name, by_upload)]
        exact = [[image] if ids else base.longest_end(image, by_path) for image in listed]
        found = [own or base.longest_end(image, *unique) for image, own in zip(listed, exact, strict=True)]
        guessed = [i for i, own in enumerate(found) if own and not exact[i]]
        if guessed:
            first = f"{listed[guessed[0]]} as {coco.imgs[found[guessed[0]][0]]['file_name']}"
            says = f"{len(guessed)} images are found in {self.file} by their names alone, in other folders: {first}."
            warnings.warn(says, UserWarning, stacklevel=2)
        names = [str(entry.get("file_name")) for entry in coco.imgs.values()]
        self._names = f"It names, for instance, {', '.join(names[:2])}."
        found = [[number for number in each if self._instances(number)] for each in found]
        super().__init__(listed, found, [self.file] * len(listed), missing)

    def _why_missing(self, index: int) -> str:
        return self._names

    def _instances(self, image: int) -> list[dict[str, Any]]:
        found = self._coco.imgToAnns.get(image, [])
        return [each for each in found if self._chosen is None or each["category_id"] in self._chosen]

    def _read(self, annotation: int, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str]:
        entry, instances = self._coco.imgs[annotation], self._instances(annotation)
        if not entry.get("height") or not entry.get("width"):
            entry["height"], entry["width"] = size
        for each in instances:  # tools leave remnants of one or two corners beside polygons
            if isinstance(outlines := each.get("segmentation"), list):
                each["segmentation"] = [polygon for polygon in outlines if len(polygon) >= 6]
        instances = [each for each in instances if each.get("segmentation") != []] or instances
        if broken := [each["id"] for each in instances if not self._is_sound(each)]:
            raise ValueError(f"{broken} must be polygons of 3 corners or more in the image, or an RLE of all of it.")
        drawn = any(isinstance(each["segmentation"], list) for each in instances)
        hint = "its polygons are too small. Are they in pixels?" if drawn else ""
        return np.any([self._coco.annToMask(each) for each in instances], axis=0), hint

    def _is_sound(self, instance: dict[str, Any]) -> bool:
        """Whether pycocotools reads an instance for what it is: not an RLE with missing pixels."""
        if not instance.get("segmentation"):
            return False
        if isinstance(instance["segmentation"], list):
            entry = self._coco.imgs[instance["image_id"]]
            polygons = [np.reshape(polygon, (-1, 2)) for polygon in instance["segmentation"]]
            size = entry["width"], entry["height"]
            inside = any((p.max(0) > 0).all() and (p.min(0) < size).all() for p in polygons)
            # pycocotools takes memory for every pixel along an edge
            return inside and all(np.abs(p).max() <= 1e6 for p in polygons)
        counts = instance["segmentation"]["counts"]
        if isinstance(counts, list) and all(count == int(count) for count in counts):
            instance["segmentation"]["counts"] = [int(count) for count in counts]
        rle = self._coco.annToRLE(instance)
        shorter = {"size": [rle["size"][0] * rle["size"][1] - 1, 1], "counts": rle["counts"]}
        with contextlib.suppress(ValueError):  # too long for one pixel less
            import_extra("pycocotools.mask", "annotations").decode(shorter)
            return False
        return True

    def _image_size(self, image: Path | int) -> tuple[tuple[int, int], bool]:
        if isinstance(image, Path):
            return super()._image_size(image)[0], False
        entry = self._coco.imgs[image]
        return (entry["height"], entry["width"]), False
