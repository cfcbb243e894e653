"""Salience maps computed once and kept on disk, one bit per element."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import BatchSampler

from sip_plugin.checks import check_images
from sip_plugin.constraint import prepare_mask
from sip_plugin.distributed import ProcessGroup
from sip_plugin.mask_source import MaskSource, accepts_labels, compute_mask
from sip_plugin.model_state import preserve_model_state
from sip_plugin.model_utils import model_device
from sip_plugin.salience.images import dataset_fingerprint, image_contents, load_batches, sample_indices
from sip_plugin.salience.provenance import find_models, provenance
from sip_plugin.utils import atomic_write, progress_bar

_FORMAT = "sip-plugin masks 2"


class MaskStore:
    """The salience maps of a whole data set on disk, one bit per element, read through a memory map.

    A store is a folder, made by :meth:`build`, of ``maps.npy``, a NumPy array of records (the packed map, the CRC-32 of its
    image, and the CRC-32 of the map that starts from it), and ``info.json``. ``store[i]`` is the map of image ``i``,
    ``store[i:j]`` and ``store[indices]`` those of several; each is compared to its checksum. A store can be pickled, used by
    several threads and processes at once, and as a context manager.

    Attributes:
        path: The folder.
        shape: ``(N, C, H, W)`` of the maps.
        provenance: What computed them: class, parameters, and a hash of each network.

    Raises:
        FileNotFoundError, ValueError: If there is no such store, or it is unfinished, cut off, or damaged.

    Example:
        >>> store = MaskStore.build("train.masks", dataset, GradientSalience(teacher), batch_size=256)
        >>> store = MaskStore("train.masks")  # later
        >>> store[0], store[[3, 1, 4]]  # bool, (C, H, W) and (3, C, H, W)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._info = _read_info(self.path)
        if not self._info["complete"]:
            raise ValueError(f"{self.path} is unfinished. The same call of MaskStore.build resumes it.")
        self._records: Any = _open_records(self.path, self._info)
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

        The process may be killed at any moment: the same call resumes, reads all images, and computes the maps that are
        missing or of other images. A finished store of the same maps and data set (by 32 images) is opened, and nothing is
        computed. Where ``torch.distributed`` is initialised (torchrun), each process computes a share.

        Args:
            path: The folder to make. Its parent folder must exist.
            dataset: A map-style data set of (image, label); the images un-augmented and of one shape, as floating-point
                tensors in [0, 1], uint8 tensors or PIL images.
            mask_fn: Where the maps come from: a callable ``(images, labels) -> map`` or ``(images) -> map``, or a map that
                holds for every image. Its maps must be bool or {0, 1}.
            batch_size: Images that ``mask_fn`` gets at once.
            device: Where ``mask_fn`` gets its images; by default where its network is, or the CPU.
            num_workers: Processes that load images (of torch's ``DataLoader``).
            progress: Show a progress bar (needs tqdm).
            overwrite: Build anew over another or a finished store at ``path`` (on Windows, close it first where it is open).

        Raises:
            TypeError, ValueError: If an image, a label or a map is of the wrong type, shape or values, the data set returns
                another image each time, or the processes do not build the same store.
            OSError: If something else is at ``path``, another process builds this store, or it cannot be written.
            RuntimeError: If another process of this group failed.
        """
        group, folder = ProcessGroup(), Path(path).absolute()
        info = group.call(lambda: store_info(dataset, mask_fn))
        group.require_equal("Give all of them the same arguments.", batch_size=batch_size, overwrite=overwrite, **info)
        there = group.on_rank_zero(lambda: _find(folder, info, overwrite))
        if there is not None and there["complete"]:
            return cls(folder)
        batches = list(BatchSampler(range(len(dataset)), batch_size, drop_last=False))
        mine = batches[group.rank :: group.size]
        # Workers are started before the lock is taken, so that those which outlive a killed build do not hold it.
        loaded = load_batches(dataset, mine, info["labels"], num_workers)
        lock, file, models = FileLock(folder / ".lock", timeout=0), folder / "maps.npy", find_models(mask_fn)
        device = device or next((model_device(m) for m in models if [*m.parameters(), *m.buffers()]), "cpu")
        first: list[Tensor] = []  # the maps of the first batch, which tell how many channels are kept

        def compute(batch: list[int], images: Tensor, labels: Tensor, channels: int = -1) -> Tensor:
            images = images.to(device)
            check_images(images, name=f"Images {batch[0]} to {batch[-1]} of the data set")
            maps = prepare_mask(compute_mask(mask_fn, images, labels.to(device)), images)
            maps = maps[:, :1] if maps.stride(1) == 0 else maps  # an expanded view: one map for all channels
            return maps.expand(len(images), channels, *images.shape[2:]).cpu()

        def begin() -> dict[str, Any]:
            folder.mkdir(exist_ok=True)
            lock.acquire()
            there = _find(folder, info, overwrite)  # once more: another process may have been here meanwhile
            if there is not None:
                if not file.exists():
                    _create_records(file, there)
                return there
            images, labels, _ = next(load_batches(dataset, batches[:1], info["labels"]))
            maps = compute(batches[0], images, labels)
            first.append(maps)
            begun = info | {"channels": maps.shape[1], "complete": False}
            file.unlink(missing_ok=True)  # at once: its maps are those of another source
            _write_info(folder, begun)
            _create_records(file, begun)
            return begun

        def step(batch: list[int], dtype: np.dtype[Any], offset: int, channels: int) -> int:
            if not batch:  # the other processes have one more
                return 0
            images, labels, checksums = next(loaded)
            # Not through the memory map: on a full disk that would end the process.
            start = offset + dtype.itemsize * batch[0]
            stored = np.fromfile(file, dtype, len(batch), offset=start)
            done = (stored["checksum"] == _checksums(stored)) & (stored["image"] == checksums.numpy())
            if not done.all():
                maps = first.pop() if first else compute(batch, images, labels, channels)
                stored["map"] = np.packbits(maps.flatten(1).numpy(), axis=1)
                stored["image"] = checksums.numpy()
                stored["checksum"] = _checksums(stored)
                with file.open("r+b") as opened:
                    opened.seek(start)
                    opened.write(stored.tobytes())
            return len(batch)

        try:
            with preserve_model_state(*models):  # a function may use its network in ways that leave traces
                begun = group.on_rank_zero(begin)
                # Without the memory map: a failure's traceback would keep it, and Windows deletes no file that is mapped.
                layout = group.call(lambda: ((records := _open_records(folder, begun)).dtype, records.offset))
                show = progress and group.rank == 0
                with progress_bar(show, total=len(dataset), desc="salience maps", unit="image") as bar:
                    # All go from batch to batch together, so that a failure of one is known to all at once.
                    for batch in [*mine, []][: -(-len(batches) // group.size)]:
                        bar.update(sum(group.gather_call(partial(step, batch, *layout, begun["channels"]))))
            group.on_rank_zero(lambda: _write_info(folder, begun | {"complete": True}))
        finally:
            lock.release()
        return cls(folder)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor | np.ndarray) -> Tensor:
        """The map of one image, ``(C, H, W)``, or those of several, ``(n, C, H, W)``; ``bool``.

        Raises:
            ValueError: If a map is damaged; names its image.
        """
        return self._unpack(self._read(index))

    def maps_of(self, indices: Sequence[int], images: Sequence[Tensor], labels: Sequence[Any] | None = None) -> Tensor:
        """The maps ``(n, C, H, W)`` of images with these indices; a ValueError if an image or its label is not the map's."""
        records = self._read(list(indices))
        contents = image_contents(torch.stack(list(images)), labels if self._info["labels"] else None)
        self._check_images(indices, records, list(map(zlib.crc32, contents)))
        return self._unpack(records)

    def check(self, dataset: Any, *, every: bool = False, num_workers: int = 0) -> None:
        """Raise a ValueError for a data set of other images, or of other labels where the maps depend on them.

        Args:
            dataset: A map-style data set of (image, label).
            every: Compare all images; otherwise 32.
            num_workers: Processes that load them (of torch's ``DataLoader``).
        """
        if len(dataset) != len(self):
            raise ValueError(f"{self.path} has the maps of {len(self)} images, and the data set has {len(dataset)}.")
        batches = list(BatchSampler(range(len(self)) if every else sample_indices(len(self)), 128, drop_last=False))
        loaded = load_batches(dataset, batches, self._info["labels"], num_workers)
        for batch, (_, _, checksums) in zip(batches, loaded, strict=True):
            self._check_images(batch, self._read(batch), checksums.tolist())

    def verify(self) -> None:
        """Compare every map with its checksum, which otherwise happens as they are read; a ValueError names its image."""
        for index in range(len(self)):
            self._read(index)

    def close(self) -> None:
        """Close the file; the store cannot be read any more."""
        self._records = None

    def __enter__(self) -> MaskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source = self.provenance.get("class") or self.provenance.get("function")
        return f"MaskStore({str(self.path)!r}, shape={tuple(self.shape)}, made by {source})"

    def __reduce__(self) -> tuple[type[MaskStore], tuple[Path]]:
        return MaskStore, (self.path,)

    def _read(self, index: Any) -> np.ndarray:
        """A copy of some records, compared with their checksums."""
        if self._records is None:
            raise ValueError(f"The store {self.path} is closed.")
        records = np.array(self._records[index])
        bad = _checksums(records.reshape(-1)) != records.reshape(-1)["checksum"]
        if bad.any():
            image = np.arange(len(self))[index].reshape(-1)[bad][0]
            raise ValueError(f"{self.path} is damaged at the map of image {image}. Delete it and build it again.")
        return records

    def _unpack(self, records: np.ndarray) -> Tensor:
        shape = (self._info["channels"], *self.shape[2:])
        bits = np.unpackbits(records.reshape(-1)["map"], axis=1, count=math.prod(shape))
        maps = torch.from_numpy(bits).view(torch.bool).view(*records.shape, *shape)
        return maps.expand(*records.shape, *self.shape[1:])

    def _check_images(self, indices: Sequence[int], records: np.ndarray, checksums: Sequence[int]) -> None:
        other = np.asarray(indices)[records["image"] != np.array(checksums, dtype=np.int64)]
        if len(other):
            raise ValueError(
                f"Image {other[0]}{' (or its label)' * self._info['labels']} is not the one that its map in {self.path} was "
                "computed for. Give the un-augmented data set of MaskStore.build, in the same order."
            )


def store_info(dataset: Any, mask_fn: MaskSource) -> dict[str, Any]:
    """What ``info.json`` says of a data set and a source of maps."""
    if isinstance(mask_fn, (Tensor, np.ndarray)) and mask_fn.ndim == 4 and len(mask_fn) > 1:
        raise ValueError(f"A ready map must hold for every image, (H, W) or (1, C, H, W), got {tuple(mask_fn.shape)}.")
    labels = accepts_labels(mask_fn)
    shape, fingerprint = dataset_fingerprint(dataset, labels)
    data = {"length": len(dataset), "image_shape": list(shape), "dataset": fingerprint, "labels": labels}
    return data | {"format": _FORMAT, "provenance": provenance(mask_fn)}


def _find(path: Path, info: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The info of the store at the path, if it can be used or continued; None if it is to be built anew."""
    if not path.is_file() and all(file.name[0] == "." for file in path.glob("*")):
        return None
    there = _read_info(path)
    different = [f"{key}: {there[key]} against {info[key]}" for key in info if repr(there[key]) != repr(info[key])]
    if different and not overwrite:
        raise FileExistsError(
            f"{path} is a store of other maps or images. Take another path, or pass overwrite=True. ({'; '.join(different)})"
        )
    return None if overwrite and (different or there["complete"]) else there


def _read_info(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise ValueError(f"{path} is a file, as stores of sip-plugin 0.1 were; build it again, as a folder.")
    info: dict[str, Any] = json.loads((path / "info.json").read_bytes())
    if info.pop("checksum", None) != _info_checksum(info) or info["format"] != _FORMAT:
        raise ValueError(f"{path / 'info.json'} is damaged, or not that of a mask store.")
    return info


def _write_info(path: Path, info: dict[str, Any]) -> None:
    with atomic_write(path / "info.json", sync=True) as part:
        text = json.dumps(info | {"checksum": _info_checksum(info)}, indent=2) + "\n"
        part.write_text(text, encoding="utf-8", newline="\n")


def _info_checksum(info: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(info, sort_keys=True).encode())


def _open_records(path: Path, info: dict[str, Any]) -> np.memmap[Any, Any]:
    """The records of a store, through a memory map for reading."""
    try:
        records: np.memmap[Any, Any] = np.load(path / "maps.npy", mmap_mode="r")
        if (shape := records.shape) == (info["length"],):
            return records
        del records  # or the traceback would keep the file open
        raise ValueError(f"it has {shape} records")
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged header NumPy may raise anything
        raise ValueError(f"{path / 'maps.npy'} is damaged or cut off. Delete {path} and build it again.") from error


def _create_records(path: Path, info: dict[str, Any]) -> None:
    """Make the file of records, all zeros, and reserve its disk space: a full disk is an error now, not after hours."""
    elements = info["channels"] * math.prod(info["image_shape"][1:])
    dtype = np.dtype([("map", "u1", (-(-elements // 8),)), ("image", "<u4"), ("checksum", "<u4")])
    with atomic_write(path) as part:
        np.lib.format.open_memmap(part, "w+", dtype, (info["length"],))
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)


def _checksums(records: np.ndarray) -> np.ndarray:
    """The CRC-32 of each map, which starts from that of its image. A record of zeros, never written, does not have it."""
    pairs = zip(records["map"], records["image"].tolist(), strict=True)
    return np.array([zlib.crc32(packed, image) for packed, image in pairs], dtype=np.uint32)
