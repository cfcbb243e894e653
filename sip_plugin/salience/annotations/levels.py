"""Reading the grey levels of a mask file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sip_plugin.salience.annotations.files import pillow
from sip_plugin.salience.annotations.masks import MissingAnnotationError, UnreadableAnnotationError

# Pillow's grey modes, and the level that is white in each. A 16-bit PNG is "I" in an older Pillow.
_WHITE = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}


def grey_levels(path: Path) -> tuple[NDArray[np.int64], int]:
    """The levels of a mask, ``(H, W)``, and the level that is white in its format (1, 255 or 65535).

    A mask that is saved in colours (RGB, a palette) counts as grey if all of it is grey. What is transparent counts as
    black: nobody drew there.

    Raises:
        MissingAnnotationError: If there is no such file.
        UnreadableAnnotationError: If it is no image, or a damaged one.
        ValueError: If it is not grey, or drawn in black on a transparent ground.
    """
    image_module = pillow()
    failures = (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        zlib.error,
        struct.error,
        image_module.DecompressionBombError,
    )
    try:
        with image_module.open(path) as image:
            if image.mode in _WHITE and "transparency" not in image.info:
                return np.asarray(image).astype(np.int64), _WHITE[image.mode]
            colours = np.asarray(image.convert("RGBA"), dtype=np.int64)
    except FileNotFoundError as error:
        raise MissingAnnotationError(f"There is no mask {path}.") from error
    except failures as error:
        raise UnreadableAnnotationError(f"The mask {path} cannot be read: {error}") from error
    return _drawn(colours, path), 255


def _drawn(colours: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    """The grey levels of ``(H, W, RGBA)`` on black."""
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
    return (grey * alpha + 127) // 255
