"""Class activation maps: one forward and one partial backward pass for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_logits
from sip_plugin.model_utils import unwrap_model

CAM = Literal["gradcam", "xgradcam", "layercam"]


def class_activation_maps(
    network: nn.Module,
    images: Tensor,
    kind: CAM = "gradcam",
    layer: str | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Returns class activation maps: how much each pixel contributes to the logit of a class.

    With the activations ``A_k`` of a layer and the gradient ``G_k`` of the class's logit to them, the map is
    ``ReLU(Σ_k w_k A_k)``: for Grad-CAM (Selvaraju et al. 2017) ``w_k`` is the mean of ``G_k``, for XGrad-CAM (Fu et al.
    2020) ``Σ G_k A_k / Σ A_k``, both over the positions; for LayerCAM (Jiang et al. 2021) ``ReLU(G_k)`` at each position.
    Each map is scaled to ``[0, 1]`` and then upsampled bilinearly.

    Args:
        network: The network, used in its current mode. Nothing is left behind in it.
        images: ``(N, C, H, W)``.
        kind: ``"gradcam"``, ``"xgradcam"`` or ``"layercam"``.
        layer: The name of a module (as ``named_modules`` has it); None for the last module that contains convolutions and
            whose output has more than one position.
        classes: Class indices ``(N,)``; None for the predicted ones.

    Returns:
        ``(N, 1, H, W)`` in ``[0, 1]``, at least float32; 0 everywhere for an image whose map is constant, NaN for one whose
        activations or gradients are not finite.

    Raises:
        ValueError: If there is no such layer, its output is not ``(N, K, h, w)``, or the network has no such class.
    """
    network = unwrap_model(network)
    with torch.enable_grad():
        # The images ask for a gradient so that the activations are in a graph even where all weights are frozen; a copy in
        # the graph, because a network that writes into its input may not write into a leaf, nor into the caller's images.
        output, activation = _forward(network, images.detach().requires_grad_().clone(), layer)
        gradient = _gradient(_score(check_logits(output, len(images)), classes), activation, network)
    dtype = torch.promote_types(activation.dtype, torch.float32)
    sums = _SUMS[kind](activation.detach().to(dtype), gradient.to(dtype))
    maps = torch.where(sums.isfinite(), sums.relu(), torch.nan)  # of −∞ the ReLU alone would make an ordinary 0
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - low) / (high - low).clamp(min=torch.finfo(dtype).tiny)
    return F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)


def _score(logits: Tensor, classes: Tensor | None) -> Tensor:
    if classes is None:
        return logits.max(1).values.sum()
    check_classes(classes, logits)
    return logits.gather(1, classes[:, None]).sum()


def _gradient(score: Tensor, activation: Tensor, network: nn.Module) -> Tensor:
    used = score.requires_grad and activation.requires_grad
    gradient = torch.autograd.grad(score, activation, allow_unused=True)[0] if used else None
    if gradient is None:
        raise ValueError(
            f"The logits of {type(network).__name__} have no gradient to that layer (they do not use its output, or it runs "
            "under no_grad): name another of its layers (layer=...)."
        )
    return gradient


def _gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)


def _xgradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    total = activation.sum((2, 3), keepdim=True)
    total = torch.where(total == 0, torch.ones_like(total), total)  # a dead channel contributes nothing
    weight = (gradient * activation).sum((2, 3), keepdim=True) / total
    return (weight * activation).sum(1, keepdim=True)


def _layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.relu() * activation).sum(1, keepdim=True)


_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "xgradcam": _xgradcam,
    "layercam": _layercam,
}
KINDS = tuple(_SUMS)
"""The kinds of map."""


def _forward(network: nn.Module, images: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """The network's output, and the activations of the layer, in one pass."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Modules end in the order of the pass, a stage after the last of its blocks: the last one to end is the stage.
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            seen[:] = [output]
            return output.clone()  # for the rest of the network, which may write into it
        return output

    watched = _containing_convolutions(network) if layer is None else [named_layer(network, layer)]
    handles = [module.register_forward_hook(keep) for module in watched]
    try:
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        found = (
            "No convolution stage"
            if layer is None
            else f"No output (N, K, h, w) with more than one position of {layer!r}"
        )
        raise ValueError(
            f"{found} was seen in {type(network).__name__}: name one of its layers with such an output (layer=...)."
        )
    return output, seen[0]


def _containing_convolutions(network: nn.Module) -> list[nn.Module]:
    modules = dict(network.named_modules())
    names: set[str] = set()
    for name, module in modules.items():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            parts = name.split(".")
            names.update(".".join(parts[:count]) for count in range(len(parts) + 1))
    return [modules[name] for name in names]


def named_layer(network: nn.Module, layer: str) -> nn.Module:
    """The module of that name.

    Raises:
        ValueError: If there is none.
    """
    network = unwrap_model(network)
    try:
        return network.get_submodule(layer)
    except AttributeError as error:
        known = [name for name, _ in network.named_modules() if name]
        raise ValueError(
            f"{type(network).__name__} has no layer {layer!r}. It has: {', '.join(known[:30])}{', ...' * (len(known) > 30)}."
        ) from error
