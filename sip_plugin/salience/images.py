"""The images of a data set: as tensors, and as numbers by which an image is known again."""

from __future__ import annotations

import copy
import hashlib
import operator
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sip_plugin.utils import isolated_rng

Batch = tuple[Tensor, Tensor, Tensor]


def as_tensor(image: Any) -> Tensor:
    """A plain tensor ``(C, H, W)`` of an image that is a tensor or a PIL image of 8 bits a channel, or a TypeError."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"An image must be uint8 or floating point, got {image.dtype}.")
        return image.detach().as_subclass(Tensor)  # past a subclass (tv_tensors.Image)
    pixels, mode = np.array(image), getattr(image, "mode", None)  # a copy: a tensor must be writable
    if mode in (None, "P") or pixels.dtype != np.uint8:
        raise TypeError(f"Images must be tensors or 8-bit PIL images (RGB, L), got {type(image).__name__} {mode}.")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()


def to_float(image: Tensor) -> Tensor:
    """A floating-point image, uint8 scaled to [0, 1] with the arithmetic of ``v2.functional.to_dtype(scale=True)``."""
    return image.to(torch.float32).mul_(1 / 255) if image.dtype == torch.uint8 else image


def image_contents(images: Tensor, labels: Iterable[Any] | None) -> list[bytes]:
    """Each image in steps of 1/255, the same for its PIL, uint8 and float forms, and its label where labels count."""
    if images.is_floating_point():
        images = images.to(torch.float32).mul(255).round_().clamp_(0, 255).to(torch.uint8)
    ends = [b""] * len(images) if labels is None else [f" {operator.index(label)}".encode() for label in labels]
    return [pixels.tobytes() + end for pixels, end in zip(images.cpu().numpy(), ends, strict=True)]


def load_batches(dataset: Any, batches: Iterable[list[int]], labels: bool, num_workers: int = 0) -> Iterator[Batch]:
    """Images (floating point), labels, and checksums of a data set's batches; the CRC-32 of images, or of both."""
    collate, rng = partial(_collate, labels), torch.Generator()  # nothing is drawn from the global one
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=rng)
    return iter(loader)


def _collate(with_labels: bool, items: Sequence[tuple[Any, Any]]) -> Batch:
    images, classes = zip(*items, strict=True)
    stacked, labels = torch.stack(list(map(as_tensor, images))), list(map(operator.index, classes))
    checksums = map(zlib.crc32, image_contents(stacked, labels if with_labels else None))
    return to_float(stacked), torch.tensor(labels), torch.tensor(list(checksums))


def sample_indices(length: int) -> list[int]:
    """32 evenly spaced indices of a data set, by whose images it is known again."""
    return sorted({round(k * (length - 1) / 31) for k in range(32)})


def check_unaugmented(dataset: Any, with_labels: bool = False) -> None:
    """Raise a ValueError for a data set whose images (or labels, if they count) are others each time."""
    dataset = copy.copy(dataset)  # it may open a file at its first use
    with isolated_rng():
        for index in sample_indices(len(dataset)) if len(dataset) else ():
            first, again = (dataset[index] for _ in range(2))
            same = np.array_equal(as_tensor(first[0]), as_tensor(again[0]), equal_nan=True)
            if not same or (with_labels and first[1] != again[1]):
                raise ValueError(
                    "The data set returns another image each time that one is fetched, or label (a random transform?). Give "
                    "the un-augmented one here, and the transform to SalientDataset, which moves image and map together."
                )


def dataset_fingerprint(dataset: Any, with_labels: bool) -> tuple[tuple[int, ...], str]:
    """The shape of a data set's images, and a hash of its length and of some of its images (and labels, if they count)."""
    check_unaugmented(dataset, with_labels)
    images, labels, _ = next(load_batches(dataset, [sample_indices(len(dataset))], with_labels))
    shape = tuple(images.shape[1:])
    contents = image_contents(images, labels if with_labels else None)
    return shape, hashlib.sha256(f"{len(dataset)} {shape}".encode() + b"".join(contents)).hexdigest()
