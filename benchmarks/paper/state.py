"""A table that is run in slices of time, on machines that keep nothing: its results and unfinished cells in few files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.paper.files import file_lock
from sip_plugin.utils import atomic_write

PIECE = 15 * 2**20
_INDEX = "pieces.txt"


class TimeUp(KeyboardInterrupt):  # not an Exception, which what runs might take for its own
    """The time limit is reached."""


@contextlib.contextmanager
def time_limit(seconds: int | None) -> Iterator[None]:
    """Raise `TimeUp` in this block after so many seconds, or at a SIGTERM; of training at most an epoch is lost, of an
    evaluation a batch.
    """
    if seconds is None:
        yield
        return
    if seconds < 1:
        raise ValueError(f"--time-limit must be at least 1, got {seconds}.")

    def stop(*_: Any) -> None:
        raise TimeUp

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)  # again, as what a __del__ raises is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def pack(state: Path, results: Path, work: Path) -> None:
    """Write the results, and the networks and checkpoints of cells without one, as files of 15 MiB at most.

    They are the pieces of one archive, each with its SHA-256 as its name. ``pieces.txt`` says which they are, is written
    last, and those of before go after it, so that a kill at any moment leaves a whole state. Maps are left out: they are
    made again from their teacher, whose network is in it.
    """
    done = tuple(f"{path.stem}-" for path in (results / "cells").glob("*-seed*.json") if ".report" not in path.name)
    files = {f"cells/{path.name}": path for path in (results / "cells").glob("[!.]*.json")}
    for folder in work.glob("*-seed*-*/"):
        if not folder.name.startswith(done):
            files |= {
                f"work/{path.relative_to(work).as_posix()}": path for path in folder.rglob("[!.]*") if path.is_file()
            }
    with file_lock(state / ".lock", wait=True):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, path in sorted(files.items()):
                with contextlib.suppress(FileNotFoundError):  # another process has finished that cell since
                    content, entry = path.read_bytes(), tarfile.TarInfo(name)
                    entry.size, entry.mtime = len(content), path.stat().st_mtime
                    archive.addfile(entry, io.BytesIO(content))
        whole, names, before = buffer.getbuffer(), [], _names(state)
        for start in range(0, len(whole), PIECE):
            piece = whole[start : start + PIECE]
            names.append(f"{hashlib.sha256(piece).hexdigest()}.part")
            with atomic_write(state / names[-1]) as part:
                part.write_bytes(piece)
        with atomic_write(state / _INDEX) as part:
            part.write_text("\n".join(names))
        for old in set(before) - set(names):
            (state / old).unlink(missing_ok=True)


def unpack(state: Path, results: Path, work: Path) -> None:
    """Take up what `pack` wrote, if there is anything; files that are there already and no older stay.

    Raises:
        FileNotFoundError: If a piece is missing.
        ValueError: If a piece is not as it was written.
    """
    pieces = [(name, (state / name).read_bytes()) for name in _names(state)]
    for name, piece in pieces:
        if hashlib.sha256(piece).hexdigest() != Path(name).stem:
            raise ValueError(f"{state / name} is damaged. Copy the folder again, or remove it to start anew.")
    if not pieces:
        return
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece for _, piece in pieces))) as archive:
        for entry in archive:
            top, _, name = entry.name.partition("/")
            target = work / name if top == "work" else results / "cells" / name
            file = archive.extractfile(entry)
            if file is not None and not (target.exists() and target.stat().st_mtime >= entry.mtime):
                with atomic_write(target) as part:
                    part.write_bytes(file.read())
                    os.utime(part, (entry.mtime, entry.mtime))


def _names(state: Path) -> list[str]:
    index = state / _INDEX
    return index.read_text().split() if index.exists() else []
