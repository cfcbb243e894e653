"""The network inside what distributes or compiles it, and what of it is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_MARKS = (
    "_compiled_call",
    "_is_torch_compile",
    "_is_fsdp",
    "_fsdp",
    "_ddp",
    "_compile_kwargs",  # lightning.fabric, once imported, by its own torch.compile
    "_is_accelerate_prepared",
)  # that wrappers leave on a network


class FabricForward(nn.Module):
    """The forward pass of a model that Lightning Fabric has set up, without the hook by which Fabric insists on
    ``fabric.backward``: a search has no loss, and its gradients are the images'.

    Args:
        model: What ``fabric.setup`` gave.
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
    """The network past DistributedDataParallel (also a compiled one), whose reducer a search must not wake."""
    # By the name of its module, so that Lightning is not imported; where its parts have other names, it is used as it is.
    if "fabric" in type(model).__module__ and hasattr(model, "_forward_module") and hasattr(model, "_strategy"):
        return FabricForward(model)
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network as its author wrote it: hooks put on a compiled or replicated one are not called."""
    inside = _inside(model)
    return model if inside is None else unwrap_model(inside)


def _inside(model: nn.Module) -> nn.Module | None:
    """What DataParallel, DistributedDataParallel, torch.compile or :class:`FabricForward` has been put around."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        inside: object = model.module
    elif isinstance(model, FabricForward):
        inside = model.network
    else:
        inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else None


def canonical_names(model: nn.Module) -> Callable[[str], str]:
    """Gives the name that a weight of the network would have without wrappers around the network's parts."""
    wrapped = [
        f"{name}." for name, module in model.named_modules(remove_duplicate=False) if _inside(module) is not None
    ]
    wrapped.sort(key=len, reverse=True)  # from the inside out: the outer names hold until then

    def plain(name: str) -> str:
        for prefix in wrapped:
            if name.startswith(prefix):
                name = prefix + name[len(prefix) :].partition(".")[2]
        return name

    return plain


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes without those that every module has (its mode among them), and without the marks of wrappers."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE and not name.startswith(_MARKS)
    }


def model_hash(model: nn.Module) -> str:
    """A SHA-256 of a network's parameters and buffers: names (without wrappers), types, shapes and values."""
    name_of, digest = canonical_names(model), hashlib.sha256()
    for name, value in sorted((name_of(key), value) for key, value in model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_device(model: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU if it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
