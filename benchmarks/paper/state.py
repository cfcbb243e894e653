"""A table that is run in slices of time, on machines that keep nothing: its results and unfinished cells in few files."""

from __future__ import annotations

import contextlib
import io
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIECE = 15 * 2**20


class TimeUp(KeyboardInterrupt):  # not an Exception, which what runs might take for its own
    """The time limit is reached."""


@contextlib.contextmanager
def time_limit(seconds: int | None) -> Iterator[None]:
    """Raise `TimeUp` in this block after so many seconds; of training at most an epoch is lost, of an evaluation a batch."""

    def stop(*_: Any) -> None:
        raise TimeUp

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pack(state: Path, results: Path, work: Path) -> None:
    """Write the results, and the networks and checkpoints of cells without one, as ``state-00.tar``, … of 15 MiB each.

    They are the pieces of one archive. Maps are left out: they are made again from their teacher, whose network is in it.
    """
    done = tuple(f"{path.stem}-" for path in (results / "cells").glob("*-seed*.json") if ".report" not in path.name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted((results / "cells").glob("*.json")):
            archive.add(path, f"cells/{path.name}")
        for folder in sorted(work.glob("*-seed*-*")):
            if not folder.name.startswith(done):
                archive.add(folder, f"work/{folder.name}")
    state.mkdir(parents=True, exist_ok=True)
    for old in state.glob("state-*.tar"):
        old.unlink()
    whole = buffer.getbuffer()
    for number, start in enumerate(range(0, len(whole), PIECE)):
        (state / f"state-{number:02}.tar").write_bytes(whole[start : start + PIECE])


def unpack(state: Path, results: Path, work: Path) -> None:
    """Take up what `pack` wrote, if there is anything; files that are there already stay."""
    whole = b"".join(path.read_bytes() for path in sorted(state.glob("state-*.tar")))
    if not whole:
        return
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        for member in archive:
            top, _, name = member.name.partition("/")
            target = work / name if top == "work" else results / "cells" / name
            file = archive.extractfile(member)
            if file is not None and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read())
