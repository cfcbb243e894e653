"""A folder that remembers finished batches, so that an evaluation that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.model_utils import canonical_names, own_attributes, unwrap_model

_FORMAT = 2  # of the folder, and of how networks and data are told apart
_SETTINGS, _LOGITS, _REPORT, _BATCHES = "settings.json", "logits.pt", "report.pt", "batches"
_ROUNDING = 2e-3  # of an image's logits, relatively, between devices; TF32 rounds by 5e-4


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
        settings = json.loads(json.dumps({"format": _FORMAT, **settings}))  # as it will be read again
        path = self.folder / _SETTINGS
        if file := next((place for place in (self.folder, *self.folder.parents) if place.is_file()), None):
            raise ValueError(f"checkpoint={str(self.folder)!r} must be a folder, but {str(file)!r} is a file.")
        if path.exists():
            _check_same(self.folder, _read_settings(path), settings)
            return
        # Hidden files are a system's, or what a process left that was killed while it wrote.
        if self.folder.exists() and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise ValueError(
                f"checkpoint={str(self.folder)!r} holds files but no evaluation. Give a new or empty folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, (json.dumps(settings, indent=2) + "\n").encode())

    def check_logits(self, logits: Tensor | None) -> None:
        """Make sure that the network still computes what it did; two networks of one fingerprint may differ in their code.

        Args:
            logits: Of some images, ``(n, classes)``, on the CPU; None if the network is random, so that they say nothing.

        Raises:
            ValueError: If those of the folder differ by more than rounding.
        """
        if self.folder is None:
            return
        before = _read(self.folder / _LOGITS, remove=self.folder)
        if before is None:
            _write(self.folder / _LOGITS, {"logits": logits})
        elif before.keys() != {"logits"}:
            raise ValueError(damaged(self.folder / _LOGITS, self.folder))
        elif not _same_logits(before["logits"], logits):
            raise ValueError(
                f"checkpoint={str(self.folder)!r} belongs to another evaluation: the network has the same weights, but "
                "gives other logits. Give another folder, or the same network."
            )

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under a name, None if nothing was."""
        return None if self.folder is None else _read(self.batch(name), remove=self.batch(name))

    def batch(self, name: str) -> Path:
        """The file of what is saved under a name."""
        if self.folder is None:
            raise ValueError("A journal without a folder has no files.")
        return self.folder / _BATCHES / f"{name}.pt"

    def save(self, name: str, values: Mapping[str, Any]) -> None:
        """Save tensors and plain values under a name."""
        if self.folder is not None:
            (self.folder / _BATCHES).mkdir(exist_ok=True)
            _write(self.batch(name), dict(values))

    def load_report(self) -> dict[str, Any] | None:
        """The finished report, None if it is not finished."""
        return None if self.folder is None else _read(self.folder / _REPORT, remove=self.folder)

    def damaged_report(self) -> str:
        """What to say of a report that was read but is none."""
        if self.folder is None:
            raise ValueError("A journal without a folder has no report.")
        return damaged(self.folder / _REPORT, self.folder)

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
    """A hash of a network's parameters, buffers, and of each module's class, how it prints, and its plain attributes.

    Plain are numbers, strings, None, and lists, tuples and dicts of these. What a module keeps otherwise (a tensor that is
    no buffer, the code of its forward) is seen in its logits: :meth:`Journal.check_logits`. A network that was compiled or
    replicated, or parts of it, is still the same one.
    """
    model = unwrap_model(model)
    plain_name = canonical_names(model)
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{plain_name(name)} {fingerprint(tensor)}".encode())
    for name, wrapped in model.named_modules(remove_duplicate=False):
        module = unwrap_model(wrapped)
        if module is not wrapped:
            continue  # its turn comes, under a longer name
        plain = {key: value for key, value in own_attributes(module).items() if _is_plain(value)}
        # Without the class's module: it is "__main__" in the script, and another one in the processes that it starts.
        kind = type(module).__qualname__
        digest.update(f"{plain_name(f'{name}.')} {kind} {module.extra_repr()} {sorted(plain.items())}".encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    return value is None or isinstance(value, (bool, numbers.Number, str))


def _same_logits(before: Any, now: Tensor | None) -> bool:
    if not isinstance(before, Tensor) or now is None:
        return before is None and now is None
    if before.shape != now.shape:
        return False
    apart, size = (before - now).norm(dim=1), torch.maximum(before.norm(dim=1), now.norm(dim=1))
    return bool((apart <= _ROUNDING * size).all())


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before.get("format") != now["format"]:
        raise ValueError(
            f"checkpoint={str(folder)!r} was written by another version of this library. Finish the evaluation with that, "
            "or begin anew in an empty folder."
        )
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"{name}: there {before.get(name)!r}, now {now.get(name)!r}" for name in different)
        raise ValueError(
            f"checkpoint={str(folder)!r} belongs to another evaluation ({shown}). Give another folder, or the same "
            "network, data (in the same order: no shuffling) and settings."
        )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(damaged(path, path.parent)) from error
    if not isinstance(settings, dict):
        raise ValueError(damaged(path, path.parent))
    return settings


def _read(path: Path, remove: Path) -> dict[str, Any] | None:
    """A file's content; ``remove`` is what must go if it is damaged."""
    if not path.exists():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many kinds, in a file of other bytes
        raise ValueError(damaged(path, remove)) from error
    if not isinstance(values, dict):
        raise ValueError(damaged(path, remove))
    return values


def damaged(path: Path, remove: Path) -> str:
    """What to say of a file that is not what this module wrote."""
    what = "the folder" if remove != path else "this file"
    lost = "the evaluation begins anew" if remove != path else "the batch is evaluated again"
    return (
        f"The checkpoint's file {str(path)!r} is damaged, or was not written by this library. Remove {what} "
        f"({str(remove)!r}), and {lost}."
    )


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
