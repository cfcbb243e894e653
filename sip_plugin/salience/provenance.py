"""What made a map: the class or function, its parameters, and a hash of every network's weights, as plain JSON values."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import re
import sys
import types
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.model_utils import canonical_names, own_attributes, unwrap_model
from sip_plugin.salience.code import (
    captured,
    code_hash,
    generated_code,
    is_installed,
    methods,
    state_of_call,
    users_classes,
    written,
)

_LONGEST = 64  # a longer list is told by its hash
_MOST_LOOKED_AT = 1000  # objects, in looking for a network
_PLAIN = (bool, int, float, str, bytes, enum.Enum, PurePath, torch.dtype, Tensor, np.ndarray, np.generic)
_CONTAINERS = (tuple, list, set, frozenset, dict)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def provenance(source: Any) -> dict[str, Any]:
    """Describe a source of salience maps, so that two descriptions are equal if, and only if, it is the same source.

    A source may say it itself, with a method ``provenance() -> dict``. Otherwise the description holds the class or the
    function by its qualified name, its parameters (attributes, arguments of a ``functools.partial``, defaults, captured
    variables and globals of a function), and for each network among them the SHA-256 of its weights, which does not depend
    on the device they are on, and that of its architecture: each submodule's class, settings, attributes, and code if its
    user wrote it. A function or class that its user wrote is also told by a hash of its code, a function of an installed
    package by its version. What a function writes to (``calls.append(…)``) is its state and left out, as forward hooks are.

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
    model = unwrap_model(model)
    names = canonical_names(model)
    values = {names(name): value for name, value in model.state_dict().items()}
    for name, value in sorted(values.items()):
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
        return list(captured(value).values())
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
        self._told: set[Any] = set()  # functions and classes, whose code is told once

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
            value = unwrap_model(value)
        own = getattr(value, "provenance", None)
        if callable(own) and not isinstance(value, type):
            return _checked(own(), value)
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return _of_array(value)
        if isinstance(value, functools.partial):
            arguments = {"args": self.of(value.args), "keywords": self.of(value.keywords)}
            return {"partial": self.of(value.func), **arguments}
        if isinstance(value, types.MethodType):
            return self._of_method(value)
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, type):
            return {"name": _name(value)} | self._of_class(value)
        if isinstance(value, types.BuiltinFunctionType):
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

    def _of_method(self, method: types.MethodType) -> dict[str, Any]:
        function = method.__func__
        described = {"method": function.__qualname__, "of": self.of(method.__self__)}
        if getattr(type(method.__self__), function.__name__, None) is not function:  # given to this object alone
            described["function"] = self.of(function)
        return described

    def _of_function(self, function: types.FunctionType) -> dict[str, Any]:
        if is_installed(function):  # its code differs between versions of Python, which make the same maps
            version = getattr(sys.modules.get(function.__module__.partition(".")[0]), "__version__", None)
            return {"function": _name(function)} | ({"version": str(version)} if version else {})
        if function in self._told:
            return {"function": _name(function)}
        self._told.add(function)
        described: dict[str, Any] = {"function": _name(function), "code": code_hash(function.__code__)}
        state = written(function)
        uses = {name: value for name, value in captured(function).items() if name not in state and _is_parameter(value)}
        if uses:
            described["uses"] = {name: self.of(value) for name, value in uses.items()}
        if function.__defaults__ or function.__kwdefaults__:
            described["defaults"] = self.of([list(function.__defaults__ or ()), function.__kwdefaults__ or {}])
        return described

    def _of_class(self, kind: type) -> dict[str, str]:
        """One hash of what its user wrote of a class and its bases: methods, what they use, and class attributes."""
        written_by_user = [base for base in users_classes(kind) if base not in self._told]
        self._told.update(written_by_user)
        described = []
        for base in written_by_user:
            attributes = {name: value for name, value in vars(base).items() if name[:2] != "__" and _is_plain(value)}
            functions = sorted(methods(base).items())
            described += [_name(base), self.of(attributes), {name: self.of(function) for name, function in functions}]
        return {"code": _json_hash(described)} if described else {}

    def _of_instance(self, value: Any) -> dict[str, Any]:
        described: dict[str, Any] = {"class": _name(type(value))}
        if isinstance(value, nn.Module):
            described["weights"] = weights_hash(value)
            described["architecture"] = _json_hash(self._of_modules(value))
            attributes: dict[str, Any] = {
                name: entry
                for name, entry in vars(value).items()
                if name != "training" and isinstance(entry, (bool, int, float, str, tuple))
            }
            state: set[str] = set()
        else:
            described |= self._of_class(type(value))
            slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
            attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            attributes |= getattr(value, "__dict__", {})
            state = state_of_call(type(value), "__call__")
        users = not isinstance(value, nn.Module) and bool(users_classes(type(value)))
        for name, entry in sorted(attributes.items()):
            private = name.startswith("_")
            if not private or isinstance(entry, nn.Module) or (users and name not in state and _is_parameter(entry)):
                described[name] = self.of(entry)
        return described

    def _of_modules(self, model: nn.Module, name: str = "") -> list[Any]:
        """Each submodule: what it is, and what it has beside weights."""
        model = unwrap_model(model)
        kind, state = type(model), state_of_call(type(model), "forward")
        attributes = {
            key: entry
            for key, entry in sorted(own_attributes(model).items())
            if key not in state and _is_parameter(entry)
        }
        attributes |= {key: model._buffers.get(key) for key in sorted(model._non_persistent_buffers_set)}
        described: list[Any] = [name, _name(kind), _ADDRESS.sub("", model.extra_repr()), self._of_class(kind)]
        described += [{key: self.of(entry) for key, entry in attributes.items()}, generated_code(model)]
        for key, child in model.named_children():
            described += self._of_modules(child, f"{name}.{key}")
        return described


def _is_parameter(value: Any) -> bool:
    """Whether something that a function or an object has can make its maps others, and can be described."""
    return _is_plain(value) or callable(value) or (_is_object(value) and network_of(value) is not None)


def _is_plain(value: Any) -> bool:
    """Whether it is a value, or a container or namespace of such."""
    if isinstance(value, (types.SimpleNamespace, Namespace)) or dataclasses.is_dataclass(value):
        return not isinstance(value, type)
    return value is None or isinstance(value, (*_PLAIN, *_CONTAINERS))


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, types.ModuleType)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _json_hash(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _of_array(value: Tensor | np.ndarray | np.generic) -> Any:
    if isinstance(value, np.generic):
        return _Description().of(value.item())
    raw = _raw(value) if isinstance(value, Tensor) else np.ascontiguousarray(value).tobytes()
    return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(raw).hexdigest()}


def _shortened(entries: Any) -> Any:
    if len(entries) <= _LONGEST:
        return entries
    return {"length": len(entries), "sha256": _json_hash(entries)}


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
