"""Leaving a network as it was found, also after an exception, from several threads, and in nested calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class _Snapshot(Protocol):
    def restore(self) -> None: ...


class _Uses:
    """Who is using which network: the first one in takes the snapshot, the last one out restores it."""

    def __init__(self, snapshot: Callable[[nn.Module], _Snapshot]) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._entries: dict[int, list[Any]] = {}  # by id: a network may be unhashable; the snapshot keeps it alive

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        with self._lock:
            entry = self._entries.get(id(model))
            if entry is None:
                entry = self._entries[id(model)] = [0, self._snapshot(model)]
            entry[0] += 1
        try:
            yield
        finally:
            with self._lock:
                entry[0] -= 1
                if not entry[0]:
                    del self._entries[id(model)]
                    entry[1].restore()


class _Modes:
    """Each module's own train/eval flag."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]

    def restore(self) -> None:
        for module, training in self.modes:
            # A module that does more than set the flag (LoRA layers merge their weights) is told; it may tell others too.
            if type(module).train is not nn.Module.train and module.training != training:
                module.train(training)
        for module, training in self.modes:
            module.training = training


class _EvalMode(_Modes):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        model.eval()


class _Everything(_Modes):
    """All that using a network can change."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        modules = [module for module, _ in self.modes]
        self.hooks = [(module, name, set(getattr(module, name, ()))) for module in modules for name in _HOOKS]
        self.buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
            if not is_lazy(buffer)
        ]
        self.parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _, _ in self.parameters:
            parameter.grad = None

    def restore(self) -> None:
        super().restore()
        for module, name, before in self.hooks:
            registry = getattr(module, name, {})
            for key in [key for key in registry if key not in before]:
                del registry[key]
        for module, name, buffer, values in self.buffers:
            module._buffers[name] = buffer  # a module may have assigned another tensor instead of writing into it
            # Compared by value: BatchNorm writes without counting a version. Written only if need be: a graph that the
            # caller holds may have saved the buffer.
            if not torch.equal(buffer, values):
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(values)
        for parameter, grad, requires_grad in self.parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            parameter.grad = grad


_evaluating, _preserved = _Uses(_EvalMode), _Uses(_Everything)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode."""
    with _evaluating(model):
        yield


@contextmanager
def preserve_model_state(model: object) -> Iterator[None]:
    """Let somebody else's code use a network; put back whatever it changed, also when it raises.

    Covers each module's train/eval flag, buffers (BatchNorm statistics), hooks, and the parameters' gradients and
    ``requires_grad``. During the block gradients are ``None``, so nothing can be added to the caller's (nor can another
    thread train the network meanwhile). Something that is no network is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with _preserved(model):
        yield
