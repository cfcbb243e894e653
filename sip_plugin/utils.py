"""Atomic writes, state that is restored after a block, optional packages, names and progress bars."""

from __future__ import annotations

import functools
import io
import os
import random
import textwrap
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

_T = TypeVar("_T")


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of ``path`` at the end, and is removed if the block raises.

    Its folder is made if need be. With ``sync`` the file also survives a power cut.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        yield part
        if sync:
            with part.open("r+b") as file:  # Windows flushes no file that is open for reading
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Put back the random generators of Python, NumPy and torch (the CPU's and CUDA's) after a block.

    In the block they begin at ``seed``, if there is one.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # all: attacks seed all
    try:
        with torch.random.fork_rng(cuda):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in cuda)):
                    generator.manual_seed(seed)  # torch.manual_seed would seed MPS, too
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def patched_attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an object's own attribute for the length of a block.

    Past any ``__setattr__``: torchattacks' would keep it (and with it the images) alive in a mutable default argument.
    """
    missing = object()
    before = vars(holder).get(name, missing)
    vars(holder)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(holder)[name]
        else:
            vars(holder)[name] = before


def import_extra(module: str, extra: str) -> Any:
    """A module of an optional package; an ImportError names the extra."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install 'sip-plugin[{extra}]'") from error


def short_repr(value: Any) -> str:
    """A value in one line: tensors and arrays by their shape, networks by their class, functions by their name."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    name = getattr(getattr(value, "func", value), "__qualname__", None)  # of a functools.partial the function's
    return name or textwrap.shorten(repr(value), 200, placeholder=" ...")


def attack_name(attack: Any) -> str:
    """An attack's class, or the function of a ``functools.partial``, by name."""
    attack = attack.func if isinstance(attack, functools.partial) else attack
    return getattr(attack, "__name__", type(attack).__name__)


def takes_targets(attack: Any) -> bool:
    """Whether an attack takes its labels for targets: an image's own label would make it easier."""
    attack = getattr(attack, "__self__", attack)  # of a method
    targeted = getattr(attack, "targeted", getattr(attack, "keywords", {}).get("targeted"))  # of a functools.partial
    # torchattacks' other modes, and ART's AutoAttack, find the targets themselves; ART's JSMA does not say that it has them.
    finds = getattr(attack, "attack_mode", "targeted(label)") != "targeted(label)" or hasattr(attack, "attacks")
    return (bool(targeted) and not finds) or type(attack).__name__ == "SaliencyMapMethod"


def show_in_notebooks(figure: _T) -> _T:
    """The figure, which shows as the last line of a cell although it is not registered with ``matplotlib.pyplot``."""
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def progress_bar(show: bool, **options: Any) -> Any:
    """A bar of ``tqdm``; none if ``show`` is False, or tqdm is not installed, which a warning says."""
    if show and find_spec("tqdm") is None:
        warnings.warn("Progress bars need tqdm: pip install 'sip-plugin[progress]'", stacklevel=2)
    if not show or find_spec("tqdm") is None:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(**options)


class _NoBar(nullcontext[Any]):
    def __enter__(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
