"""What ART's arguments must be like. This file needs no ART."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_inputs(x: Any, clip_values: tuple[Any, Any] | None) -> None:
    """Refuse anything but a non-empty batch of images within the classifier's range.

    Raises:
        TypeError: If ``x`` is no array of numbers.
        ValueError: If its shape is not four-dimensional, it is empty, or a value is not finite or outside the range.
    """
    if not isinstance(x, np.ndarray):
        hint = " For a tensor: x.detach().cpu().numpy()." if isinstance(x, Tensor) else " np.asarray makes one."
        raise TypeError(f"x must be a NumPy array of images (N, C, H, W), got {type(x).__name__}.{hint}")
    if x.dtype.kind not in "fiu":
        raise TypeError(f"x must be an array of real numbers, got dtype {x.dtype}.")
    if x.ndim != 4:
        raise ValueError(
            f"x must have four dimensions, the images' number and their shape, got {x.shape}. For a single image: x[None]."
        )
    if x.size == 0:
        raise ValueError(f"x must hold at least one image, got an empty array of shape {x.shape}.")
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1)).tolist()
        raise ValueError(f"x must be finite, got NaN or infinity in image(s) {bad[:10]} of the batch.")
    if clip_values is not None:
        low, high = clip_values
        if (x < low).any() or (x > high).any():
            raise ValueError(
                f"x must lie within the classifier's clip_values {clip_values}, got values from {x.min():g} to "
                f"{x.max():g}. Scale the images, or give the classifier their range; normalise by its preprocessing."
            )


def check_labels(y: Any, x: np.ndarray, classes: int | None) -> np.ndarray | None:
    """Labels, targets or guides (no ``classes`` then) as an array of one row for each image.

    Raises:
        ValueError: If there is another number of rows, or they are no labels of so many classes.
    """
    if y is None:
        return None
    array: np.ndarray = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim == 0 or len(array) != len(x):
        raise ValueError(
            f"y must hold one row for each of the {len(x)} images (class indices ({len(x)},) or one-hot rows), got shape "
            f"{array.shape}."
        )
    if classes is None:
        return array
    rows = array.ndim == 2 and array.shape[1] > 1
    if array.ndim > 2 or (rows and array.shape[1] != classes):
        raise ValueError(
            f"y must be class indices ({len(x)},) or one-hot rows ({len(x)}, {classes}), got shape {array.shape}."
        )
    if not rows and not (array.min() >= 0 and array.max() < max(classes, 2)):
        raise ValueError(
            f"y must hold class indices from 0 to {classes - 1}, got values from {array.min()} to {array.max()}."
        )
    return array


def as_indices(y: np.ndarray) -> Tensor:
    """Class indices ``(N,)`` of labels in either of ART's forms."""
    indices = y.argmax(1) if y.ndim > 1 and y.shape[1] > 1 else y.reshape(len(y))
    return torch.from_numpy(np.asarray(indices)).long()


def check_mask(mask: Any, x: np.ndarray) -> np.ndarray | None:
    """ART's own mask (0 = may not change) with as many dimensions as the images, None if there is none.

    Raises:
        TypeError: If it is no array of numbers.
        ValueError: If it does not broadcast to the images, or a value is negative or NaN.
    """
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "bfiu":
        given = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(
            f"mask must be a NumPy array of bool or numbers (ART's own: 1 = may change), got {given}. A salience map for "
            "one call is salience=..., where 1 marks what may not change."
        )
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask must broadcast to the images' shape {x.shape}, got {mask.shape}.")
    if not (mask >= 0).all():
        raise ValueError("mask must hold no negative number and no NaN; where it is 0 nothing changes.")
    return mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape).astype(np.float32)


def to_map_source(x: np.ndarray, estimator: Any) -> Tensor:
    """The images as functions that make maps expect them: ``(N, C, H, W)`` in ``[0, 1]``, on the classifier's device."""
    images = torch.from_numpy(np.asarray(x, dtype=x.dtype if x.dtype == np.float64 else np.float32))
    if estimator.clip_values is not None:
        low, high = (torch.as_tensor(np.asarray(bound), dtype=images.dtype) for bound in estimator.clip_values)
        if bool((low != 0).any()) or bool((high != 1).any()):
            images = ((images - low) / (high - low)).clamp(0, 1)
    if not getattr(estimator, "channels_first", True):
        images = images.permute(0, 3, 1, 2).contiguous()
    return images.to(estimator.device)
