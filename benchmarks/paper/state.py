"""A table that is run in slices of time, on machines that keep nothing: its results and unfinished cells in few files."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sip_plugin.utils import atomic_write

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
    """Write the results, and the networks and checkpoints of cells without one, as files of 15 MiB in place of earlier ones.

    They are the pieces of one archive: ``state-<how often>-<piece>-of-<pieces>.tar``. Those of before go when all are there.
    Maps are left out: they are made again from their teacher, whose network is in it.
    """
    done = tuple(f"{path.stem}-" for path in (results / "cells").glob("*-seed*.json") if ".report" not in path.name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted((results / "cells").glob("*.json")):
            archive.add(path, f"cells/{path.name}")
        for folder in sorted(work.glob("*-seed*-*")):
            if not folder.name.startswith(done):
                archive.add(folder, f"work/{folder.name}")
    before = list(state.glob("state-*.tar"))
    often = 1 + max((int(path.stem.split("-")[1]) for path in before), default=0)
    whole = buffer.getbuffer()
    starts = range(0, len(whole), PIECE)
    for number, start in enumerate(starts, 1):
        with atomic_write(state / f"state-{often:03}-{number:02}-of-{len(starts):02}.tar") as part:
            part.write_bytes(whole[start : start + PIECE])
    for old in before:
        old.unlink()


def unpack(state: Path, results: Path, work: Path) -> None:
    """Take up what `pack` wrote, if there is anything; files that are there already stay."""
    written = itertools.groupby(sorted(state.glob("state-*.tar")), key=lambda path: path.stem.split("-")[1])
    pieces = [list(paths) for _, paths in written]
    complete = [paths for paths in pieces if len(paths) == int(paths[0].stem.split("-")[-1])]  # not cut short by a kill
    if not complete:
        return
    whole = b"".join(path.read_bytes() for path in complete[-1])
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        for member in archive:
            top, _, name = member.name.partition("/")
            target = work / name if top == "work" else results / "cells" / name
            file = archive.extractfile(member)
            if file is not None and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read())
