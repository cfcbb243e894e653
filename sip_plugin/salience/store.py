"""Salience maps made once and kept in a file, one bit per element."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.salience.images import check_byte, label_of, sample_of
from sip_plugin.salience.indices import Indices, as_integer, positions_of
from sip_plugin.salience.map_source import Batches, MapSource, loaded
from sip_plugin.salience.provenance import network_of
from sip_plugin.salience.ranks import Ranks
from sip_plugin.salience.store_build import Build, agreed, check_batch_size, wanted_of
from sip_plugin.salience.store_file import StoreError, block_checksum, open_whole


class MaskStore:
    """The salience maps of a whole data set in one file, one bit per element, read through a memory map.

    ``MaskStore.build`` makes the file; ``MaskStore(path)`` opens it. ``store[i]`` is the map of image ``i``, ``store[i:j]``
    and ``store[indices]`` those of several. Each read checks the checksum of what it reads. A store can be pickled (a worker
    opens the same file), used by several threads and processes at once, and as a context manager.

    Args:
        path: The file.

    Attributes:
        path: The file.
        shape: ``(N, C, H, W)`` of the maps.
        provenance: What made them, as :func:`sip_plugin.salience.provenance.provenance` tells it.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If it is no mask store, half-built, cut off, or its header is damaged.

    Example:
        >>> store = MaskStore.build("maps.sip", dataset, GradientSalience(teacher), batch_size=256)
        >>> store = MaskStore("maps.sip")  # later
        >>> store[0], store[[3, 1, 4]]  # bool, (C, H, W) and (3, C, H, W)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._map: mmap.mmap | None = None
        file, self._layout, self._table = open_whole(self.path)
        with file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = os.dup(file.fileno())
        self._header = self._layout.header
        self.shape = torch.Size((self._header.length, *self._header.image_shape))
        self.provenance = self._header.provenance

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
        """Make the maps of all images of a data set, once, and open their store.

        It may be killed at any moment: what is done stays in a file beside it (``<path>.partial``), and the same call goes
        on from there, after reading the images that have their maps once more: they must be what they were. A store that is
        already there, of the same maps and images, is opened and nothing is computed; 32 images are compared then (and
        their labels, if ``mask_fn`` takes labels), ``store.check(dataset, every=True)`` compares all of them, and
        :class:`SalientDataset` each one as it is read. Where ``torch.distributed`` is initialised (torchrun), each process
        makes a share; they must see one file system.

        Args:
            path: The file to make. Its folder must exist.
            dataset: A map-style data set of (image, label); the images un-augmented and of one shape, as floating-point
                tensors in [0, 1], uint8 tensors or PIL images.
            mask_fn: Where the maps come from: a callable ``(images, labels) -> map`` or ``(images) -> map``, or a map that
                holds for every image. Its maps must be bool or {0, 1}.
            batch_size: Images that ``mask_fn`` gets at once.
            device: Where ``mask_fn`` gets its images; by default where its network is, or the CPU.
            num_workers: Processes that load images (of torch's ``DataLoader``).
            progress: Show a progress bar (needs tqdm; without it there is none).
            overwrite: Make it anew where there is a store already, or a part of another one.

        Returns:
            The store, opened.

        Raises:
            TypeError: If an argument, an item of the data set or a map is of the wrong type.
            ValueError: If images or maps have the wrong shape or values, the data set gives another image each time, or
                ``device`` cannot be used here.
            FileExistsError: If another store is at ``path``, or a part of another one beside it.
            OSError: If the file cannot be written (``path`` is a folder, its folder is missing or read-only, the disk is
                full), or another process builds it.
            RuntimeError: If another process of this group failed.
        """
        ranks = Ranks()
        size = ranks.each_own(lambda: check_batch_size(batch_size))
        wanted = agreed(ranks.each(lambda: wanted_of(dataset, mask_fn)))
        shape = wanted["image_shape"]
        source = ranks.each_own(lambda: MapSource(dataset, mask_fn, shape, size, device, num_workers))
        with preserve_model_state(network_of(mask_fn)):  # a function may use its network in ways that leave traces
            Build(Path(path).absolute(), source, wanted, overwrite, ranks).run(progress)
        return cls(path)

    def __len__(self) -> int:
        return self._header.length

    def __getitem__(self, index: int | Indices) -> Tensor:
        """The map of one image, ``(C, H, W)``, or those of several, ``(n, C, H, W)``; ``bool``.

        Args:
            index: An integer; or a slice, a sequence, a tensor or an array of integers. Negative ones count from the end.

        Raises:
            IndexError: If there is no such image.
            TypeError: If it is something else (a mask of booleans, for example).
            ValueError: If what is read does not fit its checksum.
        """
        one = as_integer(index)
        maps, _ = self._read(positions_of([one] if one is not None else index, len(self)))
        return maps[0] if one is not None else maps

    def maps_of(self, indices: Sequence[int], images: Sequence[Tensor], labels: Sequence[Any] | None = None) -> Tensor:
        """The maps ``(n, C, H, W)`` of images, after a check that they are the ones that the maps were made of.

        Eight bits of each image's checksum are compared: another image passes one time in 256, a batch of others never.
        Where the maps were made by a function of (images, labels), that is the checksum of image and label.

        Args:
            indices: Where they are in the data set.
            images: The un-augmented images, each ``(C, H, W)``, uint8 or floating point in [0, 1].
            labels: Their class indices; needed where the maps were made with labels.

        Raises:
            IndexError: If there is no such image.
            TypeError: If labels are needed and are missing, or are no class indices.
            ValueError: If an image or a label is another one, or what is read does not fit its checksum.
        """
        if not self._header.labels:
            labels = None
        elif labels is None:
            raise TypeError(f"The maps in {self.path} were made with labels: give those of the images, too.")
        positions = positions_of(indices, len(self))
        maps, checks = self._read(positions)
        numbers = [None] * len(images) if labels is None else list(map(label_of, positions.tolist(), labels))
        for position, image, label, check in zip(positions.tolist(), images, numbers, checks, strict=True):
            if tuple(image.shape) != self._header.image_shape or check_byte(image, label) != check:
                raise ValueError(
                    f"Image {position}{self._or_label} is not the one that its map in {self.path} was made of: the data set "
                    "is another one, in another order, or augments its images. Give the un-augmented data set of "
                    "MaskStore.build."
                )
        return maps

    def check(self, dataset: Any, *, every: bool = False, num_workers: int = 0) -> None:
        """Refuse a data set whose maps these are not; by its length, its shape and 32 of its images, or by each of them.

        Where the maps were made by a function of (images, labels), the labels are compared, too.

        Args:
            dataset: A map-style data set of (image, label).
            every: Read all images, and compare eight bits of each one's checksum (of image and label): one other image
                passes one time in 256.
            num_workers: Processes that load them (of torch's ``DataLoader``).

        Raises:
            TypeError: If it is no map-style data set of (image, label).
            ValueError: If it is another one.
        """
        header = self._header
        if len(dataset) != len(self):
            raise ValueError(f"{self.path} has the maps of {len(self)} images, the data set has {len(dataset)}.")
        shape, fingerprint = sample_of(dataset, header.labels)
        if shape != header.image_shape:
            raise ValueError(f"{self.path} has maps of images {header.image_shape}, the data set's are {shape}.")
        if fingerprint != header.dataset:
            raise ValueError(
                f"{self.path} was made of another data set: its fingerprint is {header.dataset[:12]}…, that of this one "
                f"{fingerprint[:12]}…. Give the un-augmented data set of MaskStore.build, in the same order"
                f"{', with the same labels' if header.labels else ''}."
            )
        if every:
            self._check_every(dataset, num_workers)

    def _check_every(self, dataset: Any, num_workers: int) -> None:
        header = self._header
        blocks = [header.images_of_block(block) for block in range(header.blocks)]
        read = loaded(Batches(dataset, blocks, header.image_shape, header.labels), num_workers)
        others = []
        for images, (_, _, checks) in zip(blocks, read, strict=True):
            _, stored = self._read(np.arange(images.start, images.stop))
            others += [image for image, ours, its in zip(images, stored, checks, strict=True) if ours != its]
        if others:
            named = ", ".join(map(str, others[:10])) + (", …" if len(others) > 10 else "")
            raise ValueError(
                f"{len(others)} of the data set's {len(self)} images{self._or_label} are not those that the maps in "
                f"{self.path} were made of: {named}. Give the un-augmented data set of MaskStore.build."
            )

    @property
    def _or_label(self) -> str:
        return " (or its label)" if self._header.labels else ""

    def verify(self) -> None:
        """Check the checksum of every block, which otherwise happens as they are read.

        Raises:
            ValueError: If one does not fit, or the file was cut off.
        """
        for block, checksum in enumerate(self._table.tolist()):
            self._check_open()
            self._checked(*self._layout.place_of_block(block), checksum)

    def close(self) -> None:
        """Close the file; the store cannot be read any more. More than once does no harm."""
        if self._map is not None:
            self._map.close()
            os.close(self._file)
            self._map = None

    def __enter__(self) -> MaskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_map", None) is not None:
            self.close()

    def __repr__(self) -> str:
        made = self.provenance.get("class") or self.provenance.get("function") or "a map"
        return f"MaskStore({str(self.path)!r}, shape={tuple(self.shape)}, made by {made})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self._header}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
        if self._header != state["header"]:
            raise StoreError(f"{self.path} is another store by now than when this one was pickled.")

    # --- reading ---

    def _read(self, positions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Maps, and the check bytes of their images."""
        header, record = self._header, self._header.record
        blocks, starts, stops = header.places(positions)
        places = zip(
            (self._layout.records + starts * record).tolist(),
            (self._layout.records + stops * record).tolist(),
            self._table[blocks].tolist(),
            ((positions - starts) * record).tolist(),
            strict=True,
        )
        read: dict[int, bytes] = {}
        records = []
        self._check_open()
        for start, stop, checksum, row in places:
            if start not in read:
                read[start] = self._checked(start, stop, checksum)
            records.append(read[start][row : row + record])
        joined = np.frombuffer(b"".join(records), dtype=np.uint8).reshape(-1, record)
        bits = np.unpackbits(joined[:, :-1], axis=1, count=header.elements)
        maps = torch.from_numpy(bits).view(torch.bool).view(-1, *header.map_shape)
        return maps.expand(-1, *header.image_shape), joined[:, -1]

    def _check_open(self) -> None:
        if self._map is None:
            raise ValueError(f"The store {self.path} is closed.")
        size = os.fstat(self._file).st_size
        if size != self._layout.size:  # past the end of its file, reading a memory map would kill the process
            raise StoreError(f"{self.path} was cut off or written to while it was open: {size} bytes.")

    def _checked(self, start: int, stop: int, checksum: int) -> bytes:
        """The bytes of a block, copied first and then compared with its checksum."""
        assert self._map is not None
        data = self._map[start:stop]
        if block_checksum(data) != checksum:
            first, last = ((place - self._layout.records) // self._header.record for place in (start, stop))
            raise StoreError(
                f"{self.path} is damaged: the maps of images {first} to {last - 1} do not fit their checksum. Delete it and "
                "build it again."
            )
        return data
