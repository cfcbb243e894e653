"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The name of a file to write beside ``path``, which takes its place at the end, and goes if the block raises."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        yield written
        written.replace(target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """The text, which is also written to a file, whole or not at all, if there is a path."""
    if path is not None:
        with replacing(path) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
    return text
