"""The network inside what distributes or compiles it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves


class FabricForward(nn.Module):
    """The forward pass of a model that ``fabric.setup`` gave, without the hook by which Fabric insists on
    ``fabric.backward``: a search has no loss, and its gradients are the images'.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = unwrap_ddp(model._forward_module)
        self.precision = model._strategy.precision
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        """The network's output, in Fabric's precision."""
        with self.precision.forward_context():
            return self.precision.convert_output(self.network(self.precision.convert_input(images)))


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel (also a compiled one), whose gradients a search must not synchronise."""
    # By the name of its module, so that Lightning is not imported.
    if "fabric" in type(model).__module__ and hasattr(model, "_forward_module"):
        return FabricForward(model)
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network as its author wrote it: hooks put on a compiled or replicated one are not called."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return unwrap_model(model.module)
    if isinstance(model, FabricForward):
        return unwrap_model(model.network)
    compiled = getattr(model, "_orig_mod", None)  # by torch.compile
    return unwrap_model(compiled) if isinstance(compiled, nn.Module) else model


def model_hash(model: nn.Module) -> str:
    """A SHA-256 of a network's parameters and buffers: names (without wrappers), types, shapes and values."""
    digest = hashlib.sha256()
    state = unwrap_model(model).state_dict()
    for name, value in sorted((key.replace("_orig_mod.", ""), value) for key, value in state.items()):
        for part in tree_leaves(value):  # quantised layers keep tuples and types
            if isinstance(part, Tensor):
                part = (part.dequantize() if part.is_quantized else part.detach()).cpu().contiguous()
                digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.flatten().view(torch.uint8).numpy().tobytes())
            else:
                digest.update(f"{name} {part!r}".encode())
    return digest.hexdigest()


def model_device(model: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU if it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
