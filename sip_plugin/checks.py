"""What images, labels and settings must be like; every error says what was given, what was expected and what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import torch
from torch import Tensor

Norm = Literal["Linf", "L2"]


def check_images(images: Tensor, *, name: str = "images", tolerance: float = 0.0) -> None:
    """Refuse anything but a non-empty floating-point batch ``(N, C, H, W)`` in ``[0, 1]``.

    Args:
        images: The batch.
        name: What the error calls it.
        tolerance: How far outside ``[0, 1]`` a value may lie (for images that were normalised and back).

    Raises:
        TypeError: If ``images`` is not a floating-point tensor.
        ValueError: If its shape is not ``(N, C, H, W)``, it is empty, or a value is NaN or outside ``[0, 1]``.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (N, C, H, W), got {type(images).__name__}.")
    if not images.is_floating_point():
        raise TypeError(
            f"{name} must be floating point in [0, 1], got {images.dtype}. For uint8 images: {name}.float() / 255."
        )
    if images.dim() != 4:
        raise ValueError(
            f"{name} must have the four dimensions (N, C, H, W), got shape {tuple(images.shape)}. "
            f"For a single image: {name}[None]."
        )
    if images.numel() == 0:
        raise ValueError(f"{name} must hold at least one image, got an empty batch of shape {tuple(images.shape)}.")
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= -tolerance and high <= 1 + tolerance):  # also catches NaN, which aminmax hands on
        if math.isnan(low) or math.isnan(high):
            bad = images.detach().isnan().flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"{name} must be finite, got NaN in image(s) {bad[:10]} of the batch.")
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:g} to {high:g}. Scale them first (x / 255), and put "
            "mean/std normalisation inside the model, so that eps keeps its meaning."
        )


def check_labels(labels: Tensor, images: Tensor, *, name: str = "labels") -> Tensor:
    """Refuse anything but class indices ``(N,)``; give them as int64 on the images' device.

    Raises:
        TypeError: If ``labels`` is not an integer tensor.
        ValueError: If its shape is not ``(N,)`` or an index is negative.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of class indices (N,), got {type(labels).__name__}.")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{name} must be integer class indices (torch.int64), got {labels.dtype}. "
            f"For indices: {name}.long(); for one-hot rows: {name}.argmax(1)."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name} must hold one class index per image, shape ({len(images)},), got {tuple(labels.shape)}."
        )
    labels = labels.detach().to(images.device, torch.int64)
    if int(labels.min()) < 0:
        raise ValueError(f"{name} must be class indices from 0, got {int(labels.min())}.")
    return labels


def check_logits(output: Any, rows: int) -> Tensor:
    """Refuse anything but logits ``(rows, classes)``, and give them.

    Raises:
        TypeError: If the network gave no tensor.
        ValueError: If it is of another shape.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The network must give logits (N, classes), got {type(output).__name__}. Wrap it in a module whose forward "
            "gives the logits alone."
        )
    if output.dim() != 2 or len(output) != rows or output.shape[1] < 2:
        raise ValueError(
            f"The network must give logits ({rows}, classes) with two classes or more, got shape {tuple(output.shape)}."
        )
    return output


def check_classes(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that the network has no logit for (on CUDA, picking one would end the process).

    Raises:
        ValueError: If a label is not below the number of classes.
    """
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be below {logits.shape[1]}, the number of the network's classes, got {int(labels.max())}."
        )


def check_eps(eps: Any, norm: Norm = "Linf", *, name: str = "eps") -> float:
    """Refuse a radius that is negative, not finite, or given in units of 1/255.

    Raises:
        TypeError: If ``eps`` is not a number.
        ValueError: If it is negative, NaN or infinite, or above 1 for L∞.
    """
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(eps).__name__}.")
    radius = float(eps)
    if not math.isfinite(radius) or radius < 0:
        raise ValueError(f"{name} must be finite and not negative, got {radius}.")
    if norm == "Linf" and radius > 1:
        raise ValueError(f"{name} is in units of images in [0, 1], got {radius:g}. Did you mean {radius:g}/255?")
    return radius


def check_int(value: Any, name: str, least: int) -> int:
    """Refuse anything but an integer (a NumPy one will do) from ``least`` on.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be an integer from {least}, got {value!r}.")
    return int(value)
