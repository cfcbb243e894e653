"""What computed a map: class or function, parameters, and a hash of every network, as plain JSON values."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.model_utils import model_hash, own_attributes, unwrap_model

_MOST_SEARCHED = 1000  # objects, in the search for a network
_PLAIN = (bool, int, float, str, tuple, type(None))
_HOLDS_VALUES = (dict, enum.Enum, Tensor, functools.partial, types.FunctionType, argparse.Namespace)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def provenance(source: Any) -> dict[str, Any]:
    """Describe a source of salience maps, so that a store can tell its own source from another one.

    An object is described by its class and its attributes, without those that start with an underscore (but for networks); a
    network by its class, the SHA-256 of its weights (``model_hash``), a hash of its ``repr`` and its plain attributes; a
    function by its name, a hash of its code, its defaults, and the values and networks that it takes from outside itself. A
    network's device and wrappers around it make no difference. The code of classes is not looked at: a source may describe
    itself by a method ``provenance() -> dict``.

    Args:
        source: A callable, a tensor or an array.

    Returns:
        A dictionary of plain JSON values.

    Raises:
        TypeError: If the source's own ``provenance()`` returns no dictionary.
        ValueError: If the source contains itself.
    """
    try:
        described = json.loads(json.dumps(source, default=_describe))
    except ValueError as error:  # a circle
        name = type(source).__name__
        raise ValueError(f"{name} cannot be described ({error}). Give it a method provenance() -> dict.") from error
    return described if isinstance(described, dict) else {"value": described}


def find_model(source: Any) -> nn.Module | None:
    """The first network that a source of maps is, has or calls; None if there is none."""
    seen: set[int] = set()
    waiting = [source]
    while waiting and len(seen) < _MOST_SEARCHED:
        value = waiting.pop(0)
        if isinstance(value, nn.Module):
            return value
        if id(value) not in seen and not isinstance(value, (type, types.ModuleType, Tensor)):
            seen.add(id(value))
            waiting += _parts(value)
    return None


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two descriptions differ, a line each: ``teacher.model_hash: 'a…' against 'b…'``."""
    lines = []
    for key in sorted({*ours, *theirs}):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            lines += differences(mine, other, f"{prefix}{key}.")
        elif repr(mine) != repr(other):  # NaN is the same as NaN here
            lines.append(f"{prefix}{key}: " + " against ".join(f"{value!r}"[:60] for value in (mine, other)))
    return lines


def _parts(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return list(_outside(value).values())
    return list(getattr(value, "__dict__", {}).values())


def _outside(function: types.FunctionType) -> dict[str, Any]:
    """The variables that a function takes from outside itself."""
    found = inspect.getclosurevars(function)
    return {**found.globals, **found.nonlocals}


def _describe(value: Any) -> Any:
    """A description of what JSON has no form for; :mod:`json` asks for its parts in turn."""
    value = unwrap_model(value) if isinstance(value, nn.Module) else value
    own = getattr(value, "provenance", None)
    if callable(own) and not isinstance(value, type):
        return {"class": _name(type(value)), **own()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        flat = value.detach().cpu().contiguous().flatten() if isinstance(value, Tensor) else np.asarray(value)
        content = (flat.view(torch.uint8).numpy() if isinstance(flat, Tensor) else flat).tobytes()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, functools.partial):
        return {"partial": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": value.__self__}
    if isinstance(value, types.FunctionType):
        return _describe_function(value)
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return {"name": _name(value)}
    if isinstance(value, enum.Enum) or not hasattr(value, "__dict__"):  # a dtype, a device, a path
        return _ADDRESS.sub("", str(value))
    described: dict[str, Any] = {"class": _name(type(value))}
    attributes = vars(value)
    if isinstance(value, nn.Module):
        described |= {"model_hash": model_hash(value), "architecture": _sha256(_ADDRESS.sub("", repr(value)))}
        attributes = {name: entry for name, entry in own_attributes(value).items() if isinstance(entry, _PLAIN)}
    public = {name: entry for name, entry in attributes.items() if name[0] != "_" or find_model(entry) is not None}
    return described | public


def _describe_function(function: types.FunctionType) -> dict[str, Any]:
    described: dict[str, Any] = {"function": _name(function)}
    if "site-packages" in function.__code__.co_filename:  # installed: its code depends on the version of Python, too
        return described
    described |= {"code": _code_hash(function.__code__), "defaults": [function.__defaults__, function.__kwdefaults__]}
    outside = {name: entry for name, entry in sorted(_outside(function).items()) if _is_parameter(entry)}
    return described | {"uses": outside}


def _is_parameter(value: Any) -> bool:
    """Whether what a function takes from outside can change its maps: a value, or an object with a network."""
    if isinstance(value, (type, types.ModuleType)):
        return False
    is_value = not hasattr(value, "__dict__") or isinstance(value, _HOLDS_VALUES) or dataclasses.is_dataclass(value)
    return is_value or find_model(value) is not None


def _code_hash(code: types.CodeType) -> str:
    """A hash of what a function does, without its file and line numbers."""
    constants = []
    for value in code.co_consts:
        value = sorted(value, key=repr) if isinstance(value, frozenset) else value
        constants.append(_code_hash(value) if isinstance(value, types.CodeType) else repr(value))
    return _sha256(repr((code.co_code, constants, code.co_names)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
