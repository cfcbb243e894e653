"""Instance masks in COCO's format (Lin et al. 2014)."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.files import Images, check_one_image_each, image_paths, read_json
from sip_plugin.salience.annotations.masks import (
    HumanMasks,
    Missing,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    UnreadableAnnotationError,
)

_FARTHEST = 1e6  # pixels; pycocotools takes memory for every pixel along an edge, and counts them in 32 bits


class _Image(NamedTuple):
    """What a COCO file says of one image."""

    name: str
    size: tuple[int, int]
    instances: list[tuple[Any, Any]]  # each annotation's id, and its polygons or RLE


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
        _coco_mask()
        super().__init__(_ids(images) or image_paths(images))  # type: ignore[arg-type]
        self.file = Path(annotations)
        content = read_json(self.file)
        try:
            chosen = _category_ids(content, categories, self.file)
            known = _images(content, chosen)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.file} is not a file of COCO instances: {error!r}.") from error
        self._entries = _matched(self.images, known, self.file)
        self._check(missing)

    def __repr__(self) -> str:
        return f"COCOMasks({len(self)} images of {self.file})"

    def _source(self, index: int) -> str:
        return f"The entry of {self.images[index]} in {self.file}"

    def _find(self, index: int) -> None:
        entry, image = self._entries[index], self.images[index]
        if entry is None:
            raise MissingAnnotationError(f"{self.file} does not list the image {image} (by file_name or id).")
        if not entry.instances:
            raise MissingAnnotationError(f"{self.file} has no instance of the categories in the image {image}.")

    def _read(self, index: int) -> NDArray[np.bool_]:
        self._find(index)
        entry = self._entries[index]
        assert entry is not None
        runs = []
        for annotation, segmentation in entry.instances:
            try:
                runs += _run_lengths(segmentation, *entry.size)
            except (ValueError, TypeError) as error:
                raise UnreadableAnnotationError(
                    f"The annotation {annotation} of the image {self.images[index]} in {self.file} cannot be read: {error}"
                ) from error
        mask = _coco_mask()
        marked: NDArray[np.bool_] = mask.decode(mask.merge(runs)).astype(bool)
        drawn = [annotation for annotation, segmentation in entry.instances if isinstance(segmentation, list)]
        if drawn and not marked.any():  # an RLE may say that nothing is marked
            raise UnmarkedAnnotationError(
                f"The annotation {drawn[0]} of the image {self.images[index]} in {self.file} has polygons that cover no "
                f"pixel, and nothing else marks one: nothing of the image would be protected. Are the coordinates in pixels "
                '(of 0 to 1 they are shares)? missing="empty" takes such images with an empty map.'
            )
        return marked

    def _size(self, index: int) -> tuple[int, int]:
        image, entry = self.images[index], self._entries[index]
        if entry is None or (isinstance(image, Path) and image.is_file()):
            return super()._size(index)
        return entry.size


# --- the file ---------------------------------------------------------------------------------------------------------


def _ids(images: Any) -> tuple[int, ...] | None:
    """The images if they are ids, None if they are something else."""
    if isinstance(images, Sequence) and images and all(isinstance(image, numbers.Integral) for image in images):
        return tuple(int(image) for image in images)
    return None


def _category_ids(content: Any, categories: Sequence[str | int] | None, file: Path) -> set[int] | None:
    if categories is None:
        return None
    names = {category["id"]: category["name"] for category in content["categories"]}
    wanted = [categories] if isinstance(categories, (str, int)) else list(categories)
    if not wanted:
        raise ValueError("categories must name a category or more, or be None for all.")
    for category in wanted:
        if category not in names and category not in names.values():
            raise ValueError(f"{file} has no category {category!r}. It has: {', '.join(map(str, names.values()))}.")
    return {number for number, name in names.items() if number in wanted or name in wanted}


def _images(content: Any, chosen: set[int] | None) -> dict[int, _Image]:
    known = {
        image["id"]: _Image(str(PurePosixPath(image["file_name"])), (image["height"], image["width"]), [])
        for image in content["images"]
    }
    for annotation in content["annotations"]:
        if annotation["image_id"] in known and (chosen is None or annotation["category_id"] in chosen):
            known[annotation["image_id"]].instances.append((annotation["id"], annotation["segmentation"]))
    return known


def _matched(images: Sequence[Path | int], known: Mapping[int, _Image], file: Path) -> list[_Image | None]:
    by_name: dict[str, _Image] = {}
    for number, entry in known.items():
        if by_name.setdefault(entry.name, entry) is not entry and any(isinstance(image, Path) for image in images):
            raise ValueError(f"{file} lists {entry.name!r} twice (as {number} too), so give the images by their ids.")

    def find(image: Path | int) -> _Image | None:
        if isinstance(image, int):
            return known.get(image)
        tails = ("/".join(image.parts[start:]) for start in range(len(image.parts)))
        return next((by_name[tail] for tail in tails if tail in by_name), None)

    entries = [find(image) for image in images]
    check_one_image_each([entry and entry.name for entry in entries], images, file)
    return entries


# --- segmentations ----------------------------------------------------------------------------------------------------


def _coco_mask() -> Any:
    try:
        return import_module("pycocotools.mask")
    except ImportError as error:
        raise ImportError("pycocotools is not installed: pip install 'sip-plugin[annotations]'") from error


def _run_lengths(segmentation: Any, height: int, width: int) -> list[Any]:
    """Compressed RLEs of an annotation's parts.

    What pycocotools would take for something else, or decode into memory that it did not write, is refused.

    Raises:
        ValueError: If the segmentation is broken.
    """
    mask = _coco_mask()
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("it has no polygon.")
        for polygon in segmentation:
            corners = np.asarray(polygon, dtype=np.float64)
            if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
                raise ValueError(f"a polygon is x, y of three corners or more, got {polygon!r:.80}.")
        _check_inside(segmentation, height, width)
        return list(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f"a segmentation is a list of polygons or an RLE of size and counts, got {segmentation!r:.80}."
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"its RLE is of the size {size}, the image of {[height, width]}.")
    if isinstance(counts, list):
        if any(not isinstance(run, int) or run < 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(f"the runs of an RLE must be {height} * {width} pixels together.")
        return [mask.frPyObjects(segmentation, height, width)]
    run_lengths = {"size": [height, width], "counts": counts}
    _check_complete(run_lengths)
    return [run_lengths]


def _check_inside(polygons: list[list[float]], height: int, width: int) -> None:
    """Refuse polygons that all lie outside the image, or have a corner so far away that it can be none."""
    parts = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    low, high = np.concatenate(parts).min(0), np.concatenate(parts).max(0)
    if max(-low.min(), high.max()) > _FARTHEST:
        raise ValueError(f"a polygon has a corner at {max(low.min(), high.max(), key=abs):g} pixels.")
    if all((part.max(0) <= 0).any() or (part.min(0) >= (width, height)).any() for part in parts):
        raise ValueError(
            f"its polygons lie outside the image of {width}×{height} pixels: they go from {tuple(low.tolist())} to "
            f"{tuple(high.tolist())}."
        )


def _check_complete(run_lengths: dict[str, Any]) -> None:
    """Refuse a compressed RLE that does not hold exactly its size."""
    mask = _coco_mask()
    mask.decode(run_lengths)  # raises where it holds more
    # One that holds fewer pixels leaves the rest of the mask as the memory was, without an error. If it is complete, it must
    # hold too many for a size of one pixel less.
    height, width = run_lengths["size"]
    try:
        mask.decode({"size": [height * width - 1, 1], "counts": run_lengths["counts"]})
    except ValueError:
        return
    raise ValueError(f"its RLE ends before its {height} * {width} pixels.")
