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
    """What is known of one evaluation, in a folder: ``identity.pt``, ``batches/*.pt`` and in the end ``report.pt``.

    ``seconds`` is what the batches took that earlier runs have finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.seconds = 0.0

    def open(self, settings: Mapping[str, Any], logits: Tensor | None) -> dict[str, Any] | None:
        """Begin or resume the evaluation that ``settings`` describe; return the fields of its report if it is finished.

        ``logits`` of some images ``(n, classes)`` tell networks of equal weights apart; None if the network is random.

        Raises:
            ValueError: If the folder belongs to another evaluation, or to something else.
        """
        path, now = self.folder / "identity.pt", {"format": _FORMAT, **settings}
        found = []
        if path.exists():
            before, stored = (_load(path)[name] for name in ("settings", "logits"))
            pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
            found = [f"{name}: there {there!r}, now {here!r}" for name, (there, here) in pairs.items() if there != here]
            if not found and not _same_logits(stored, logits):
                found = ["the network has the same weights, but gives other logits"]
        elif any(each.name[0] != "." for each in self.folder.glob("*")):  # hidden: half-written
            found = ["it holds other files"]
        if found:
            raise ValueError(f"checkpoint={str(self.folder)!r} belongs to another evaluation ({'; '.join(found)}).")
        if not path.exists():
            _save(path, {"settings": now, "logits": logits})
        report = self.folder / "report.pt"
        return _load(report) if report.exists() else None

    def batch(self, name: str, rows: Tensor, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result for some images: read if it is there, found and saved otherwise."""
        path, began = self.folder / "batches" / f"{name}.pt", time.perf_counter()
        if path.exists() and torch.equal((known := _load(path))["rows"], rows):
            self.seconds += known["seconds"]
        else:
            known = {"rows": rows.clone(), "result": run(), "seconds": time.perf_counter() - began}
            _save(path, known)
        result: dict[str, Tensor] = known["result"]
        return result

    def finish(self, report: dict[str, Any]) -> None:
        """Save the fields of the finished report, which makes the batches superfluous."""
        _save(self.folder / "report.pt", report)
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
    return not (apart > _ROUNDING * size).any()  # NaN is refused where it is classified


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def _save(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path, sync=True) as file:
        torch.save(values, file)
