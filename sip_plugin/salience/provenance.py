"""What made a map: the class or function, its parameters, and a hash of every network's weights, as plain JSON values."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
import sys
import sysconfig
import types
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_LONGEST = 64  # a longer list is told by its hash
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_MOST_LOOKED_AT = 1000  # objects, in looking for a network


def provenance(source: Any) -> dict[str, Any]:
    """Describe a source of salience maps, so that two descriptions are equal if, and only if, it is the same source.

    A source may say it itself, with a method ``provenance() -> dict``. Otherwise the description holds the class or the
    function by its qualified name, its parameters (public attributes, arguments of a ``functools.partial``, defaults and
    captured variables of a function), and for each network among them the SHA-256 of its weights, which does not depend on
    the device they are on. A function is also told by a hash of its code, one of an installed package by its version.

    Args:
        source: A callable, a tensor or an array.

    Returns:
        A dictionary of plain JSON values.

    Raises:
        TypeError: If the source's own ``provenance()`` gives something else than a dictionary of JSON values.
    """
    described = _Description().of(source)
    return described if isinstance(described, dict) else {"value": described}


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, dtypes, shapes and values, wherever they are."""
    digest = hashlib.sha256()
    for name, value in sorted(_unwrapped(model).state_dict().items()):
        digest.update(name.encode() + b"\0")
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(_raw(value))
        else:  # a module's extra state
            digest.update(json.dumps(_Description().of(value), sort_keys=True).encode())
    return digest.hexdigest()


def network_of(source: Any) -> nn.Module | None:
    """The first network that a source of maps is, holds or calls; None if there is none to be seen."""
    seen: set[int] = set()
    waiting = [source]
    while waiting and len(seen) < _MOST_LOOKED_AT:
        value = waiting.pop(0)
        if isinstance(value, nn.Module):
            return value
        if id(value) not in seen and not isinstance(value, (type, types.ModuleType, Tensor)):
            seen.add(id(value))
            waiting += _parts(value)
    return None


def _parts(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return list(_captured(value).values())
    return list(getattr(value, "__dict__", {}).values())


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two descriptions differ, one line for each: ``teacher.weights: 'a…' against 'b…'``."""
    lines = []
    for key in sorted({*ours, *theirs}):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            lines += differences(mine, other, f"{prefix}{key}.")
        elif mine != other:
            lines.append(f"{prefix}{key}: {_short(mine)} against {_short(other)}")
    return lines


class _Description:
    """One description; remembers what it is in the middle of, because objects may refer to each other."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def of(self, value: Any) -> Any:
        if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if id(value) in self._open:
            return "(itself)"
        self._open.append(id(value))
        try:
            return self._of_object(value)
        finally:
            self._open.pop()

    def _of_object(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            value = _unwrapped(value)
        own = getattr(value, "provenance", None)
        if callable(own) and not isinstance(value, type):
            return _checked(own(), value)
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return _of_array(value)
        if isinstance(value, functools.partial):
            arguments = {"args": self.of(value.args), "keywords": self.of(value.keywords)}
            return {"partial": self.of(value.func), **arguments}
        if isinstance(value, types.MethodType):
            return {"method": value.__func__.__qualname__, "of": self.of(value.__self__)}
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, (type, types.BuiltinFunctionType)):
            return {"name": _name(value)}
        if isinstance(value, Mapping):
            return _shortened({str(key): self.of(entry) for key, entry in value.items()})
        if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
            entries = [self.of(entry) for entry in value]
            return _shortened(sorted(entries, key=repr) if isinstance(value, (set, frozenset)) else entries)
        if isinstance(value, (enum.Enum, PurePath, torch.dtype, torch.device)):
            return str(value)
        if isinstance(value, (bytes, bytearray)):
            return {"sha256": hashlib.sha256(value).hexdigest()}
        return self._of_instance(value)

    def _of_function(self, function: types.FunctionType) -> dict[str, Any]:
        if _is_installed(function):  # its code differs between versions of Python, which make the same maps
            version = getattr(sys.modules.get(function.__module__.partition(".")[0]), "__version__", None)
            return {"function": _name(function)} | ({"version": str(version)} if version else {})
        described: dict[str, Any] = {"function": _name(function), "code": _code_hash(function.__code__)}
        captured = {name: value for name, value in _captured(function).items() if _is_parameter(value)}
        if captured:
            described["uses"] = {name: self.of(value) for name, value in captured.items()}
        if function.__defaults__ or function.__kwdefaults__:
            described["defaults"] = self.of([list(function.__defaults__ or ()), function.__kwdefaults__ or {}])
        return described

    def _of_instance(self, value: Any) -> dict[str, Any]:
        described: dict[str, Any] = {"class": _name(type(value))}
        if isinstance(value, nn.Module):
            described["weights"] = weights_hash(value)
            attributes: dict[str, Any] = {
                name: entry
                for name, entry in vars(value).items()
                if name != "training" and isinstance(entry, (bool, int, float, str, tuple))
            }
        else:
            slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
            attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            attributes |= getattr(value, "__dict__", {})
        for name, entry in sorted(attributes.items()):
            if not name.startswith("_") or isinstance(entry, nn.Module):
                described[name] = self.of(entry)
        return described


def _captured(function: types.FunctionType) -> dict[str, Any]:
    """What a function finds outside itself: captured variables, and those of its module that it names."""
    code = function.__code__
    captured = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            captured[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return captured


def _is_parameter(value: Any) -> bool:
    """Whether something that a function captured can make its maps others, and is no state that changes by itself."""
    plain = (bool, int, float, str, tuple, frozenset, enum.Enum, torch.dtype, Tensor, np.ndarray, np.generic)
    return isinstance(value, plain) or callable(value) or (_is_object(value) and network_of(value) is not None)


def _is_installed(function: types.FunctionType) -> bool:
    """Whether a function is of the standard library or of an installed package, and nothing that its user writes."""
    file = Path(function.__code__.co_filename)
    return "site-packages" in file.parts or any(file.is_relative_to(sysconfig.get_path(kind)) for kind in _INSTALLED)


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, types.ModuleType)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile: the same one."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _of_array(value: Tensor | np.ndarray | np.generic) -> Any:
    if isinstance(value, np.generic):
        return _Description().of(value.item())
    raw = _raw(value) if isinstance(value, Tensor) else np.ascontiguousarray(value).tobytes()
    return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(raw).hexdigest()}


def _code_hash(code: types.CodeType) -> str:
    """A hash of what a function does, which its name, file and line numbers have no part in."""
    constants = [_code_hash(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    parts = [code.co_code.hex(), *constants, *code.co_names]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _constant(value: Any) -> str:
    return (
        repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)
    )  # whose order changes by process


def _shortened(entries: Any) -> Any:
    if len(entries) <= _LONGEST:
        return entries
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return {"length": len(entries), "sha256": digest}


def _checked(own: Any, source: Any) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(own, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{type(source).__name__}.provenance() must give plain JSON values: {error}.") from error
    if not isinstance(plain, dict):
        raise TypeError(f"{type(source).__name__}.provenance() must give a dictionary, got {type(own).__name__}.")
    return {"class": _name(type(source)), **plain}


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
