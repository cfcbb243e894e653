"""The whole evaluated set as two tensors, from a pair of tensors or from a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sip_plugin.checks import check_images, check_labels

Data = tuple[Tensor, Tensor] | Iterable[Sequence[Any]]
"""Images ``(N, C, H, W)`` and labels ``(N,)``, or batches ``(images, labels, ...)`` of them."""


def collect(data: Data, max_images: int | None = None) -> tuple[Tensor, Tensor]:
    """Images ``(N, C, H, W)`` as float32 and labels ``(N,)``, both on the CPU.

    Args:
        data: A pair ``(images, labels)``, or an iterable of batches ``(images, labels, ...)`` whose further parts (salience
            maps) are left out: an evaluation is never restricted.
        max_images: Take the first so many, one or more.

    Raises:
        TypeError: If ``data`` is neither, or a part is of the wrong type.
        ValueError: If there are no images, or a batch's shapes or values do not fit.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        images, labels = _checked(data[0], data[1], "images", "labels")
        return images[:max_images], labels[:max_images]
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be (images, labels) or an iterable of such batches, for instance a DataLoader, got "
            f"{type(data).__name__}."
        )
    parts, count = [], 0
    for number, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"Batch {number} must be (images, labels) or (images, labels, ...), got {_shown(batch)}.")
        parts.append(_checked(batch[0], batch[1], f"images of batch {number}", f"labels of batch {number}"))
        if parts[-1][0].shape[1:] != parts[0][0].shape[1:]:
            raise ValueError(
                f"Images of batch {number} have shape {tuple(parts[-1][0].shape[1:])}, those of batch 0 "
                f"{tuple(parts[0][0].shape[1:])}; all must be of one shape."
            )
        count += len(parts[-1][0])
        if max_images is not None and count >= max_images:
            break
    if not parts:
        raise ValueError("data holds no batch; a generator that was used up already gives none.")
    return torch.cat([x for x, _ in parts])[:max_images], torch.cat([y for _, y in parts])[:max_images]


def _checked(images: Any, labels: Any, name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    check_images(images, name=name)
    labels = check_labels(labels, images, name=labels_name)
    # Copies: what the caller made in inference mode cannot take part in a gradient.
    return images.detach().to("cpu", torch.float32, copy=True), labels.to("cpu", copy=True)


def _shown(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of length {len(batch)}"
    if isinstance(batch, Tensor):
        return f"one tensor of shape {tuple(batch.shape)}"
    return type(batch).__name__
