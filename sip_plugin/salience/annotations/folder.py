"""Masks as image files in a folder tree beside the images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.base import HumanMasks, Images, Missing, check_threshold, image_paths
from sip_plugin.utils import import_extra

# Pillow's grey modes, and the level that is white in each. A 16-bit PNG is "I" in an older Pillow.
_WHITE = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}


class FolderMasks(HumanMasks):
    """Grey or binary masks in a folder tree that mirrors the tree of the images.

    The mask of ``images/robin/0001.jpg`` is ``masks/robin/0001.png``. Its grey level is the share of annotators that marked
    the pixel: black for none, white for all (1, 255 or 65535, for a PNG of 1, 8 or 16 bits). Colours and palettes are taken
    if all of the mask is grey; what is transparent counts as black.

    Args:
        images: A data set with ``.samples`` (torchvision's ``ImageFolder``), or a list of image paths.
        masks: The root of the masks' tree.
        threshold: A pixel is salient if ``level / full_level >= threshold``, in ``(0, 1]``.
        image_root: The root of the images' tree, for a list of paths; None for the data set's own (``.root``).
        suffix: Replaces the images' suffix; ``"_mask.png"`` works too.
        full_level: The level that stands for all annotators; None for white. 1 for 8-bit files of zeros and ones.
        missing: ``"error"``, or ``"empty"`` for an empty map in place of the first errors below, counted by one warning.

    Raises:
        MissingAnnotationError: (a ``FileNotFoundError``) If a mask is missing.
        UnreadableAnnotationError: (a ``ValueError``, on access) If a mask is damaged, has colours or levels above
            ``full_level``, or is black on a transparent ground.
        UnmarkedAnnotationError: (a ``ValueError``, on access) If a mask marks something, but no pixel reaches the threshold.
        ValueError: If the threshold is not of ``(0, 1]`` or two images share a mask; on access, if a mask is not of its
            image's size, or the image is turned by its EXIF data.

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
        self.root = Path(masks)
        self.threshold = check_threshold(threshold)
        self.full_level = full_level
        tree: Any = getattr(images, "root", None) if image_root is None else image_root
        self.files = tuple(self.root / path.relative_to(tree).with_name(path.stem + suffix) for path in paths)
        super().__init__(paths, [[file] if file.is_file() else [] for file in self.files], self.files, missing)

    def _read(self, annotation: Path, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str]:
        with import_extra("PIL.Image", "annotations").open(annotation) as image:
            grey = image.mode in _WHITE and "transparency" not in image.info
            full = self.full_level or (_WHITE[image.mode] if grey else 255)
            levels = np.asarray(image if grey else image.convert("RGBA"), dtype=np.int64)
        unclear = False
        if not grey:
            alpha = levels[..., 3:]
            colours = (levels[..., :3] * alpha + 127) // 255  # what is transparent counts as black
            levels = colours[..., 0]
            black = not levels.any() and alpha.any() and alpha.min() < 255
            unclear = black or (colours != levels[..., None]).any()
        highest = levels.max()
        if unclear or highest > full:
            raise ValueError(f"it has colours, is black on transparent ground, or has levels above full_level, {full}.")
        hint = f"it has no level above {highest} of {full}. If {highest} stands for everybody: full_level={highest}."
        return levels / full >= self.threshold, hint if highest else ""
