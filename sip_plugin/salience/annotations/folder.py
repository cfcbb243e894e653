"""Masks as image files in a folder tree beside the images."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

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
    check_threshold,
    image_paths,
    import_pillow,
)

# Pillow's grey modes, and the level that is white in each. A 16-bit PNG is "I" in an older Pillow.
_WHITE = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}


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
            threshold``. Makes no difference for binary masks.
        image_root: The root of the images' tree; the data set's own (``.root``) if it has one.
        suffix: Replaces the images' suffix; ``"_mask.png"`` works too.
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
        if full_level is not None and full_level < 1:
            raise ValueError(f"full_level must be a grey level of 1 or more, got {full_level!r}.")
        self.full_level = full_level
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder of masks {self.root}.")
        tree = getattr(images, "root", None) if image_root is None else image_root
        if tree is None:
            raise ValueError(
                "A list of image paths does not say which folder the masks' tree mirrors: give image_root."
            )
        relative = [path.relative_to(tree) for path in paths]
        self.files = tuple(self.root / path.with_name(path.stem + suffix) for path in relative)
        check_one_image_each(self.files, paths, self.root)
        self._check(missing)

    def __repr__(self) -> str:
        return f"FolderMasks({len(self)} masks in {self.root}, threshold={self.threshold:g})"

    def _source(self, index: int) -> str:
        return f"The mask {self.files[index]}"

    def _find(self, index: int) -> None:
        if not self.files[index].is_file():
            raise MissingAnnotationError(f"There is no mask {self.files[index]} for the image {self.images[index]}.")

    def _read(self, index: int) -> NDArray[np.bool_]:
        levels, white = _grey_levels(self.files[index])
        full = white if self.full_level is None else self.full_level
        highest = int(levels.max(initial=0))
        if highest > full:
            raise ValueError(f"The mask {self.files[index]} has the level {highest}, above full_level = {full}.")
        marked: NDArray[np.bool_] = levels / full >= self.threshold
        if highest and not marked.any():
            raise UnmarkedAnnotationError(
                f"The mask {self.files[index]} holds no level above {highest} of {full}, and none reaches the threshold "
                f"{self.threshold:g}: nothing of its image would be protected. If {highest} means salient, or marked by all "
                f"annotators: full_level={highest} (or the number of annotators, where levels count them). If {highest} of "
                f'{full} is meant: a lower threshold, or missing="empty" to take such masks as empty maps.'
            )
        return marked


def _grey_levels(path: Path) -> tuple[NDArray[np.int64], int]:
    """The levels of a mask, ``(H, W)``, and the level that is white in its format (1, 255 or 65535).

    A mask that is saved in colours (RGB, a palette) counts as grey if all of it is grey. What is transparent counts as
    black: nobody drew there.

    Raises:
        UnreadableAnnotationError: If it is no image, or a damaged one.
        ValueError: If it is not grey, or drawn in black on a transparent ground.
    """
    pillow = import_pillow()
    damages = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, pillow.DecompressionBombError)
    try:
        with pillow.open(path) as image:
            if image.mode in _WHITE and "transparency" not in image.info:
                return np.asarray(image).astype(np.int64), _WHITE[image.mode]
            colours = np.asarray(image.convert("RGBA"), dtype=np.int64)
    except damages as error:
        raise UnreadableAnnotationError(f"The mask {path} cannot be read: {error}") from error
    grey, alpha = colours[..., 0], colours[..., 3]
    visible = alpha > 0
    if (colours[visible, :3] != grey[visible, None]).any():
        raise ValueError(
            f"The mask {path} is in colours. A mask is grey (its level the share of annotators) or black and white; "
            "make one of the colours that mean salient."
        )
    if visible.any() and (alpha < 255).any() and not grey[visible].any():
        raise ValueError(
            f"The mask {path} is black on a transparent ground, so it does not say which of the two is salient. Save it in "
            "white on black."
        )
    return (grey * alpha + 127) // 255, 255
