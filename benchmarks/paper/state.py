"""A table that is run in slices of time, on machines that keep nothing: its results and unfinished cells in few files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
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
    """Raise `TimeUp` in this block after so many seconds, and then also at a SIGTERM; of training at most an epoch is lost,
    of an evaluation a batch. With None there is no limit, and a SIGTERM does what it does.
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

    They are the pieces of one archive, in a folder of ``state`` with a list of their SHA-256 (as ``sha256sum -c`` reads it).
    That folder appears whole, and only then the one of before goes, so that a kill at any moment leaves a whole state. Maps
    are left out: they are made again from their teacher, whose network is in it.
    """
    with file_lock(state / ".lock", wait=True):
        done = tuple(f"{path.stem}-" for path in (results / "cells").glob("*-seed*.json") if ".report" not in path.name)
        files = {f"cells/{path.name}": path for path in (results / "cells").glob("[!.]*.json")}
        for folder in (path for path in work.glob("*-seed*-*") if path.is_dir() and not path.name.startswith(done)):
            found = (path for path in folder.rglob("[!.]*") if path.is_file())
            files |= {f"work/{path.relative_to(work).as_posix()}": path for path in found}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, path in sorted(files.items()):
                with contextlib.suppress(FileNotFoundError):  # another process has finished that cell since
                    content, entry = path.read_bytes(), tarfile.TarInfo(name)
                    entry.size, entry.mtime = len(content), path.stat().st_mtime
                    archive.addfile(entry, io.BytesIO(content))
        whole, before, part = buffer.getbuffer(), _generations(state), state / ".part"
        shutil.rmtree(part, ignore_errors=True)  # which a kill has left
        part.mkdir()
        lines = []
        for number, start in enumerate(range(0, len(whole), PIECE), 1):
            piece, name = whole[start : start + PIECE], f"{number:02}.part"
            with atomic_write(part / name, sync=True) as file:
                file.write_bytes(piece)
            lines.append(f"{hashlib.sha256(piece).hexdigest()}  {name}\n")
        with atomic_write(part / _INDEX, sync=True) as file:
            file.write_text("".join(lines))
        part.rename(state / f"{before[-1] + 1 if before else 1}")
        for old in before:
            shutil.rmtree(state / f"{old}")


def unpack(state: Path, results: Path, work: Path) -> None:
    """Take up what `pack` wrote, if there is anything. Of a cell that is there, too, the newer files stay, all or none.

    Raises:
        FileNotFoundError: If a piece is missing.
        ValueError: If a piece is not as it was written.
    """
    with file_lock(state / ".lock", wait=True):
        if not (generations := _generations(state)):
            return
        folder, buffer = state / f"{generations[-1]}", io.BytesIO()
        for line in (folder / _INDEX).read_text().splitlines():
            checksum, _, name = line.partition("  ")
            piece = (folder / name).read_bytes() if name else b""
            if hashlib.sha256(piece).hexdigest() != checksum:
                raise _damaged(folder / (name or _INDEX))
            buffer.write(piece)
        if not buffer.tell():
            raise _damaged(folder / _INDEX)
        cells: dict[Path, dict[str, tuple[float, bytes]]] = {}
        buffer.seek(0)
        with tarfile.open(fileobj=buffer) as archive:
            for entry in archive:
                top, name, *inside = entry.name.split("/", 2)
                place = work / name if top == "work" else results / "cells" / name.split(".")[0]
                content = archive.extractfile(entry).read()  # type: ignore[union-attr]
                cells.setdefault(place, {})[inside[0] if inside else name] = entry.mtime, content
        for place, files in cells.items():
            is_work = place.parent == work
            found = place.rglob("[!.]*") if is_work else place.parent.glob(f"{place.name}.*")
            there = [path for path in found if path.is_file()]
            newest = max(mtime for mtime, _ in files.values())
            if any(path.stat().st_mtime >= newest for path in there):
                continue
            part = place.with_name(f".{place.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            for name, (mtime, content) in files.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(content)
                os.utime(part / name, (mtime, mtime))
            if is_work:
                shutil.rmtree(place, ignore_errors=True)
                part.rename(place)
            else:
                # The newest last: until it is there, all is done again.
                for name in sorted(files, key=files.__getitem__):
                    (part / name).replace(place.parent / name)
                part.rmdir()


def _generations(state: Path) -> list[int]:
    return sorted(int(path.name) for path in state.glob("[0-9]*") if path.name.isdecimal())


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged. Copy the folder again, or remove it to start anew.")
