"""Salience maps computed once and kept on disk, one bit per element."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.distributed import ProcessGroup
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.model_utils import model_device
from sip_plugin.salience.images import class_index, dataset_fingerprint, image_checksum, load_batches, split
from sip_plugin.salience.provenance import differences, find_model
from sip_plugin.salience.store_build import Builder, intact, open_records, read_info, store_info


class MaskStore:
    """The salience maps of a whole data set on disk, one bit per element, read through a memory map.

    A store is a folder of ``maps.npy``, a NumPy array of records (the packed map, the CRC-32 of its image, and the CRC-32 of
    the map that starts from it), and ``info.json``. ``MaskStore.build`` makes it, ``MaskStore(path)`` opens it; ``store[i]``
    is the map of image ``i``, ``store[i:j]`` and ``store[indices]`` those of several. Every map that is read is compared to
    its checksum. A store can be pickled (a worker opens the same files), used by several threads and processes at once, and
    as a context manager.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        shape: ``(N, C, H, W)`` of the maps.
        provenance: What computed them, as :func:`sip_plugin.salience.provenance.provenance` describes it.

    Raises:
        FileNotFoundError: If there is no such store.
        ValueError: If it is no mask store, unfinished, cut off, or damaged.

    Example:
        >>> store = MaskStore.build("train.masks", dataset, GradientSalience(teacher), batch_size=256)
        >>> store = MaskStore("train.masks")  # later
        >>> store[0], store[[3, 1, 4]]  # bool, (C, H, W) and (3, C, H, W)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._info = read_info(self.path)
        if not self._info["complete"]:
            raise ValueError(f"{self.path} is unfinished. The same call of MaskStore.build resumes it.")
        self._records: np.memmap[Any, Any] | None = open_records(self.path, self._info)
        self._positions = np.arange(self._info["length"])
        self.shape = torch.Size((self._info["length"], *self._info["image_shape"]))
        self.provenance: dict[str, Any] = self._info["provenance"]

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        dataset: Any,
        mask_fn: MaskSource,
        batch_size: int = 128,
        *,
        device: str | torch.device | None = None,
        num_workers: int = 0,
        progress: bool = True,
        overwrite: bool = False,
    ) -> MaskStore:
        """Compute the maps of all images of a data set, once, and open their store.

        The process may be killed at any moment: the same call resumes. It reads all images, compares those that have a map
        with their checksums, and computes the missing maps. A finished store of the same maps and images is opened, and
        nothing is computed; 32 images are compared then (and their labels, if ``mask_fn`` takes labels),
        ``store.check(dataset, every=True)`` compares all of them, and :class:`SalientDataset` each one as it is read. Where
        ``torch.distributed`` is initialised (torchrun), each process computes a share; all must see the same file system.

        Args:
            path: The folder to make. Its parent folder must exist.
            dataset: A map-style data set of (image, label); the images un-augmented and of one shape, as floating-point
                tensors in [0, 1], uint8 tensors or PIL images.
            mask_fn: Where the maps come from: a callable ``(images, labels) -> map`` or ``(images) -> map``, or a map that
                holds for every image. Its maps must be bool or {0, 1}.
            batch_size: Images that ``mask_fn`` gets at once.
            device: Where ``mask_fn`` gets its images; by default where its network is, or the CPU.
            num_workers: Processes that load images (of torch's ``DataLoader``).
            progress: Show a progress bar (needs tqdm; without it there is none).
            overwrite: Delete another or a finished store at ``path``, and build anew; maps of an unfinished one whose
                images have changed are computed again.

        Returns:
            The store, opened.

        Raises:
            TypeError: If an argument, an item of the data set or a map is of the wrong type.
            ValueError: If images or maps have the wrong shape or values, the data set returns another image each time, or
                the processes of a group do not build the same store.
            FileExistsError: If another store, an unfinished one of other images, or something else is at ``path``.
            OSError: If the files cannot be written (the parent folder is missing or read-only, the disk is full), or
                another process builds this store.
            RuntimeError: If another process of this group failed.
        """
        group = ProcessGroup()
        info = group.call(lambda: store_info(dataset, mask_fn, batch_size))
        group.require_equal("Give all of them the same arguments.", batch_size=batch_size, overwrite=overwrite, **info)
        model = find_model(mask_fn)
        if device is None:
            device = torch.device("cpu") if model is None else model_device(model)
        folder, batches = Path(path).absolute(), split(len(dataset), batch_size)
        with preserve_model_state(model):  # a function may use its network in ways that leave traces
            Builder(folder, dataset, mask_fn, info, batches, device, num_workers, overwrite).run(group, progress)
        return cls(folder)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor | np.ndarray) -> Tensor:
        """The map of one image, ``(C, H, W)``, or those of several, ``(n, C, H, W)``; ``bool``.

        Args:
            index: Any index of a NumPy array of one dimension: an integer, a slice, integers, or a mask of booleans.

        Raises:
            IndexError: If there is no such image.
            ValueError: If a map that is read does not fit its checksum; names the image.
        """
        index = index.cpu().numpy() if isinstance(index, Tensor) else list(index) if isinstance(index, tuple) else index
        positions = np.asarray(self._positions[index])
        return self._unpack(self._read(positions.reshape(-1))).view(*positions.shape, *self.shape[1:])

    def maps_of(self, indices: Sequence[int], images: Sequence[Tensor], labels: Sequence[Any] | None = None) -> Tensor:
        """The maps ``(n, C, H, W)`` of images, after a check that they are the ones that the maps were computed for.

        Where the maps were computed by a function of (images, labels), the checksums are of images and labels.

        Args:
            indices: Where they are in the data set.
            images: The un-augmented images, each ``(C, H, W)``, uint8 or floating point in [0, 1].
            labels: Their class indices; needed where the maps were computed with labels.

        Raises:
            IndexError: If there is no such image.
            TypeError: If labels are needed and are missing, or are no class indices.
            ValueError: If an image or a label is another one, or a map does not fit its checksum.
        """
        positions = self._positions[np.asarray(indices, dtype=np.int64)]
        numbers: list[int | None] = [None] * len(images)
        if self._info["labels"]:
            if labels is None:
                raise TypeError(f"The maps in {self.path} were computed with labels: give those of the images, too.")
            numbers = list(map(class_index, positions.tolist(), labels))
        records = self._read(positions)
        self._check_images(positions, records, list(map(image_checksum, images, numbers)))
        return self._unpack(records)

    def check(self, dataset: Any, *, every: bool = False, num_workers: int = 0) -> None:
        """Refuse a data set whose maps these are not; by its length, its shape and 32 of its images, or by each of them.

        Where the maps were computed by a function of (images, labels), the labels are compared, too.

        Args:
            dataset: A map-style data set of (image, label).
            every: Read all images, and compare each one's checksum.
            num_workers: Processes that load them (of torch's ``DataLoader``).

        Raises:
            TypeError: If it is no map-style data set of (image, label).
            ValueError: If it is another one.
        """
        shape, fingerprint = dataset_fingerprint(dataset, self._info["labels"])
        theirs = {"length": len(dataset), "image_shape": list(shape), "dataset": fingerprint}
        different = differences({name: self._info[name] for name in theirs}, theirs)
        if different:
            raise ValueError(
                f"{self.path} was built for another data set ({'; '.join(different)}). Give the un-augmented data set of "
                f"MaskStore.build, in the same order{', with the same labels' if self._info['labels'] else ''}."
            )
        batches = split(len(self), 128) if every else []
        loaded = load_batches(dataset, batches, self._info["image_shape"], self._info["labels"], num_workers)
        for batch, (_, _, checksums) in zip(batches, loaded, strict=True):
            positions = self._positions[batch.start : batch.stop]
            self._check_images(positions, self._read(positions), checksums.tolist())

    def verify(self) -> None:
        """Compare every map with its checksum, which otherwise happens as they are read.

        Raises:
            ValueError: If one does not fit (names its image), or the file was cut off.
        """
        for batch in split(len(self), 1024):
            self._read(self._positions[batch.start : batch.stop])

    def close(self) -> None:
        """Close the file; the store cannot be read any more."""
        self._records = None

    def __enter__(self) -> MaskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source = self.provenance.get("class") or self.provenance.get("function") or "a map"
        return f"MaskStore({str(self.path)!r}, shape={tuple(self.shape)}, made by {source})"

    def __reduce__(self) -> tuple[type[MaskStore], tuple[Path]]:
        return MaskStore, (self.path,)

    def _read(self, positions: np.ndarray) -> np.ndarray:
        """A copy of some records, compared with their checksums."""
        if self._records is None:
            raise ValueError(f"The store {self.path} is closed.")
        if self._records._mmap.size() < self._records.offset + self._records.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path} was cut off while it was open.")  # reading on would kill the process
        records: np.ndarray = self._records[positions]
        damaged = np.flatnonzero(~intact(records))
        if len(damaged):
            raise ValueError(
                f"{self.path} is damaged: the map of image {positions[damaged[0]]} does not fit its checksum. Delete the "
                "store and build it again."
            )
        return records

    def _unpack(self, records: np.ndarray) -> Tensor:
        shape = (self._info["channels"], *self.shape[2:])
        bits = np.unpackbits(records["map"], axis=1, count=math.prod(shape))
        return torch.from_numpy(bits).view(torch.bool).view(-1, *shape).expand(-1, *self.shape[1:])

    def _check_images(self, positions: np.ndarray, records: np.ndarray, checksums: list[int]) -> None:
        other = positions[records["image"] != np.array(checksums, dtype=np.int64)]
        if len(other):
            raise ValueError(
                f"Image {other[0]}{' (or its label)' * self._info['labels']} is not the one that its map in {self.path} was "
                "computed for: the data set is another one, in another order, or augments its images. Give the un-augmented "
                "data set of MaskStore.build."
            )
