"""What images, labels, logits and settings must be like."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import torch
from torch import Tensor

Norm = Literal["Linf", "L2"]


def check_images(images: Tensor, *, name: str = "images", tolerance: float = 0.0) -> None:
    """Refuse anything but a non-empty floating-point batch ``(N, C, H, W)`` in ``[0, 1]``, or nearly so (``tolerance``).

    Raises:
        TypeError: If ``images`` is not a floating-point tensor.
        ValueError: If its shape is not ``(N, C, H, W)``, it is empty, or a value is NaN or outside ``[0, 1]``.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{name} must be a floating point torch.Tensor in [0, 1], got {given}. For uint8 images: {name}.float() / 255."
        )
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(
            f"{name} must have the four dimensions (N, C, H, W) and hold at least one image, got shape "
            f"{tuple(images.shape)}. For a single image: {name}[None]."
        )
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= -tolerance and high <= 1 + tolerance):  # also catches NaN
        raise ValueError(
            f"{name} must lie in [0, 1] and be finite (no NaN), got values from {low:g} to {high:g}. Scale them first "
            "(x / 255), and put mean/std normalisation inside the model."
        )


def check_labels(labels: Tensor, images: Tensor, *, name: str = "labels") -> Tensor:
    """Refuse anything but class indices ``(N,)``; give them as int64 on the images' device.

    Raises:
        TypeError: If ``labels`` is not an integer tensor.
        ValueError: If its shape is not ``(N,)`` or an index is negative.
    """
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"{name} must be a torch.Tensor of class indices (torch.int64), got {given}. For one-hot rows: {name}.argmax(1)."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{name} must be one class index per image, ({len(images)},), got {tuple(labels.shape)}.")
    labels = labels.detach().to(images.device, torch.int64)
    if int(labels.min()) < 0:
        raise ValueError(f"{name} must be class indices from 0, got {int(labels.min())}.")
    return labels


def check_logits(output: Any, rows: int, classes: int = 2) -> Tensor:
    """Logits ``(rows, at least so many classes)``; raises a ValueError for any other output of a network."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != rows or output.shape[1] < classes:
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"The network must give logits ({rows}, {classes} classes or more) alone, got {given}. Wrap it in a module "
            "whose forward returns them (of transformers: output.logits)."
        )
    return output


def check_classes(labels: Tensor, logits: Any) -> None:
    """Raise a ValueError for labels without a logit (on CUDA, picking one would end the process), if these are logits."""
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.dim() == 2 else 0
    if classes > 1 and int(labels.max()) >= classes:
        raise ValueError(f"labels must be below {classes}, the network's number of classes, got {int(labels.max())}.")


def output_gradient(score: Tensor, inputs: Tensor, what: str = "the image") -> Tensor:
    """The gradient of what a network's output says; raises a ValueError where there is none, which is not one of zero."""
    gradient = torch.autograd.grad(score, inputs, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise ValueError(
            f"The network's output has no gradient with respect to {what}. Is its forward under torch.no_grad(), does it "
            "round, or is it quantised? Take the network as it was trained."
        )
    return gradient


def check_eps(eps: Any, norm: Norm = "Linf", *, name: str = "eps") -> float:
    """Refuse a radius that is negative, not finite, or given in units of 1/255.

    Raises:
        TypeError, ValueError: If ``eps`` is no number, negative, NaN or infinite, or above 1 for L∞.
    """
    if isinstance(eps, (bool, str)):
        raise TypeError(f"{name} must be a number, got {eps!r}.")
    radius = float(eps)
    if not 0 <= radius < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {radius}.")
    if norm == "Linf" and radius > 1:
        raise ValueError(f"{name} is in units of images in [0, 1], got {radius:g}. Did you mean {radius:g}/255?")
    return radius


def check_int(value: Any, name: str, least: int) -> int:
    """Refuse anything but an integer (a NumPy one will do) from ``least`` on.

    Raises:
        ValueError: If it is no integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer from {least}, got {value!r}.")
    return int(value)


def check_choice(name: str, value: str, *choices: str) -> None:
    """Refuse a setting that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
