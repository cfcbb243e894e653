"""What computed a map: class or function, parameters, and a hash of every network, as plain JSON values."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import re
import types
from collections import deque
from typing import Any

import numpy as np
from torch import Tensor, nn

from sip_plugin.model_utils import model_hash, unwrap_model

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def provenance(source: Any) -> dict[str, Any]:
    """Describe a source of salience maps in plain JSON values, so that a store knows its own source again.

    An object is described by its class and its public attributes; a network by its class, its ``model_hash``, and a hash of
    its ``repr`` and of what its modules hold beside weights; a function by its name, a hash of its code, its defaults, and
    what it takes from outside itself. A network's device and wrappers make no difference. A source may say more by
    ``provenance() -> dict``.
    """
    described = json.loads(json.dumps(source, default=_describe))
    return described if isinstance(described, dict) else {"value": described}


def find_models(source: Any) -> list[nn.Module]:
    """The networks that a source of maps is, has or calls."""
    seen: dict[int, Any] = {}
    waiting = deque([source])
    while waiting and len(seen) < 1000:  # a function may lead to all there is
        value = waiting.popleft()
        if id(value) not in seen and not isinstance(value, (type, types.ModuleType)):
            seen[id(value)] = value
            if not isinstance(value, nn.Module):
                waiting += value if isinstance(value, (list, tuple)) else _parts(value).values()
                waiting += getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)
    return [value for value in seen.values() if isinstance(value, nn.Module)]


def _parts(value: Any) -> dict[str, Any]:
    """What an object holds, or a function takes from outside itself."""
    if isinstance(value, functools.partial):
        return {"partial": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": value.__self__}
    if isinstance(value, types.FunctionType):
        used = _names(value.__code__)
        outside = {name: part for name, part in value.__globals__.items() if name in used}
        outside |= inspect.getclosurevars(value).nonlocals
        return {name: part for name, part in outside.items() if not isinstance(part, (type, types.ModuleType))}
    return value if isinstance(value, dict) else getattr(value, "__dict__", {})


def _describe(value: Any) -> Any:
    """A description of what JSON has no form for; :mod:`json` asks for its parts in turn."""
    value = unwrap_model(value) if isinstance(value, nn.Module) else value
    if callable(getattr(value, "provenance", None)) and not isinstance(value, type):
        return {"class": _name(type(value)), **value.provenance()}
    if isinstance(value, nn.Module):
        # What its modules hold beside weights: the mean of a normalisation, an activation function.
        held = [
            {name: part for name, part in vars(module).items() if name[0] != "_" and name != "training"}
            for module in value.modules()
        ]
        text = _ADDRESS.sub("", repr(value)) + json.dumps(held, default=_describe, skipkeys=True)
        architecture = hashlib.sha256(text.encode()).hexdigest()
        return {"class": _name(type(value)), "model_hash": model_hash(value), "architecture": architecture}
    if isinstance(value, (Tensor, np.ndarray)):
        content = hashlib.sha256(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value).tobytes())
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": content.hexdigest()}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (functools.partial, types.MethodType)):
        return _parts(value)
    if isinstance(value, types.FunctionType):
        defaults = [value.__defaults__, value.__kwdefaults__]
        uses = dict(sorted(_parts(value).items()))
        return {"function": _name(value), "code": _code_hash(value.__code__), "defaults": defaults, "uses": uses}
    if isinstance(value, (type, enum.Enum)) or not hasattr(value, "__dict__"):  # a class, a dtype, a device, a path
        return _ADDRESS.sub("", str(value))
    public = {name: part for name, part in vars(value).items() if name[0] != "_" or find_models(part)}
    return {"class": _name(type(value)), **public}


def _code_hash(code: types.CodeType) -> str:
    """A hash of what a function does, without file, line numbers, and a set's order, which each process has its own of."""
    constants = (sorted(part, key=repr) if isinstance(part, frozenset) else part for part in code.co_consts)
    described = [_code_hash(part) if isinstance(part, types.CodeType) else repr(part) for part in constants]
    return hashlib.sha256(repr((code.co_code, described, code.co_names)).encode()).hexdigest()


def _names(code: types.CodeType) -> set[str]:
    """The names that a function takes from outside itself, those of the functions within it included."""
    return {*code.co_names}.union(*(_names(part) for part in code.co_consts if isinstance(part, types.CodeType)))


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
