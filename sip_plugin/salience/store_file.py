"""The file of a mask store: how it is laid out, and reading it so that no wrong byte passes for a right one.

    magic (8) | length of header (4) | CRC-32 of header (4) | header, JSON | a CRC-32 for each block (4 each) | records

A record is an image's map, one bit per element (``numpy.packbits``), and one byte of the image's own
checksum (of image and label, where labels were used). A block is a
few records of about 4 kB together: enough that the checksums are small, and few enough that a block is checked at each read.
A checksum of 0 marks a block that is not there yet (a block whose own is 0 has 1). Numbers are little-endian. Blocks do not
cross a chunk, which is what one process computes at a time. No byte of the file is outside a checksum.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import struct
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"SIPMAPS1"
_START = struct.Struct("<8sII")
_BLOCK_BYTES = 4096
_LARGEST_HEADER = 1 << 24


class StoreError(ValueError):
    """A file that is no whole mask store."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a store says of itself.

    Attributes:
        length: Number of images.
        image_shape: ``(C, H, W)``.
        channels: Channels of a map: C, or 1 where all channels of an image have the same map.
        chunk: Images that are computed together.
        block: Records of a block; the last one of a chunk may have fewer.
        dataset: Fingerprint of the data set.
        provenance: What made the maps.
        labels: What made them was given labels, so that fingerprint and check bytes are of the labels, too.
    """

    length: int
    image_shape: tuple[int, int, int]
    channels: int
    chunk: int
    block: int
    dataset: str
    provenance: dict[str, Any]
    labels: bool = False

    @classmethod
    def new(
        cls,
        length: int,
        image_shape: tuple[int, int, int],
        channels: int,
        batch_size: int,
        dataset: str,
        provenance: dict[str, Any],
        labels: bool = False,
    ) -> Header:
        """The header of a store that is built in batches of ``batch_size``."""
        record = cls(length, image_shape, channels, 1, 1, dataset, provenance).record
        block = max(1, _BLOCK_BYTES // record)
        chunk = batch_size * max(1, block // batch_size)
        return cls(length, image_shape, channels, chunk, block, dataset, provenance, labels)

    def identity(self) -> dict[str, Any]:
        """What tells this store's maps from other ones."""
        names = ("length", "image_shape", "dataset", "provenance", "labels")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` or ``(1, H, W)``."""
        return self.channels, *self.image_shape[1:]

    @cached_property
    def elements(self) -> int:
        """Bits of a map."""
        return math.prod(self.map_shape)

    @cached_property
    def record(self) -> int:
        """Bytes of a record."""
        return -(-self.elements // 8) + 1

    @cached_property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.length // self.chunk)

    @cached_property
    def blocks_per_chunk(self) -> int:
        """Blocks of a whole chunk."""
        return -(-self.chunk // self.block)

    @cached_property
    def blocks(self) -> int:
        """Blocks of all chunks."""
        whole, rest = divmod(self.length, self.chunk)
        return whole * self.blocks_per_chunk + -(-rest // self.block)

    def images_of_chunk(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.length))

    def blocks_of_chunk(self, chunk: int) -> range:
        """The blocks of a chunk."""
        first = chunk * self.blocks_per_chunk
        return range(first, min(first + self.blocks_per_chunk, self.blocks))

    def images_of_block(self, block: int) -> range:
        """The images of a block."""
        chunk, within = divmod(block, self.blocks_per_chunk)
        images = self.images_of_chunk(chunk)
        return images[within * self.block : (within + 1) * self.block]

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each image the block that holds its record, and the images from which to which that block goes."""
        chunks, within = np.divmod(indices, self.chunk)
        parts = within // self.block
        starts = chunks * self.chunk + parts * self.block
        stops = np.minimum(np.minimum(starts + self.block, (chunks + 1) * self.chunk), self.length)
        return chunks * self.blocks_per_chunk + parts, starts, stops

    def to_bytes(self) -> bytes:
        """Magic, length, checksum and the header itself."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True).encode()
        return _START.pack(MAGIC, len(text), zlib.crc32(text)) + text

    @classmethod
    def read(cls, file: BinaryIO, path: Path) -> Header:
        """Read and check the header at the start of a file.

        Raises:
            StoreError: If it is not a store's, or damaged.
        """
        file.seek(0)
        start = file.read(_START.size)
        if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
            raise StoreError(f"{path} is not a mask store: it does not begin with {MAGIC!r}.")
        if len(start) < _START.size:
            raise StoreError(f"{path} is cut off: it ends within the header. Delete it and build it again.")
        _, length, checksum = _START.unpack(start)
        text = file.read(length) if length <= _LARGEST_HEADER else b""
        if len(text) < length or zlib.crc32(text) != checksum:
            raise StoreError(f"The header of {path} is damaged or cut off. Delete the file and build it again.")
        try:
            values = json.loads(text)
            header = cls(**{**values, "image_shape": tuple(values["image_shape"])})
            header.check()
        except (TypeError, ValueError, KeyError) as error:
            raise StoreError(
                f"The header of {path} is not one of this version ({error}). Delete the file and build it again."
            ) from error
        return header

    def check(self) -> None:
        """Refuse values that no header has.

        Raises:
            ValueError: If there are some.
        """
        numbers = (self.length, self.channels, self.chunk, self.block, *self.image_shape)
        if len(self.image_shape) != 3 or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"the numbers {numbers} must be integers from 1")
        if self.channels not in (1, self.image_shape[0]):
            raise ValueError(f"maps of {self.channels} channels for images of {self.image_shape[0]}")
        if not isinstance(self.dataset, str) or not isinstance(self.provenance, dict):
            raise ValueError("dataset must be a string, and provenance a dictionary")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things are in the file of a store with this header."""

    header: Header

    @cached_property
    def table(self) -> int:
        """Offset of the checksums."""
        return len(self.header.to_bytes())

    @cached_property
    def records(self) -> int:
        """Offset of the records."""
        return self.table + 4 * self.header.blocks

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return self.records + self.header.length * self.header.record

    def place_of_block(self, block: int) -> tuple[int, int]:
        """Where a block's records begin and end."""
        images = self.header.images_of_block(block)
        return self.records + images.start * self.header.record, self.records + images.stop * self.header.record


def block_checksum(data: bytes | memoryview) -> int:
    """The CRC-32 of a block's records; never 0, which marks a missing one."""
    return zlib.crc32(data) or 1


def read_table(file: BinaryIO, layout: Layout) -> np.ndarray:
    """The checksums of all blocks."""
    file.seek(layout.table)
    table = file.read(layout.records - layout.table)
    return np.frombuffer(table[: len(table) // 4 * 4], dtype="<u4")  # of a file that was cut off, what there is


def open_whole(path: Path) -> tuple[BinaryIO, Layout, np.ndarray]:
    """Open a finished store: the file, its layout and the checksums of its blocks.

    Raises:
        FileNotFoundError: If there is none.
        IsADirectoryError: If it is a folder.
        StoreError: If it is no store, damaged, cut off or half-built.
    """
    check_no_folder(path)
    file = path.open("rb")
    try:
        layout = Layout(Header.read(file, path))
        check_size(file, layout, path)
        table = read_table(file, layout)
        missing = int((table == 0).sum())
        if missing:
            raise StoreError(
                f"{path} is half-built: {missing} of {len(table)} blocks are missing. MaskStore.build goes on with "
                "it if its name is <store>.partial."
            )
    except BaseException:
        file.close()
        raise
    return file, layout, table


def check_no_folder(path: Path) -> None:
    """Refuse a folder where a store is to be.

    Raises:
        IsADirectoryError: If it is one.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "A store is one file, and this is a folder; name a file in it", str(path))


def check_size(file: BinaryIO, layout: Layout, path: Path) -> None:
    """Refuse a file that is shorter or longer than its header says.

    Raises:
        StoreError: If it is.
    """
    size = os.fstat(file.fileno()).st_size
    if size != layout.size:
        raise StoreError(
            f"{path} has {size} bytes where its header says {layout.size}: it was cut off or written to. Delete it and "
            "build it again."
        )
