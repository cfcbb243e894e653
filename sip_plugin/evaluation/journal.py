"""A folder that remembers finished batches, so that an evaluation that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SETTINGS, _REPORT, _BATCHES = "settings.json", "report.pt", "batches"


class Journal:
    """What is known of one evaluation, on disk; each file is written whole or not at all.

    Args:
        folder: Where. None remembers nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin or go on; the folder is made if it is not there.

        Args:
            settings: What the evaluation is of, as plain JSON values. A folder with others is refused.

        Raises:
            ValueError: If the folder belongs to another evaluation, or to something else.
        """
        if self.folder is None:
            return
        settings = json.loads(json.dumps(settings))  # as it will be read again
        path = self.folder / _SETTINGS
        if path.exists():
            _check_same(self.folder, json.loads(path.read_text(encoding="utf-8")), settings)
            return
        if self.folder.exists() and any(not _is_unfinished(path) for path in self.folder.iterdir()):
            raise ValueError(
                f"checkpoint={str(self.folder)!r} holds files but no evaluation. Give a new or empty folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, (json.dumps(settings, indent=2) + "\n").encode())

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under a name, None if nothing was."""
        return None if self.folder is None else _read(self.folder / _BATCHES / f"{name}.pt")

    def save(self, name: str, values: Mapping[str, Any]) -> None:
        """Save tensors and plain values under a name."""
        if self.folder is not None:
            (self.folder / _BATCHES).mkdir(exist_ok=True)
            _write(self.folder / _BATCHES / f"{name}.pt", dict(values))

    def load_report(self) -> dict[str, Any] | None:
        """The finished report, None if it is not finished."""
        return None if self.folder is None else _read(self.folder / _REPORT)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Save the finished report, which makes the batches superfluous."""
        if self.folder is not None:
            _write(self.folder / _REPORT, dict(report))
            shutil.rmtree(self.folder / _BATCHES, ignore_errors=True)


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the tensors' values, types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """A hash of a network's parameters, buffers and of how it prints."""
    digest = hashlib.blake2b(repr(model).encode(), digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {fingerprint(tensor)}".encode())
    return digest.hexdigest()


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"{name}: there {before.get(name)!r}, now {now.get(name)!r}" for name in different)
        raise ValueError(
            f"checkpoint={str(folder)!r} belongs to another evaluation ({shown}). Give another folder, or the same "
            "network, data (in the same order: no shuffling) and settings."
        )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values


def _is_unfinished(path: Path) -> bool:
    """Whether a file is what a process left that was killed while it wrote."""
    return path.name.startswith(f".{_SETTINGS}.")


def _write(path: Path, content: bytes | dict[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
