"""The images of a data set: as tensors, and as numbers by which an image is known again."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sip_plugin.checks import check_images

_SAMPLES = 32
Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, checksums


def get_image_label(dataset: Any, index: int) -> tuple[Tensor, Any]:
    """Image and label of a map-style data set's item; the image as a tensor ``(C, H, W)``, uint8 or floating point.

    Raises:
        TypeError: If the item is no pair, or its image neither a tensor nor a PIL image of 8 bits a channel.
        ValueError: If the image has not the three dimensions ``(C, H, W)``.
    """
    item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        got = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise TypeError(f"A data set of (image, label) pairs was expected, item {index} is {got}.")
    image, label = item
    return as_tensor(image, f"The image of item {index}"), label


def as_tensor(image: Any, name: str = "The image") -> Tensor:
    """A tensor ``(C, H, W)``, uint8 or floating point, of an image that is one or a PIL image.

    Raises:
        TypeError: If it is neither, or a PIL image with a palette or not of 8 bits a channel.
        ValueError: If it has not the three dimensions ``(C, H, W)``, or none of one is empty.
    """
    if not isinstance(image, Tensor):
        image = _of_pil(image, name)
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating point, got {image.dtype}.")
    if image.dim() != 3 or not image.numel():
        raise ValueError(f"{name} must be of shape (C, H, W), got {tuple(image.shape)}.")
    tensor: Tensor = image.detach().as_subclass(Tensor)  # past a subclass (tv_tensors.Image)
    return tensor


def _of_pil(image: Any, name: str) -> Tensor:
    # A PIL image has these; so that Pillow is not needed for tensors.
    if not (hasattr(image, "mode") and hasattr(image, "getbands") and hasattr(image, "size")):
        raise TypeError(f"{name} must be a tensor (C, H, W) or a PIL image, got {type(image).__name__}.")
    pixels = np.array(image)  # a copy: a tensor must be writable
    if image.mode == "P" or pixels.dtype != np.uint8:
        raise TypeError(
            f'{name} is a PIL image of mode "{image.mode}"; give one of 8 bits a channel: image.convert("RGB").'
        )
    return torch.from_numpy(pixels).view(image.size[1], image.size[0], -1).permute(2, 0, 1).contiguous()


def to_float(image: Tensor) -> Tensor:
    """A floating-point image, uint8 scaled to [0, 1] with the arithmetic of ``v2.functional.to_dtype(scale=True)``."""
    return image.to(torch.float32).mul_(1 / 255) if image.dtype == torch.uint8 else image


def _bytes(image: Tensor) -> bytes:
    """The image in steps of 1/255, the same for its PIL, uint8 and float forms."""
    if image.is_floating_point():
        image = image.to(torch.float32).mul(255).round_().clamp_(0, 255).to(torch.uint8)
    return image.cpu().contiguous().numpy().tobytes()


def class_index(index: int, label: Any) -> int:
    """The class index of an item, of whatever integer type.

    Raises:
        TypeError: If it is none.
    """
    try:
        if isinstance(label, (Tensor, np.ndarray)):
            label = label.item()
        if isinstance(label, float) or label != int(label):
            raise TypeError
        return int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Labels must be class indices, that of item {index} is {label!r}.") from error


def image_checksum(image: Tensor, label: int | None = None) -> int:
    """The CRC-32 of an image, and of its label if there is one."""
    return zlib.crc32(_bytes(image) + _label_bytes(label))


def _label_bytes(label: int | None) -> bytes:
    return b"" if label is None else f" {label}".encode()


def dataset_fingerprint(dataset: Any, labels: bool = False) -> tuple[tuple[int, int, int], str]:
    """The shape of a data set's images, and a fingerprint: a hash of its length and of evenly spaced images.

    Args:
        dataset: A map-style data set of (image, label).
        labels: The fingerprint is of the images' labels, too.

    Raises:
        TypeError: If it is no map-style data set of (image, label).
        ValueError: If it is empty, its images are not of one shape or not in [0, 1], or fetching one twice gives two
            different ones.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"A map-style data set (with a length and an index) is needed, got {type(dataset).__name__}.")
    length = len(dataset)
    if not length:
        raise ValueError("The data set is empty.")
    indices = sorted({round(k * (length - 1) / (_SAMPLES - 1)) for k in range(_SAMPLES)})
    pairs = [get_image_label(dataset, index) for index in indices]
    images = [_in_range(image, index) for index, (image, _) in zip(indices, pairs, strict=True)]
    channels, height, width = images[0].shape
    shape = (channels, height, width)
    for index, image in zip(indices, images, strict=True):
        _check_shape(image, index, shape)
    for index, image in zip(indices, images, strict=True):
        again, _ = get_image_label(dataset, index)
        if again.dtype != image.dtype or not torch.equal(again, image):
            raise ValueError(
                f"Item {index} of the data set is another image each time that it is fetched (a random transform?). Maps "
                "belong to un-augmented images: give that data set here, and the transform to SalientDataset, which moves "
                "image and map together."
            )
    digest = hashlib.sha256(f"{length} {shape}".encode())
    for index, image, (_, label) in zip(indices, images, pairs, strict=True):
        digest.update(_bytes(image) + _label_bytes(class_index(index, label) if labels else None))
    return shape, digest.hexdigest()


def _in_range(image: Tensor, index: int) -> Tensor:
    if image.is_floating_point():
        check_images(image[None], name=f"The image of item {index}")
    return image


def split(length: int, size: int) -> list[range]:
    """The indices of a data set in batches."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def load_batches(
    dataset: Any, batches: list[range], image_shape: Sequence[int], labels: bool, num_workers: int
) -> Iterator[Batch]:
    """Images (floating point), labels and checksums of a data set's batches, loaded by torch's ``DataLoader``.

    Args:
        dataset: A map-style data set of (image, label).
        batches: The indices of each batch.
        image_shape: ``(C, H, W)``.
        labels: The checksums are of the images' labels, too.
        num_workers: Processes that load images.
    """
    source, generator = _Batches(dataset, image_shape, labels), torch.Generator()  # none is drawn from the global one
    return iter(DataLoader(source, None, sampler=batches, num_workers=num_workers, generator=generator))


class _Batches(Dataset[Batch]):
    def __init__(self, dataset: Any, image_shape: Sequence[int], labels: bool) -> None:
        self.dataset, self.image_shape, self.labels = dataset, tuple(image_shape), labels

    def __getitem__(self, batch: range) -> Batch:
        images, labels = zip(*(get_image_label(self.dataset, index) for index in batch), strict=True)
        for index, image in zip(batch, images, strict=True):
            _check_shape(image, index, self.image_shape)
        numbers = list(map(class_index, batch, labels))
        covered = numbers if self.labels else [None] * len(batch)
        checksums = torch.tensor(list(map(image_checksum, images, covered)))
        alike = images if len({image.dtype for image in images}) == 1 else list(map(to_float, images))
        return to_float(torch.stack(list(alike))), torch.tensor(numbers), checksums


def _check_shape(image: Tensor, index: int, shape: tuple[int, ...]) -> None:
    if tuple(image.shape) != shape:
        raise ValueError(
            f"The images must be of one shape: item {index} is {tuple(image.shape)}, others are {shape}. Resize them in the "
            "data set, in the same way each time."
        )
