"""Class activation maps: one forward and one partial backward pass for a whole batch."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_logits
from sip_plugin.model_utils import unwrap_model

CAM = Literal["gradcam", "xgradcam", "layercam"]
KINDS: tuple[CAM, ...] = get_args(CAM)


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
        logits = check_logits(output, len(images))
        if classes is None:
            score = logits.max(1).values.sum()
        else:
            check_classes(classes, logits)
            score = logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, activation)
    dtype = torch.promote_types(activation.dtype, torch.float32)
    sums = _weighted_sum(kind, activation.detach().to(dtype), gradient.to(dtype))
    maps = torch.where(sums.isfinite(), sums.relu(), torch.nan)  # of −∞ the ReLU alone would make an ordinary 0
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - low) / (high - low).clamp(min=torch.finfo(dtype).tiny)
    return F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)


def _weighted_sum(kind: CAM, activation: Tensor, gradient: Tensor) -> Tensor:
    if kind == "gradcam":
        weight = gradient.mean((2, 3), keepdim=True)
    elif kind == "xgradcam":
        total = activation.sum((2, 3), keepdim=True)
        total = torch.where(total == 0, 1, total)  # a dead channel contributes nothing
        weight = (gradient * activation).sum((2, 3), keepdim=True) / total
    else:
        weight = gradient.relu()
    return (weight * activation).sum(1, keepdim=True)


def _forward(network: nn.Module, images: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """The network's output, and the activations of the layer, in one pass."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Modules end in the order of the pass, a stage after the last of its blocks: the last one to end is the stage.
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            seen[:] = [output]
            return output.clone()  # for the rest of the network, which may write into it
        return output

    if layer is not None:
        watched = [named_layer(network, layer)]
    else:
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        watched = [m for m in network.modules() if any(isinstance(part, convolutions) for part in m.modules())]
    handles = [module.register_forward_hook(keep) for module in watched]
    try:
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        what = "No convolution stage" if layer is None else f"No output (N, K, h, w) of the layer {layer!r}"
        raise ValueError(
            f"{what} with more than one position was seen in {type(network).__name__}: name another layer (layer=...)."
        )
    return output, seen[0]


def named_layer(network: nn.Module, layer: str) -> nn.Module:
    """The module of that name; raises a ValueError if there is none."""
    network = unwrap_model(network)
    known: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    if layer not in known:
        raise ValueError(f"{type(network).__name__} has no layer {layer!r}. It has: {', '.join(list(known)[1:])}.")
    return known[layer]
