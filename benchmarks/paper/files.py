"""Files that are whole or not there, and work that one process does while others wait or go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric

from sip_plugin.utils import atomic_write


def save(path: Path, state: Any) -> None:
    """``torch.save``, whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, sync=True) as file:
        torch.save(state, file)


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
    while True:
        with contextlib.ExitStack() as stack:
            mine = stack.enter_context(file_lock(path, wait=False)) if fabric.global_rank == 0 else None
            # The others ask again, too: a broadcast for which they wait too long ends them.
            if (mine := bool(fabric.broadcast(mine))) or not wait:
                yield mine
                return
        time.sleep(1)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """:func:`locked` for one process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
