"""Instance masks in COCO's format (Lin et al. 2014)."""

from __future__ import annotations

import contextlib
import io
import json
import numbers
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.base import (
    HumanMasks,
    Images,
    Missing,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    UnreadableAnnotationError,
    check_one_image_each,
    image_paths,
    image_size,
)

_FARTHEST = 1e6  # pixels; pycocotools takes memory for every pixel along an edge, and counts them in 32 bits


class COCOMasks(HumanMasks):
    """The union of an image's instances in a COCO file, whether polygons or RLE, compressed or not.

    pycocotools decodes them; crowd regions belong to the map. The format does not tell an image in which nothing was found
    from one that nobody looked at: both count as missing.

    Args:
        images: The data set that the maps are for: one with ``.samples`` (torchvision's ``ImageFolder``), a list of image
            paths, which must end as the file's ``file_name`` does, or a list of image ids (``CocoDetection.ids``).
        annotations: The JSON file (``instances_train2017.json``).
        categories: The names or ids of the categories whose instances are salient; None for all.
        missing: ``"error"``, or ``"empty"`` for an empty map where an image has no instance of those categories, or an
            unreadable one, or polygons that cover no pixel, with one warning that counts them; every instance is decoded
            once for that.

    Raises:
        ImportError: If pycocotools is not installed.
        MissingAnnotationError: (a ``FileNotFoundError``) If an image has no instance of those categories.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a polygon or an RLE is broken, or all of an instance's
            polygons lie outside the image.
        UnmarkedAnnotationError: (a ``ValueError``, on access) If an image has polygons and no pixel lies in one.
        ValueError: If the file is not of that format, a category is unknown, or two images match one entry; on access, if
            the image is of another size than the file says.

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
        self._coco, self._listed = _load(self.file)
        super().__init__(_ids(images) or image_paths(images))  # type: ignore[arg-type]
        self._categories = None if categories is None else self._category_ids(categories)
        self._entries = self._matched()
        self._check(missing)

    def __repr__(self) -> str:
        return f"COCOMasks({len(self)} images of {self.file})"

    def _source(self, index: int) -> str:
        return f"The entry of {self.images[index]} in {self.file}"

    def _find(self, index: int) -> None:
        if not self._instances(index):
            found = "does not list" if self._entries[index] is None else "has no instance of the categories in"
            raise MissingAnnotationError(f"{self.file} {found} the image {self.images[index]} (by file_name or id).")

    def _read(self, index: int) -> NDArray[np.bool_]:
        instances, (_, size) = self._instances(index), self._listed[self._entries[index]]
        marked = np.zeros(size, dtype=bool)
        for instance in instances:
            try:
                marked |= self._decode(instance, *size)
            except (ValueError, TypeError, LookupError, OverflowError) as error:
                raise UnreadableAnnotationError(
                    f"The annotation {instance['id']} of the image {self.images[index]} in {self.file} cannot be read: "
                    f"{error}"
                ) from error
        drawn = [instance["id"] for instance in instances if isinstance(instance["segmentation"], list)]
        if drawn and not marked.any():  # an RLE may say that nothing is marked
            raise UnmarkedAnnotationError(
                f"The annotation {drawn[0]} of the image {self.images[index]} in {self.file} has polygons that cover no "
                f"pixel, and nothing else marks one: nothing of the image would be protected. Are the coordinates in pixels "
                '(of 0 to 1 they are shares)? missing="empty" takes such images with an empty map.'
            )
        return marked

    def _size(self, index: int) -> tuple[int, int]:
        image = self.images[index]
        if isinstance(image, Path) and (image.is_file() or self._entries[index] is None):
            return image_size(image, upright=False)
        return self._listed[self._entries[index]][1]

    def _instances(self, index: int) -> list[dict[str, Any]]:
        """The annotations of an image that are of the categories."""
        found = self._coco.imgToAnns.get(self._entries[index], [])
        return [each for each in found if self._categories is None or each["category_id"] in self._categories]

    def _decode(self, instance: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
        """The pixels of an instance. Raises where pycocotools would crash, or take the segmentation for another."""
        segmentation = instance["segmentation"]
        if isinstance(segmentation, list):
            polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
            whole = all(len(p) >= 3 and (np.abs(p) <= _FARTHEST).all() for p in polygons)  # NaN is not
            if not whole or all((p.max(0) <= 0).any() or (p.min(0) >= (width, height)).any() for p in polygons):
                raise ValueError(
                    f"its polygons must be x, y of three corners or more in pixels, not beyond {_FARTHEST:g}, one of them "
                    f"inside the image of {width}×{height} pixels, got {segmentation!r:.200}."
                )
        elif list(segmentation["size"]) != [height, width] or not _is_complete(self._coco.annToRLE(instance)):
            raise ValueError(
                f"its RLE, of size {segmentation['size']}, must hold the image's {height} * {width} pixels."
            )
        return np.asarray(self._coco.annToMask(instance), dtype=bool)

    def _category_ids(self, categories: Sequence[str | int]) -> set[int]:
        names = {number: category["name"] for number, category in self._coco.cats.items()}
        wanted = [categories] if isinstance(categories, (str, int)) else list(categories)
        if not wanted or not all(each in names or each in names.values() for each in wanted):
            raise ValueError(
                f"categories must be of {self.file} ({', '.join(map(str, names.values()))}) or None for all, got {wanted}."
            )
        return {number for number, name in names.items() if number in wanted or name in wanted}

    def _matched(self) -> list[int | None]:
        """The id in the file of each image, None for an image that it does not list."""
        by_name: dict[str, int | None] = {}
        for number, (name, _) in self._listed.items():
            if by_name.setdefault(name, number) != number and any(isinstance(image, Path) for image in self.images):
                raise ValueError(
                    f"{self.file} lists {name!r} twice (as {number} too), so give the images by their ids."
                )

        def find(image: Path | int) -> int | None:
            if isinstance(image, int):
                return image if image in self._listed else None
            tails = ("/".join(image.parts[start:]) for start in range(len(image.parts)))
            return next((by_name[tail] for tail in tails if tail in by_name), None)

        entries = [find(image) for image in self.images]
        names = [None if entry is None else self._listed[entry][0] for entry in entries]
        check_one_image_each(names, self.images, self.file)
        return entries


def _load(file: Path) -> tuple[Any, dict[int | None, tuple[str, tuple[int, int]]]]:
    """The file as pycocotools holds it; the name and the size (height, width) of each of its images, by id."""
    try:
        coco = import_module("pycocotools.coco").COCO()
    except ImportError as error:
        raise ImportError("pycocotools is not installed: pip install 'sip-plugin[annotations]'") from error
    try:
        coco.dataset = json.loads(file.read_bytes())  # COCO(file) reads it in the encoding of the system
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        images = coco.dataset["images"]
        return coco, {e["id"]: (str(PurePosixPath(e["file_name"])), (e["height"], e["width"])) for e in images}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a file of COCO instances: {error!r}.") from error


def _ids(images: Any) -> tuple[int, ...] | None:
    """The images if they are ids, None if they are something else."""
    if isinstance(images, Sequence) and images and all(isinstance(image, numbers.Integral) for image in images):
        return tuple(int(image) for image in images)
    return None


def _is_complete(rle: dict[str, Any]) -> bool:
    """Whether an RLE holds all pixels of its size. If not, pycocotools leaves the rest of the mask as the memory was."""
    height, width = rle["size"]
    try:
        import_module("pycocotools.mask").decode({"size": [height * width - 1, 1], "counts": rle["counts"]})
    except ValueError:  # it is too long for one pixel less
        return True
    return False
