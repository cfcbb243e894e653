"""A store while it is being built: a file beside the target that holds what is done, and becomes the store at the end."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np

from sip_plugin.salience.store_file import MAGIC, Header, Layout, StoreError, block_checksum, read_table

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_HELD: dict[tuple[int, int], int] = {}  # what this process has locked, which the system would let it lock once more
_HELD_GUARD = threading.Lock()


class Partial:
    """The half-built store of ``target``, open for writing. The process that begins the work has it alone.

    Args:
        target: The store to be; the file is ``<target>.partial``.
        joins: Another process of this job has begun, and this one writes a share.

    Raises:
        BlockingIOError: If another job builds it.
        OSError: If the file cannot be made or opened.
    """

    def __init__(self, target: Path, *, joins: bool = False) -> None:
        self.target, self.path = target, target.with_name(target.name + ".partial")
        self._key: tuple[int, int] | None = None
        if joins:
            says = "The processes must write to one file system, but what the first has made is not in"
            self._file = self._opened(0, says)
            return
        while True:
            self._open_alone()
            if self._is_current():
                return
            self.close()  # another job has renamed it between our opening and locking it

    def header(self) -> Header | None:
        """What it says of itself; None if it was killed before it did.

        Raises:
            FileExistsError: If the file is something else.
        """
        with open(self._file, "rb", closefd=False) as file:
            try:
                return Header.read(file, self.path)
            except StoreError as error:
                file.seek(0)
                start = file.read(len(MAGIC))
                if start.strip(b"\0") and start != MAGIC[: len(start)]:
                    text = f"{self.path} is in the way: it is no half-built mask store. Move it away."
                    raise FileExistsError(text) from error
                return None

    def begin(self, header: Header) -> None:
        """Take the room that the whole store needs, and write the header.

        Raises:
            OSError: If there is no room; the file is then empty.
        """
        os.ftruncate(self._file, 0)
        try:
            self._allocate(Layout(header).size)
            self._write(header.to_bytes(), 0)
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, 0)
            raise

    def missing(self, header: Header) -> list[int]:
        """The chunks that are not there, or not whole: of the others each block was read and fits its checksum."""
        layout, missing = Layout(header), []
        with open(self._file, "rb", closefd=False) as file:
            table = read_table(file, layout)
            for chunk in range(header.chunks):
                for block in header.blocks_of_chunk(chunk):
                    start, stop = layout.place_of_block(block)
                    file.seek(start)
                    if (
                        block >= len(table)
                        or not table[block]
                        or block_checksum(file.read(stop - start)) != table[block]
                    ):
                        missing.append(chunk)
                        break
        return missing

    def checks(self, header: Header, chunk: int) -> np.ndarray:
        """The check bytes of a chunk's images."""
        images = header.images_of_chunk(chunk)
        with open(self._file, "rb", closefd=False) as file:
            file.seek(Layout(header).records + images.start * header.record)
            records = file.read(len(images) * header.record)
        return np.frombuffer(records, dtype=np.uint8).reshape(len(images), header.record)[:, -1]

    def write(self, header: Header, chunk: int, records: np.ndarray) -> None:
        """Write a chunk's records, then their checksums.

        Should a crash of the machine keep the checksums and lose the records, the chunk does not fit and is made again.
        """
        layout, images = Layout(header), header.images_of_chunk(chunk)
        blocks = [records[start : start + header.block].tobytes() for start in range(0, len(images), header.block)]
        self._write(b"".join(blocks), layout.records + images.start * header.record)
        table = np.array([block_checksum(block) for block in blocks], dtype="<u4")
        self._write(table.tobytes(), layout.table + 4 * header.blocks_of_chunk(chunk).start)

    def flush(self) -> None:
        """Have what was written on the disk."""
        os.fsync(self._file)

    def finish(self) -> None:
        """Become the store. Nothing may be missing."""
        os.fsync(self._file)
        self.path.replace(self.target)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the new name, too
            finally:
                os.close(folder)

    def close(self) -> None:
        """Let others build it; an empty file is deleted."""
        if self._key is not None and os.fstat(self._file).st_size == 0 and self._is_current():
            self.path.unlink(missing_ok=True)
        with _HELD_GUARD:
            if self._key is not None and _HELD.get(self._key) == os.getpid():
                del _HELD[self._key]
            os.close(self._file)
        self._key = None

    # --- the file ---

    def _opened(self, flags: int, says: str) -> int:
        try:
            return os.open(self.path, os.O_RDWR | flags | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise type(error)(error.errno, f"{says} {self.path.parent}: {error.strerror}", str(self.path)) from error

    def _open_alone(self) -> None:
        """Open and lock it.

        The lock is a POSIX one: it ends with this process, even if workers that were forked from it live on. It also ends
        when this process closes the file, however it opened it: while it is held, only this one descriptor is used.
        """
        refused = BlockingIOError(errno.EAGAIN, "Another process is building this store", str(self.path))
        with _HELD_GUARD:
            if self.path.exists() and _HELD.get(_key(self.path.stat())) == os.getpid():
                raise refused  # by another thread: the system would let this process lock it once more
            self._file = self._opened(os.O_CREAT, "The store cannot be written into")
            try:
                if fcntl is not None:
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    os.close(self._file)
                    raise refused from error
                # else a file system without locks
            self._key = _key(os.fstat(self._file))
            _HELD[self._key] = os.getpid()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _write(self, data: bytes, offset: int) -> None:
        try:
            os.lseek(self._file, offset, os.SEEK_SET)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise self._no_room(error, len(data)) from error

    def _allocate(self, size: int) -> None:
        """Take the room on the disk at once: that it is full is better known now than after hours."""
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise self._no_room(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size, f", of which {free} are free")
        try:
            os.posix_fallocate(self._file, 0, size)
        except (AttributeError, OSError) as error:
            # Not every system has it, nor every file system.
            if isinstance(error, OSError) and error.errno not in _NOT_SUPPORTED:
                raise self._no_room(error, size) from error
            os.ftruncate(self._file, size)

    def _no_room(self, error: OSError, size: int, more: str = "") -> OSError:
        text = f"{size} bytes were to be written into {self.path.parent}{more}: {error.strerror}"
        return type(error)(error.errno, text, str(self.path))


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
