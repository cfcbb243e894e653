"""Files that are whole or not there, and work that one process does while others wait or go on."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

try:
    import fcntl
except ImportError:  # Windows: two processes on one table are not kept apart there
    fcntl = None  # type: ignore[assignment]


def save(path: Path, state: Any) -> None:
    """``torch.save``, whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> Any:
    """Tensors and plain values that :func:`save` wrote, on the CPU.

    Raises:
        ValueError: If the file is none of that kind.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of tensors that torch.load(weights_only=True) takes: {error}"
        ) from error


@contextlib.contextmanager
def locked(path: Path, fabric: Fabric, *, wait: bool) -> Iterator[bool]:
    """Whether this run (all its processes together) has the work to itself; with ``wait`` it waits until it has.

    The system lets go of the lock when the process ends, however it ends.
    """
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(file_lock(path, wait)) if fabric.global_rank == 0 else None
        yield bool(fabric.broadcast(mine))


@contextlib.contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """:func:`locked` for one process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl is None:
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
