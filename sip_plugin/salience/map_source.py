"""The maps of a data set's images, batch by batch, as the records of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sip_plugin.checks import check_images
from sip_plugin.constraint import prepare_mask
from sip_plugin.mask_source import MaskSource, accepts_labels, check_mask_source, compute_mask
from sip_plugin.salience.images import as_float, check_byte, label_of, pair_of
from sip_plugin.salience.provenance import network_of
from sip_plugin.salience.store_file import Header

Batch = tuple[Tensor, Tensor, np.ndarray]  # images, labels, the images' check bytes


class MapSource:
    """Asks a mask function for the maps of whole batches of a data set, each once.

    Args:
        dataset: A map-style data set of (image, label).
        mask_fn: Where its maps come from.
        image_shape: ``(C, H, W)``.
        batch_size: Images that ``mask_fn`` gets at once.
        device: Where it gets them; None is where its network is, or the CPU.
        num_workers: Processes that load images.

    Raises:
        TypeError: If ``mask_fn`` can never give a map.
        ValueError: If it is a map of several images, or ``device`` cannot be used here.
    """

    def __init__(
        self,
        dataset: Any,
        mask_fn: MaskSource,
        image_shape: tuple[int, int, int],
        batch_size: int,
        device: str | torch.device | None,
        num_workers: int,
    ) -> None:
        self.dataset, self.mask_fn = dataset, _checked(mask_fn)
        self.image_shape, self.batch_size, self.labels = image_shape, batch_size, accepts_labels(mask_fn)
        self.device = _device_of(mask_fn) if device is None else _usable(device)
        self.num_workers = num_workers
        self._first: tuple[range, Tensor, np.ndarray] | None = None

    def channels(self) -> int:
        """The channels of a map, as the first batch tells: 1 if all channels have the same map by its very shape."""
        images = range(min(self.batch_size, len(self.dataset)))
        self._first = (images, *self._maps(images, self._batches([images])[0]))
        return self._first[1].shape[1]

    def chunks(self, header: Header, chunks: Sequence[int]) -> Iterator[np.ndarray]:
        """The records of some chunks of a store, ``(images, bytes)``, one after the other."""
        cut = [_cut(header.images_of_chunk(chunk), self.batch_size) for chunk in chunks]
        known = None if self._first is None else self._first[0]
        batches = [batch for batches in cut for batch in batches if batch != known]
        loaded = self._loaded(batches)
        for batches in cut:
            yield np.concatenate([self._records(header, batch, loaded) for batch in batches])

    def checks(self, header: Header, chunks: Sequence[int]) -> Iterator[np.ndarray]:
        """The check bytes of the images of some chunks of a store, without asking for their maps."""
        cut = [_cut(header.images_of_chunk(chunk), self.batch_size) for chunk in chunks]
        loaded = self._loaded([batch for batches in cut for batch in batches])
        for batches in cut:
            yield np.concatenate([next(loaded)[2] for _ in batches])

    def _batches(self, batches: Sequence[range]) -> Batches:
        return Batches(self.dataset, batches, self.image_shape, self.labels)

    def _loaded(self, batches: Sequence[range]) -> Iterator[Batch]:
        return loaded(self._batches(batches), self.num_workers)

    def _records(self, header: Header, images: range, loaded: Iterator[Batch]) -> np.ndarray:
        if self._first is not None and self._first[0] == images:
            _, maps, checks = self._first
            self._first = None
        else:
            maps, checks = self._maps(images, next(loaded))
        if maps.shape[1] > header.channels:
            raise ValueError(
                f"The maps of images {images.start} to {images.stop - 1} have {maps.shape[1]} channels, those of the first "
                "batch had one for all. Let mask_fn give maps of one kind."
            )
        flat = maps.expand(-1, header.channels, -1, -1).flatten(1).numpy()
        return np.concatenate([np.packbits(flat, axis=1), checks[:, None]], axis=1)

    def _maps(self, indices: range, batch: Batch) -> tuple[Tensor, np.ndarray]:
        """``bool``, ``(n, C, H, W)`` or ``(n, 1, H, W)``, on the CPU."""
        images, labels, checks = batch
        images = as_float(images.to(self.device))
        try:
            check_images(images)
            maps = prepare_mask(compute_mask(self.mask_fn, images, labels.to(self.device)), images)
        except (TypeError, ValueError) as error:
            if type(error) not in (TypeError, ValueError):
                raise
            raise type(error)(
                f"In the batch of images {indices.start} to {indices.stop - 1} of the data set: {error}"
            ) from error
        if maps.stride(1) == 0:  # an expanded view: one map for all channels
            maps = maps[:, :1]
        channels, height, width = maps.shape[1], *self.image_shape[1:]
        return maps.expand(len(images), channels, height, width).cpu(), checks


class Batches(Dataset[Batch]):
    """A data set whose items are whole batches.

    Args:
        dataset: A map-style data set of (image, label).
        batches: The images of each.
        image_shape: ``(C, H, W)``.
        labels: The check bytes are of the images' labels, too.
    """

    def __init__(self, dataset: Any, batches: Sequence[range], image_shape: tuple[int, int, int], labels: bool) -> None:
        self.dataset, self.batches, self.image_shape, self.labels = dataset, batches, image_shape, labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        pairs = [(index, *pair_of(self.dataset, index)) for index in self.batches[number]]
        for index, image, _ in pairs:
            if tuple(image.shape) != self.image_shape:
                raise ValueError(
                    f"The images must be of one shape: item {index} is {tuple(image.shape)}, others are {self.image_shape}. "
                    "Resize them in the data set, in the same way each time."
                )
        labels = [label_of(index, label) for index, _, label in pairs]
        images = [image for _, image, _ in pairs]
        if len({image.dtype for image in images}) > 1:
            images = [as_float(image).to(torch.float32) for image in images]
        covered = labels if self.labels else [None] * len(images)
        checks = np.array([check_byte(*pair) for pair in zip(images, covered, strict=True)], dtype=np.uint8)
        return torch.stack(images), torch.tensor(labels), checks


def loaded(batches: Batches, num_workers: int) -> Iterator[Batch]:
    """Batches, one after the other, by the processes of a ``DataLoader``."""
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _cut(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _checked(mask_fn: MaskSource) -> MaskSource:
    if mask_fn is None:
        raise TypeError("mask_fn must be a callable (images, labels) -> map or (images) -> map, or a map, got None.")
    check_mask_source(mask_fn)
    if isinstance(mask_fn, (Tensor, np.ndarray)) and mask_fn.ndim == 4 and len(mask_fn) != 1:
        raise ValueError(
            f"mask_fn holds the maps of {len(mask_fn)} images already (shape {tuple(mask_fn.shape)}): no store is "
            "needed, give them to SalientDataset. A ready map must hold for every image: (H, W) or (1, C, H, W)."
        )
    return mask_fn


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"The device {str(device)!r} cannot be used here: {reason}") from error


def _device_of(mask_fn: Any) -> torch.device:
    network = network_of(mask_fn)
    if network is not None:
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")
