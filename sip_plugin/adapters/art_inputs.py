"""What ART's arguments must be like. This file needs no ART."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_inputs(x: np.ndarray, clip_values: tuple[Any, Any] | None) -> None:
    """Refuse anything but images of finite values within the classifier's range."""
    low, high = (-np.inf, np.inf) if clip_values is None else clip_values
    if x.ndim != 4 or not np.isfinite(x).all() or (x < low).any() or (x > high).any():
        raise ValueError(
            f"x must be images (N, C, H, W) of finite values within the classifier's clip_values {clip_values}, got shape "
            f"{x.shape} and values from {x.min():g} to {x.max():g}. Scale the images, or give the classifier their range."
        )


def check_labels(y: Any, x: np.ndarray, classes: int | None) -> np.ndarray | None:
    """Labels, targets or guides (no ``classes`` then) as an array of one row for each image; refuse any other number."""
    if y is None:
        return None
    array = np.asarray(y)
    fits = array.ndim > 0 and len(array) == len(x)
    if fits and classes is not None:
        if array.ndim == 2 and array.shape[1] > 1:
            fits = array.shape[1] == classes
        else:
            fits = array.size == len(x) and array.min() >= 0 and array.max() < max(classes, 2)
    if not fits:
        count = len(x)
        raise ValueError(
            f"y must hold one row for each of the {count} images: class indices ({count},) from 0 to below {classes}, or "
            f"one-hot rows ({count}, {classes}); got shape {array.shape}."
        )
    return array


def as_indices(y: np.ndarray) -> Tensor:
    """Class indices ``(N,)`` of labels in either of ART's forms."""
    indices = y.argmax(1) if y.ndim > 1 and y.shape[1] > 1 else y.reshape(len(y))
    return torch.from_numpy(np.asarray(indices)).long()


def forbidden(mask: np.ndarray, x: np.ndarray) -> Tensor:
    """Where ART's own mask (1 = may change), which broadcasts to ``x``, lets nothing change."""
    if not isinstance(mask, np.ndarray) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "mask must be a NumPy array of 0 and 1 (ART's own: 1 = may change). A salience map for one call is "
            "salience=..., where 1 marks what may not change."
        )
    return torch.from_numpy(np.broadcast_to(mask == 0, x.shape).copy())


def to_map_source(x: np.ndarray, estimator: Any) -> Tensor:
    """The images as functions that make maps expect them: ``(N, C, H, W)`` in ``[0, 1]``, on the classifier's device."""
    images = torch.from_numpy(np.asarray(x, dtype=x.dtype if x.dtype == np.float64 else np.float32))
    if estimator.clip_values is not None:
        low, high = (torch.as_tensor(np.asarray(bound), dtype=images.dtype) for bound in estimator.clip_values)
        images = ((images - low) / (high - low)).clamp(0, 1)
    if not estimator.channels_first:
        images = images.permute(0, 3, 1, 2).contiguous()
    return images.to(estimator.device)
