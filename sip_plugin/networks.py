"""The network inside what distributes or compiles it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


class PastFabric(nn.Module):
    """The forward pass of a model that Lightning Fabric has set up, without the hook by which Fabric insists on
    ``fabric.backward``: a search has no loss, and its gradients are the images'.

    Args:
        model: What ``fabric.setup`` gave.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = without_reducer(model._forward_module)
        self.precision = model._strategy.precision
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        """The network's output, in Fabric's precision."""
        with self.precision.forward_context():
            return self.precision.convert_output(self.network(self.precision.convert_input(images)))


def without_reducer(model: nn.Module) -> nn.Module:
    """The network past DistributedDataParallel (also a compiled one), whose reducer a search must not wake."""
    # By the name of its module, so that Lightning is not imported; where its parts have other names, it is used as it is.
    if "fabric" in type(model).__module__ and hasattr(model, "_forward_module") and hasattr(model, "_strategy"):
        return PastFabric(model)
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def innermost(model: nn.Module) -> nn.Module:
    """The network as its author wrote it: hooks put on a compiled or replicated one are not called."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(model, PastFabric):
            model = model.network
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
