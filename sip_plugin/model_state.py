"""Leaving a network as it was found, also after an exception, in nested calls, and in threads that name the same one."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)
_lock = threading.RLock()
_uses: dict[tuple[Any, int], list[Any]] = {}  # by id: how many use a network, and what restores it (and keeps it alive)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode."""
    with _restored(_modes, model):
        model.eval()
        yield


@contextmanager
def preserve_model_state(*models: object) -> Iterator[None]:
    """Let somebody else's code use networks; put back whatever it changed, also when it raises.

    Covers each module's train/eval flag, buffers (BatchNorm statistics), hooks, and the parameters' gradients and
    ``requires_grad``. During the block gradients are ``None``, so nothing can be added to the caller's (nor can another
    thread train the network meanwhile). Something that is no network is left alone.
    """
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(_restored(_snapshot, model))
        yield


@contextmanager
def _restored(enter: Callable[[nn.Module], Callable[[], None]], model: nn.Module) -> Iterator[None]:
    """The first user of a network enters, the last one out restores what that gave."""
    key = (enter, id(model))
    with _lock:
        entry = _uses.get(key) or _uses.setdefault(key, [0, enter(model)])
        entry[0] += 1
    try:
        yield
    finally:
        with _lock:
            entry[0] -= 1
            if not entry[0]:
                del _uses[key]
                entry[1]()


def _modes(model: nn.Module) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            # A module that does more than set the flag (LoRA layers merge their weights) is told; it may tell others too.
            if type(module).train is not nn.Module.train and module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training

    return restore


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """All that using a network can change."""
    restore_modes = _modes(model)
    hooks, buffers = [], []
    for module in model.modules():
        hooks += [(getattr(module, name), set(getattr(module, name))) for name in HOOKS]
        buffers += [(module, name, b, b.detach().clone()) for name, b in module._buffers.items() if b is not None]
    parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _, _ in parameters:
        parameter.grad = None

    def restore() -> None:
        restore_modes()
        for registry, before in hooks:
            for key in registry.keys() - before:
                del registry[key]
        alike = defaultdict(list)
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer  # a module may have assigned another tensor instead of writing into it
            usual = type(buffer) is Tensor and buffer.dtype in (torch.float32, torch.int64) and buffer.numel() < 2**16
            alike[(buffer.device, buffer.dtype) if usual else id(buffer)].append((buffer, values))
        # Compared by value: BatchNorm writes without counting a version. Together, as a GPU is waited for each time.
        # Written only if need be: a graph that the caller holds may have saved the buffer.
        with torch.no_grad():
            for pairs in alike.values():
                now, then = ([tensor.flatten() for tensor in each] for each in zip(*pairs, strict=True))
                if len(pairs) == 1 or not torch.equal(torch.cat(now), torch.cat(then)):
                    for buffer, values in pairs:
                        if not torch.equal(buffer, values):
                            buffer.copy_(values)
        for parameter, grad, requires_grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            parameter.grad = grad

    return restore
