"""The code of functions and classes: a hash of what it does, what it names outside itself, and what it writes to."""

from __future__ import annotations

import dis
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

_OWN = __name__.partition(".")[0]
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_WRITERS = "add append appendleft clear discard extend insert pop popitem popleft remove reverse setdefault sort update"
_WRITES = frozenset(_WRITERS.split())
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD")
_STORES = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR")
_PLACES_AND_NUMBERS = re.compile(r" # .*|___torch_mangle_\d+\.")  # in the code of torch.jit


def code_hash(code: types.CodeType) -> str:
    """A hash of what a function does, which its name, file and line numbers have no part in."""
    constants = [code_hash(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    parts = [code.co_code.hex(), *constants, *code.co_names]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def generated_code(model: nn.Module) -> str | None:
    """The code that torch.fx and torch.jit have made of a network."""
    if isinstance(model, torch.fx.GraphModule):
        return str(model.code)
    if isinstance(model, torch.jit.ScriptModule) and hasattr(model, "forward"):
        return _PLACES_AND_NUMBERS.sub("", str(model.inlined_graph))
    return None


def captured(function: types.FunctionType) -> dict[str, Any]:
    """What a function finds outside itself: captured variables, and those of its module that it names."""
    names = dict.fromkeys(name for code in _all_code(function.__code__) for name in code.co_names)
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return found


def written(function: types.FunctionType) -> set[str]:
    """Names of what a function itself writes to, as in ``calls.append(1)``, ``cache[key] = map``, ``self.calls += 1``.

    That is its state, which changes while maps are made and is no part of what makes them.
    """
    names = set()
    for code in _all_code(function.__code__):
        steps = list(dis.get_instructions(code))
        for number, step in enumerate(steps):
            if step.opname in _STORES:
                names.add(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in _WRITES and number:
                names |= _loaded(steps[number - 1])
            elif step.opname == "STORE_SUBSCR" and number > 1:
                names |= _loaded(steps[number - 2])
    return names


def is_installed(thing: types.FunctionType | type) -> bool:
    """Whether a function or a class is of this or an installed package, or Python's own, and not written by its user."""
    if (thing.__module__ or "").partition(".")[0] == _OWN:
        return True
    if isinstance(thing, types.FunctionType):
        return _is_installed_file(thing.__code__.co_filename)
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or written at a prompt
        return module is not None and thing.__module__ != "__main__"
    return _is_installed_file(file)


def users_classes(kind: type) -> list[type]:
    """The classes of a class and its bases that its user wrote."""
    return [base for base in kind.__mro__ if not is_installed(base)]


def methods(kind: type) -> dict[str, types.FunctionType]:
    """The functions in a class's own body: methods, static and class methods, the getters of properties."""
    found = {}
    for name, entry in vars(kind).items():
        if isinstance(entry, (staticmethod, classmethod)):
            entry = entry.__func__
        elif isinstance(entry, property):
            entry = entry.fget
        elif isinstance(entry, functools.cached_property):
            entry = entry.func
        if isinstance(entry, types.FunctionType):
            found[name] = entry
    return found


def state_of_call(kind: type, entry: str) -> set[str]:
    """The attributes that a method writes to, and the methods that it calls."""
    names: set[str] = set()
    waiting, seen = [entry], set()
    while waiting:
        name = waiting.pop()
        function = getattr(kind, name, None)
        if name in seen or not isinstance(function, types.FunctionType) or name == "__init__":
            continue
        seen.add(name)
        names |= written(function)
        waiting += [called for code in _all_code(function.__code__) for called in code.co_names]
    return names


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)


def _loaded(step: dis.Instruction) -> set[str]:
    return {step.argval} if step.opname in _LOADS else set()


def _is_installed_file(name: str) -> bool:
    file = Path(name)
    return "site-packages" in file.parts or any(file.is_relative_to(sysconfig.get_path(kind)) for kind in _INSTALLED)


def _constant(value: Any) -> str:  # a set's order changes by process
    return repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)
