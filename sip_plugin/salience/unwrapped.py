"""A network without what torch puts around it or its parts: parallel and compiled wrappers, generated classes."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_PLACES_AND_NUMBERS = re.compile(r" # .*|___torch_mangle_\d+\.")  # in the code of torch.jit


def _inside(model: nn.Module) -> nn.Module | None:
    """What DataParallel, DistributedDataParallel or torch.compile has been put around."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        inside: object = model.module
    else:
        inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile: the same one."""
    inside = _inside(model)
    return model if inside is None else unwrapped(inside)


def plain_names(model: nn.Module) -> Callable[[str], str]:
    """Gives the name that a weight of the network would have without wrappers around the network's parts."""
    wrapped = [f"{name}." for name, module in model.named_modules() if _inside(module) is not None]
    wrapped.sort(key=len, reverse=True)  # from the inside out: the outer names hold until then

    def plain(name: str) -> str:
        for prefix in wrapped:
            if name.startswith(prefix):
                name = prefix + name[len(prefix) :].partition(".")[2]
        return name

    return plain


def generated_code(model: nn.Module) -> str | None:
    """The code that torch.fx and torch.jit have made of a network."""
    if isinstance(model, torch.fx.GraphModule):
        return str(model.code)
    if isinstance(model, torch.jit.ScriptModule) and hasattr(model, "forward"):
        return _PLACES_AND_NUMBERS.sub("", str(model.inlined_graph))
    return None
