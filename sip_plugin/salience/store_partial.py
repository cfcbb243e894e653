"""A store while it is being built: a file beside the target that holds what is done, and becomes the store at the end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sip_plugin.salience.store_file import MAGIC, Header, Layout, StoreError, block_checksum, read_table

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def partial_path(path: Path) -> Path:
    """Where the half-built store of ``path`` is."""
    return path.with_name(path.name + ".partial")


class Lock:
    """The right to build a store, held by one process by an open, locked file (where the system has such locks).

    Args:
        path: The half-built store; made if there is none.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            try:
                self.file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            except OSError as error:
                raise type(error)(
                    error.errno, f"The store cannot be written into {path.parent}: {error.strerror}", str(path)
                ) from error
            _lock(self.file, path)
            if self._is_current():
                return
            os.close(self.file)  # it was renamed or deleted while we waited to open it

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file))  # noqa: PTH116
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the right up; an empty file is deleted."""
        if os.fstat(self.file).st_size == 0 and self._is_current():
            self.path.unlink(missing_ok=True)
        os.close(self.file)


class ReleaseInWorker:
    """Closes a worker's copy of the lock, which would outlive its parent. For ``worker_init_fn``."""

    def __init__(self, lock: Lock | None) -> None:
        self.file = -1 if lock is None else lock.file
        self.known = None if lock is None else os.fstat(lock.file)

    def __call__(self, worker: int) -> None:
        """Close it, if this process has inherited it."""
        if self.known is None:
            return
        try:
            if os.path.samestat(os.fstat(self.file), self.known):
                os.close(self.file)
        except OSError:  # this process was not forked
            return


def header_of_partial(path: Path) -> Header | None:
    """The header of a half-built store; None if it was killed before there was one.

    Raises:
        FileExistsError: If the file is something else.
    """
    with path.open("rb") as file:
        try:
            return Header.read(file, path)
        except StoreError as error:
            file.seek(0)
            start = file.read(len(MAGIC))
            if start.strip(b"\0") and start != MAGIC:
                raise FileExistsError(f"{path} is in the way: it is no half-built mask store. Move it away.") from error
            return None


def create(lock: Lock, header: Header) -> None:
    """Give the half-built store its full size, and its header.

    Raises:
        OSError: If there is no room; the file is then emptied.
    """
    layout = Layout(header)
    os.ftruncate(lock.file, 0)
    try:
        _allocate(lock.file, layout.size, lock.path)
        write_all(lock.file, header.to_bytes(), 0, lock.path)
        os.fsync(lock.file)
    except BaseException:
        os.ftruncate(lock.file, 0)
        raise


def missing_chunks(path: Path, header: Header) -> list[int]:
    """The chunks that are not there, or not whole: each block of the others was read and fits its checksum."""
    layout, missing = Layout(header), []
    with path.open("rb") as file:
        table = read_table(file, layout)
        if len(table) != header.blocks:
            return list(range(header.chunks))
        for chunk in range(header.chunks):
            first = chunk * header.blocks_per_chunk
            blocks = range(first, min(first + header.blocks_per_chunk, header.blocks))
            if not all(table[block] and _fits(file, layout, block, table[block]) for block in blocks):
                missing.append(chunk)
    return missing


def write_chunk(file: int, path: Path, header: Header, chunk: int, records: np.ndarray) -> None:
    """Write a chunk's records, then their checksums.

    Should a crash of the whole machine keep the checksums and lose the records, the chunk does not fit and is made again.
    """
    layout, images = Layout(header), header.images_of_chunk(chunk)
    blocks = [records[start : start + header.block].tobytes() for start in range(0, len(images), header.block)]
    write_all(file, b"".join(blocks), layout.records + images.start * header.record, path)
    table = np.array([block_checksum(block) for block in blocks], dtype="<u4")
    write_all(file, table.tobytes(), layout.table + 4 * chunk * header.blocks_per_chunk, path)


def finish(lock: Lock, path: Path) -> None:
    """Turn the half-built store, of which nothing is missing, into the store."""
    os.fsync(lock.file)
    lock.path.replace(path)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_all(file: int, data: bytes, offset: int, path: Path) -> None:
    """Write all of ``data``; an error says where and how much."""
    try:
        os.lseek(file, offset, os.SEEK_SET)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as error:
        raise _no_room(error, len(data), path) from error


def _fits(file: BinaryIO, layout: Layout, block: int, checksum: int) -> bool:
    start, stop = layout.place_of_block(block)
    file.seek(start)
    return bool(block_checksum(file.read(stop - start)) == checksum)


def _allocate(file: int, size: int, path: Path) -> None:
    """Take the room on the disk at once: a full disk is better noticed now than after hours."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise _no_room(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size, path, f", of which {free} are free")
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        # Not on every system, nor for every kind of file system.
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise _no_room(error, size, path) from error
        os.ftruncate(file, size)


def _no_room(error: OSError, size: int, path: Path, more: str = "") -> OSError:
    text = f"{size} bytes were to be written into {path.parent}{more}: {error.strerror}"
    return type(error)(error.errno, text, str(path))


def _lock(file: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise BlockingIOError(error.errno, "Another process is building this store", str(path)) from error
    except OSError:  # a file system without locks
        return
