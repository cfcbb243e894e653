"""The files of a mask store: making them, resumed wherever a build was stopped, by one process or several."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.constraint import prepare_mask
from sip_plugin.distributed import ProcessGroup
from sip_plugin.mask_source import MaskSource, accepts_labels, check_mask_source, compute_mask
from sip_plugin.salience.images import Batch, dataset_fingerprint, load_batches
from sip_plugin.salience.provenance import differences, provenance
from sip_plugin.utils import atomic_write, progress_bar

_FORMAT = "sip-plugin masks 2"


def store_info(dataset: Any, mask_fn: MaskSource, batch_size: int = 1) -> dict[str, Any]:
    """What ``info.json`` says of a data set and a source of maps; the arguments of ``MaskStore.build``, and its errors."""
    check_mask_source(mask_fn)
    if isinstance(mask_fn, (Tensor, np.ndarray)) and mask_fn.ndim == 4 and len(mask_fn) != 1:
        raise ValueError(
            f"mask_fn holds the maps of {len(mask_fn)} images already (shape {tuple(mask_fn.shape)}): no store is "
            "needed, give them to SalientDataset. A ready map must hold for every image: (H, W) or (1, C, H, W)."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    labels = accepts_labels(mask_fn)
    shape, fingerprint = dataset_fingerprint(dataset, labels)
    info = {"length": len(dataset), "image_shape": list(shape), "dataset": fingerprint, "labels": labels}
    return info | {"format": _FORMAT, "provenance": provenance(mask_fn)}


@dataclasses.dataclass
class Builder:
    """One process's share in building a store; the first process also begins and finishes it."""

    path: Path
    dataset: Any
    mask_fn: MaskSource
    info: dict[str, Any]
    batches: list[range]
    device: str | torch.device
    num_workers: int
    overwrite: bool

    def run(self, group: ProcessGroup, progress: bool) -> None:
        """Build the store, unless it is finished already. Errors are those of ``MaskStore.build``."""
        there = group.on_rank_zero(self._find)
        if there is not None and there["complete"]:
            return
        # Workers are started before the lock is taken, so that those which outlive a killed build do not hold it.
        loaded = self._load(self.batches[group.rank :: group.size], self.num_workers)
        with contextlib.ExitStack() as stack:
            self.info = group.on_rank_zero(partial(self._begin, stack, there is None))
            if self.info["complete"]:
                return
            records = group.call(partial(open_records, self.path, self.info))
            shown = progress and group.rank == 0 and importlib.util.find_spec("tqdm") is not None
            with progress_bar(shown, total=self.info["length"], desc="salience maps", unit="image") as bar:
                # All go from batch to batch together, so that a failure of one is known to all at once.
                for start in range(0, len(self.batches), group.size):
                    mine = self.batches[start : start + group.size][group.rank : group.rank + 1]
                    bar.update(sum(group.gather_call(partial(self._step, mine, loaded, records))))
            group.on_rank_zero(self._finish)

    def _begin(self, stack: contextlib.ExitStack, anew: bool) -> dict[str, Any]:
        """Lock the folder and prepare its files; return what ``info.json`` says."""
        first = self._first_batch() if anew else None  # before anything is written: a bad map leaves nothing behind
        self.path.mkdir(exist_ok=True)
        try:
            stack.enter_context(FileLock(self.path / ".lock").acquire(timeout=0))
        except Timeout as error:
            raise BlockingIOError(errno.EAGAIN, "Another process is building this store", str(self.path)) from error
        there = self._find()  # that process may have finished it meanwhile
        if there is None:
            maps, checksums = first or self._first_batch()
            self.info |= {"channels": maps.shape[1], "complete": False}
            (self.path / "maps.npy").unlink(missing_ok=True)  # first: its maps are those of another source
            _write_info(self.path, self.info)
            _create_records(self.path, self.info)
            self._write(self.batches[0], maps, checksums, open_records(self.path, self.info))
            return self.info
        try:
            open_records(self.path, there)
        except ValueError:  # cut off, or not there yet
            if there["complete"]:
                raise
            _create_records(self.path, there)
        return there

    def _find(self) -> dict[str, Any] | None:
        """The info of the store at the path, if it can be used or continued; None if it is to be built anew."""
        if not self.path.is_file() and not (self.path / "info.json").exists():
            if self.path.exists() and any(file.name[0] != "." for file in self.path.iterdir()):
                raise FileExistsError(errno.EEXIST, "The folder has other files, and no mask store", str(self.path))
            return None
        there = read_info(self.path)
        different = differences({name: there[name] for name in self.info}, self.info)
        if self.overwrite and (different or there["complete"]):
            return None
        if different:
            raise FileExistsError(
                f"{self.path} is a store of other maps or images ({'; '.join(different)}). Take another path, or pass "
                "overwrite=True."
            )
        return there

    def _load(self, batches: list[range], num_workers: int = 0) -> Iterator[Batch]:
        return load_batches(self.dataset, batches, self.info["image_shape"], self.info["labels"], num_workers)

    def _first_batch(self) -> tuple[Tensor, Tensor]:
        """Maps and checksums of the first batch, whose maps tell how many channels are kept."""
        images, labels, checksums = next(self._load(self.batches[:1]))
        return self._compute(self.batches[0], images, labels), checksums

    def _step(self, batches: Sequence[range], loaded: Iterator[Batch], records: np.memmap[Any, Any]) -> int:
        """Compute the maps of a batch, if there is one and they are missing; return its number of images."""
        for batch in batches:
            images, labels, checksums = next(loaded)
            stored = records[batch.start : batch.stop]
            done = intact(stored)
            changed = np.flatnonzero(done & (stored["image"] != checksums.numpy()))
            if len(changed) and not self.overwrite:
                raise FileExistsError(
                    f"{self.path} has maps of other images or labels: item {batch[changed[0]]} of the data set is not what "
                    "it was. Delete the store, or pass overwrite=True."
                )
            if len(changed) or not done.all():
                self._write(batch, self._compute(batch, images, labels), checksums, records)
        return sum(map(len, batches))

    def _compute(self, batch: range, images: Tensor, labels: Tensor) -> Tensor:
        """The maps of a batch, ``bool``, ``(n, C, H, W)`` or ``(n, 1, H, W)``, on the CPU."""
        images = images.to(self.device)
        try:
            check_images(images)
            maps = prepare_mask(compute_mask(self.mask_fn, images, labels.to(self.device)), images)
        except (TypeError, ValueError) as error:
            if type(error) not in (TypeError, ValueError):
                raise
            raise type(error)(f"In the batch of images {batch[0]} to {batch[-1]} of the data set: {error}") from error
        if maps.stride(1) == 0:  # an expanded view: one map for all channels
            maps = maps[:, :1]
        return maps.expand(len(images), -1, *images.shape[2:]).cpu()

    def _write(self, batch: range, maps: Tensor, checksums: Tensor, records: np.memmap[Any, Any]) -> None:
        new = np.empty(len(batch), records.dtype)
        new["map"] = np.packbits(maps.expand(-1, self.info["channels"], -1, -1).flatten(1).numpy(), axis=1)
        new["image"] = checksums.numpy()
        new["checksum"] = _checksums(new)
        with (self.path / "maps.npy").open("r+b") as file:  # on a full disk, a memory map would end the process
            file.seek(records.offset + records.itemsize * batch.start)
            file.write(new.tobytes())

    def _finish(self) -> None:
        records = open_records(self.path, self.info)
        missing = sum(int((~intact(records[batch.start : batch.stop])).sum()) for batch in self.batches)
        if missing:
            raise OSError(
                f"{missing} maps that were written into {self.path} are missing. Do all processes write to one file system? "
                "The same call resumes."
            )
        with (self.path / "maps.npy").open("r+b") as file:
            os.fsync(file.fileno())
        _write_info(self.path, self.info | {"complete": True})


def read_info(path: Path) -> dict[str, Any]:
    """What ``info.json`` says: the store's format, data set and provenance, and whether it is complete.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or ``path`` is a store of version 0.1.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(7) == b"SIPMAPS":
                raise ValueError(f"{path} was written by sip-plugin 0.1: delete it and build it again.")
    try:
        info: dict[str, Any] = json.loads((path / "info.json").read_bytes())
        if info.pop("checksum") == _json_checksum(info) and info["format"] == _FORMAT:
            return info
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(f"{path / 'info.json'} is damaged, or not that of a mask store. Delete {path} and build it again.")


def _write_info(path: Path, info: dict[str, Any]) -> None:
    with atomic_write(path / "info.json", sync=True) as part:
        part.write_text(json.dumps(info | {"checksum": _json_checksum(info)}, indent=2) + "\n")


def _json_checksum(info: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(info, sort_keys=True).encode())


def _record_dtype(info: dict[str, Any]) -> np.dtype[Any]:
    elements = info["channels"] * math.prod(info["image_shape"][1:])
    return np.dtype([("map", "u1", (-(-elements // 8),)), ("image", "<u4"), ("checksum", "<u4")])


def _checksums(records: np.ndarray) -> np.ndarray:
    """The CRC-32 of each map, which starts from that of its image. A record of zeros, never written, does not have it."""
    pairs = zip(np.asarray(records["map"]), records["image"].tolist(), strict=True)
    return np.array([zlib.crc32(packed, image) for packed, image in pairs], dtype=np.uint32)


def intact(records: np.ndarray) -> np.ndarray:
    """Which records fit their checksums."""
    fits: np.ndarray = _checksums(records) == records["checksum"]
    return fits


def open_records(path: Path, info: dict[str, Any]) -> np.memmap[Any, Any]:
    """The records of a store, through a memory map for reading.

    Raises:
        ValueError: If the file is missing, cut off, or has another header.
    """
    try:
        records = np.lib.format.open_memmap(path / "maps.npy", mode="r")
        if records.dtype != _record_dtype(info) or records.shape != (info["length"],):
            raise ValueError(f"it has {records.shape} records of {records.dtype}")
        return records
    except Exception as error:  # of a damaged header NumPy may raise anything
        raise ValueError(f"{path / 'maps.npy'} is damaged or cut off. Delete {path} and build it again.") from error


def _create_records(path: Path, info: dict[str, Any]) -> None:
    """Make the file of records, all zeros, and reserve its disk space: a full disk is an error now, not after hours."""
    dtype = _record_dtype(info)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (info["length"],)}
    with (path / "maps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        size = dtype.itemsize * info["length"]
        try:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        except (AttributeError, OSError) as error:  # macOS and Windows do not have it, nor does every file system
            if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
