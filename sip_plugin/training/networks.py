"""The network inside what distributes or compiles it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def without_reducer(model: nn.Module) -> nn.Module:
    """The network past DistributedDataParallel (also a compiled one), whose reducer a search must not wake."""
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def innermost(model: nn.Module) -> nn.Module:
    """The network as its author wrote it: hooks put on a compiled or replicated one are not called."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
