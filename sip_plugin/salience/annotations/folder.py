"""Masks as image files in a folder tree beside the images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.files import Images, check_one_image_each, image_paths, upright_size
from sip_plugin.salience.annotations.levels import grey_levels
from sip_plugin.salience.annotations.masks import (
    HumanMasks,
    Missing,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    check_threshold,
)


class FolderMasks(HumanMasks):
    """Grey or binary masks in a folder tree that mirrors the tree of the images.

    The mask of ``images/robin/0001.jpg`` is ``masks/robin/0001.png``. Its grey level is the share of annotators that marked
    the pixel: black for none, white for all (1, 255 or 65535, for a PNG of 1, 8 or 16 bits). A pixel is salient if at least
    ``threshold`` of them marked it.

    Args:
        images: The data set that the maps are for: one with ``.samples`` (torchvision's ``ImageFolder``), or a list of
            image paths.
        masks: The root of the masks' tree.
        threshold: The share of annotators from which on a pixel is salient, in ``(0, 1]``: ``level / full_level >=
            threshold``. Of no account for binary masks.
        image_root: The root of the images' tree; the data set's own (``.root``) if it has one.
        suffix: What takes the place of the images' suffix; ``"_mask.png"`` will do too.
        full_level: The level that stands for all annotators; None for white. 1 for 8-bit files of zeros and ones.
        missing: ``"error"``, or ``"empty"`` for an empty map where a mask is missing or unreadable, or none of its levels
            reaches the threshold, with one warning that counts them; every mask is read once for that.

    Raises:
        MissingAnnotationError: (a ``FileNotFoundError``) If a mask is missing.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a mask is damaged.
        UnmarkedAnnotationError: (a ``ValueError``, on access) If a mask marks something, but no pixel reaches
            the threshold.
        ValueError: If an argument is none of the above; on access, if a mask is not grey or not of its image's size,
            or the image is turned by its EXIF data.

    Example:
        >>> birds = torchvision.datasets.ImageFolder("images")
        >>> data = SalientDataset(birds, FolderMasks(birds, "masks", threshold=0.5), transform)
    """

    def __init__(
        self,
        images: Images,
        masks: str | os.PathLike[str],
        *,
        threshold: float = 0.5,
        image_root: str | os.PathLike[str] | None = None,
        suffix: str = ".png",
        full_level: int | None = None,
        missing: Missing = "error",
    ) -> None:
        paths = image_paths(images)
        super().__init__(paths)
        self.root = Path(masks)
        self.threshold = check_threshold(threshold)
        if full_level is not None and (isinstance(full_level, bool) or full_level < 1):
            raise ValueError(f"full_level must be a grey level of 1 or more, got {full_level!r}.")
        self.full_level = full_level
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder of masks {self.root}.")
        tree = _tree_of(images, image_root)
        self.files = tuple(self.root / _mirrored(path, tree, suffix) for path in paths)
        check_one_image_each(self.files, paths, self.root)
        self._check(missing)

    def __repr__(self) -> str:
        return f"FolderMasks({len(self)} masks in {self.root}, threshold={self.threshold:g})"

    def _source(self, index: int) -> str:
        return f"The mask {self.files[index]}"

    def _find(self, index: int) -> None:
        if not self.files[index].is_file():
            raise MissingAnnotationError(f"There is no mask {self.files[index]} for the image {self.images[index]}.")

    def _size(self, index: int) -> tuple[int, int]:
        path = self.images[index]
        assert isinstance(path, Path)
        return upright_size(path)

    def _read(self, index: int) -> NDArray[np.bool_]:
        levels, white = grey_levels(self.files[index])
        full = white if self.full_level is None else self.full_level
        highest = int(levels.max(initial=0))
        if highest > full:
            raise ValueError(f"The mask {self.files[index]} has the level {highest}, above full_level = {full}.")
        marked: NDArray[np.bool_] = levels / full >= self.threshold
        if highest and not marked.any():
            held = "holds only the levels 0 and 1" if highest == 1 else f"holds no level above {highest}"
            raise UnmarkedAnnotationError(
                f"The mask {self.files[index]} {held} of {full}, and none reaches the threshold {self.threshold:g}: nothing "
                f"of its image would be protected. If {highest} means salient, or marked by all annotators: "
                f"full_level={highest} (or the number of annotators, where levels count them). If {highest} of {full} is "
                'meant: a lower threshold, or missing="empty" to take such masks as empty maps.'
            )
        return marked


def _tree_of(images: Images, image_root: str | os.PathLike[str] | None) -> Path:
    root = getattr(images, "root", None) if image_root is None else image_root
    if root is None:
        raise ValueError("A list of image paths does not say which folder the masks' tree mirrors: give image_root.")
    return Path(root)


def _mirrored(path: Path, tree: Path, suffix: str) -> Path:
    try:
        relative = path.relative_to(tree)
    except ValueError as error:
        raise ValueError(f"The image {path} is not below image_root = {tree}.") from error
    return relative.with_name(relative.stem + suffix)
