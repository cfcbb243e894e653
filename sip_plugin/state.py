"""Leaving a network as it was found, also after an exception."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserved(model: object) -> Iterator[None]:
    """Let somebody else's code use a network; put back whatever it changed, also when it raises.

    Covers each module's train/eval flag, buffers (BatchNorm statistics), hooks, and the parameters' gradients and
    ``requires_grad``. During the block gradients are ``None``, so nothing can be added to the caller's. Calls on one
    network may nest or come from several threads: the first one in takes the snapshot, the last one out restores it.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with _lock:
        users, snapshot = _in_use.get(model, (0, None))
        snapshot = snapshot or _Snapshot(model)
        _in_use[model] = (users + 1, snapshot)
    try:
        yield
    finally:
        with _lock:
            users, _ = _in_use[model]
            if users > 1:
                _in_use[model] = (users - 1, snapshot)
            else:
                del _in_use[model]
                snapshot.restore()


class _Snapshot:
    """The state of a network that using it can change."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.modes = [(module, module.training) for module in modules]
        self.hooks = [(module, name, set(getattr(module, name))) for module in modules for name in _HOOKS]
        self.buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _, _ in self.parameters:
            parameter.grad = None

    def restore(self) -> None:
        for module, training in self.modes:
            module.training = training
        for module, name, before in self.hooks:
            registry = getattr(module, name)
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


_lock = threading.Lock()
_in_use: weakref.WeakKeyDictionary[nn.Module, tuple[int, _Snapshot | None]] = weakref.WeakKeyDictionary()
