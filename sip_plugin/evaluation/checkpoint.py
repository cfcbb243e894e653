"""A folder that remembers finished batches, so that an evaluation that was killed resumes where it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sip_plugin.utils import atomic_write

_FORMAT = 3
_ROUNDING = 2e-3  # of an image's logits, relatively, between devices; TF32 rounds by 5e-4


class Checkpoint:
    """What is known of one evaluation, on disk: ``identity.pt``, ``batches/*.pt`` and in the end ``report.pt``.

    Args:
        folder: Where. None remembers nothing.

    Attributes:
        seconds: What the batches took that earlier runs have finished.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.seconds = 0.0

    def open(self, settings: Mapping[str, Any], logits: Tensor | None) -> None:
        """Begin or resume; the folder is made if it is not there.

        Args:
            settings: What the evaluation is of.
            logits: Of some images, ``(n, classes)``, on the CPU: networks of equal weights may differ in their code. None
                if the network is random, so that they say nothing.

        Raises:
            ValueError: If the folder belongs to another evaluation, or to something else.
        """
        if self.folder is None:
            return
        path, settings = self.folder / "identity.pt", {"format": _FORMAT, **settings}
        before = _load(path)
        if before is None:
            # Hidden files are a system's, or what a process left that was killed while it wrote.
            if self.folder.is_dir() and any(path.name[0] != "." for path in self.folder.iterdir()):
                raise ValueError(
                    f"checkpoint={str(self.folder)!r} holds files but no evaluation of this version. Give a new or empty "
                    "folder."
                )
            _save(path, {"settings": settings, "logits": logits})
            return
        there = before["settings"]
        different = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        found = [f"{name}: there {there.get(name)!r}, now {settings.get(name)!r}" for name in different]
        if not found and not _same_logits(before["logits"], logits):
            found = ["the network has the same weights, but gives other logits"]
        if found:
            raise ValueError(
                f"checkpoint={str(self.folder)!r} belongs to another evaluation ({'; '.join(found)}). Give another folder, "
                "or the same network, data (in the same order: no shuffling) and settings."
            )

    def batch(self, name: str, rows: Tensor, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result for some images: read if it is there, found and saved otherwise."""
        if self.folder is None:
            return run()
        path = self.folder / "batches" / f"{name}.pt"
        known = _load(path)
        if known is not None and torch.equal(known["rows"], rows):
            self.seconds += known["seconds"]
            result: dict[str, Tensor] = known["result"]
            return result
        began = time.perf_counter()
        result = run()
        _save(path, {"rows": rows.clone(), "result": result, "seconds": time.perf_counter() - began})
        return result

    def load_report(self) -> dict[str, Any] | None:
        """The fields of the finished report, None if it is not finished."""
        return None if self.folder is None else _load(self.folder / "report.pt")

    def finish(self, report: Mapping[str, Any]) -> None:
        """Save the fields of the finished report, which makes the batches superfluous."""
        if self.folder is not None:
            _save(self.folder / "report.pt", dict(report))
            shutil.rmtree(self.folder / "batches", ignore_errors=True)


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the tensors' values, types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _same_logits(before: Tensor | None, now: Tensor | None) -> bool:
    if before is None or now is None:
        return before is now
    apart, size = (before - now).norm(dim=1), torch.maximum(before.norm(dim=1), now.norm(dim=1))
    return bool((apart <= _ROUNDING * size).all())


def _load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many kinds, in a file of other bytes
        raise ValueError(
            f"The checkpoint's file {str(path)!r} is damaged. Remove it, and what it held is found again; in the place of "
            "identity.pt, the whole folder."
        ) from error
    return values


def _save(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path, sync=True) as file:
        torch.save(values, file)
