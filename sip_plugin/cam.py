"""Class activation maps: one forward and one partial backward pass for a whole batch."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_logits, output_gradient
from sip_plugin.model_utils import unwrap_model

CAM = Literal["gradcam", "xgradcam", "layercam"]
KINDS: tuple[CAM, ...] = get_args(CAM)
Reshape = Callable[[Tensor], Tensor]


def class_activation_maps(
    network: nn.Module,
    images: Tensor,
    kind: CAM = "gradcam",
    layer: str | None = None,
    classes: Tensor | None = None,
    reshape: Reshape | None = None,
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
        layer: The name of a module (as ``named_modules`` has it); None for the last module that contains convolutions or
            linear layers and whose output is four-dimensional with more than one position. The operations that made an
            output say whether it is ``(N, K, h, w)`` or ``(N, h, w, K)``; either is taken.
        classes: Class indices ``(N,)``; None for the predicted ones.
        reshape: From the output of the named layer, which may have any shape, to ``(N, K, h, w)``: for the tokens of a ViT
            ``lambda t: t[:, 1:].unflatten(1, (14, 14)).movedim(3, 1)``. Its gradient is reshaped in the same way.

    Returns:
        ``(N, 1, H, W)`` in ``[0, 1]``, at least float32; 0 everywhere for an image whose map is constant, NaN for one whose
        activations or gradients are not finite.

    Raises:
        ValueError: If there is no such layer, its output needs ``reshape`` or has no gradient, or the network has no such
            class.
    """
    network = unwrap_model(network)
    with torch.enable_grad():
        # The images ask for a gradient so that the activations are in a graph even where all weights are frozen; a copy in
        # the graph, because a network that writes into its input may not write into a leaf, nor into the caller's images.
        output, activation, to_map = _forward(network, images.detach().requires_grad_().clone(), layer, reshape)
        logits = check_logits(output, len(images))
        if classes is None:
            score = logits.max(1).values.sum()
        else:
            check_classes(classes, logits)
            score = logits.gather(1, classes[:, None]).sum()
        gradient = output_gradient(score, activation, f"the output of {layer or 'its last stage'}")
    dtype = torch.promote_types(activation.dtype, torch.float32)
    sums = _weighted_sum(kind, to_map(activation.detach()).to(dtype), to_map(gradient).to(dtype))
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


def _forward(
    network: nn.Module, images: Tensor, layer: str | None, reshape: Reshape | None
) -> tuple[Tensor, Tensor, Reshape]:
    """The network's output, the activations of the layer in the same pass, and what makes them ``(N, K, h, w)``."""
    if reshape is not None and layer is None:
        raise ValueError("reshape= is for the output of a named layer: give layer=..., too.")
    found: list[tuple[Tensor, Reshape]] = []
    lost = ""  # what came after the last known stage, if it is not known

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Modules end in the order of the pass, a stage after the last of its blocks: the last one to end is the stage.
        nonlocal lost
        if not isinstance(output, Tensor):
            return output
        to_map = reshape or _to_map(output, len(images))
        if to_map is None:
            if module is not network and (output.dim() == 3 or (output.dim() == 4 and output.shape[2:].numel() > 1)):
                lost = f", which goes on with {type(module).__name__} of output {tuple(output.shape)}"
            return output
        found[:], lost = [(output, to_map)], ""
        return output.clone()  # for the rest of the network, which may write into it

    if layer is not None:
        watched = [named_layer(network, layer)]
    else:
        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        watched = [m for m in network.modules() if any(isinstance(part, kinds) for part in m.modules())]
    handles = [module.register_forward_hook(keep) for module in watched]
    try:
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found or lost:
        if isinstance(output, Tensor) and not output.requires_grad:
            output_gradient(output, images)  # says so
        what = "No stage" if layer is None else f"No output of the layer {layer!r}"
        raise ValueError(
            f"{what} that is known to be (N, K, h, w) or (N, h, w, K), with more than one position and a gradient, was seen "
            f"last in {type(network).__name__}{lost}. Name a layer, layer=..., and a function from its output to "
            "(N, K, h, w), reshape=..."
        )
    return output, *found[0]


def _to_map(output: Tensor, count: int) -> Reshape | None:
    """What makes a layer's output ``(N, K, h, w)``; None if it has no positions, or its operations do not say which."""
    axis = channel_axis(output) if output.dim() == 4 and len(output) == count else None
    if axis is None or output.shape.numel() == count * output.shape[axis]:
        return None
    return lambda values: values.movedim(axis, 1)


_CHANNELS_FIRST = ".*Convolution|.*BatchNorm|NativeGroupNorm|.*Pool2D|Upsample"
_ROWS = {"Linear": 0, "Mm": 0, "Addmm": 1, "NativeLayerNorm": 0, "FusedRmsNorm": 0}  # which operand's rows they work on
_ELEMENTWISE = (
    ".*(Relu|PreluKernel|Elu|Gelu|Silu|Mish|Hardtanh|Hardswish|Sigmoid|Tanh|Softplus|Threshold|Clamp|Dropout|Clone|Copy|Add|"
    "Sub|Mul|Div|Where|MaskedFill|IndexPut|Abs|Neg|Sqrt|Pow|Exp|Log)|Cat|Slice|CopySlices|Roll|ConstantPadNd"
)
_Custom = torch.autograd.function.BackwardCFunction  # an operation that is written in Python, or compiled


def channel_axis(output: Tensor) -> int | None:
    """Which axis of a layer's output ``(N, ?, ?, ?)`` holds its channels, by the operations that made it.

    Followed back through permutations, views and elementwise operations: what a convolution, a BatchNorm or a pooling gave
    is ``(N, K, h, w)``; what a linear layer or a LayerNorm gave ``(N, h, w, K)``, unless a convolution before it says that
    it mixed positions. None if they do not say.
    """
    claim: int | None = None
    shape_of = _result_shapes(output)
    # Operations, and which axis of their result each axis of the output is (None: several, or a part).
    waiting: list[tuple[Any, list[int | None]]] = [(output.grad_fn, [0, 1, 2, 3])] if output.grad_fn else []
    for _ in range(1000):
        if not waiting:
            break
        node, axes = waiting.pop()
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        operands = [operand for operand, _ in node.next_functions]
        if re.fullmatch(f"({_CHANNELS_FIRST}).*", name):
            axis = axes.index(1) if 1 in axes else claim
            return axis if claim in (None, axis) else None
        shape = shape_of(node)
        if name in _ROWS and len(getattr(node, "_saved_normalized_shape", [1])) == 1:
            if claim is None and len(shape) - 1 in axes:
                claim = axes.index(len(shape) - 1)
            operands = [operands[_ROWS[name]]]
        elif name in ("View", "UnsafeView", "ReshapeAlias"):
            if type(operands[0]).__name__.startswith("NativeBatchNorm"):
                return axes.index(1) if 1 in axes and claim is None else None  # InstanceNorm
            linear = _linear_input(operands[0], shape, shape_of)
            if linear is not None:
                if claim is None and len(shape) - 1 in axes:
                    claim = axes.index(len(shape) - 1)
                operands = [linear]
            else:
                given = shape_of(operands[0]) if operands[0] is not None else []
                axes = [_same_axis(shape, axis, given) for axis in axes]
        elif name in ("Permute", "Transpose"):
            order = list(range(len(shape)))
            if name == "Permute":
                order = [axis % 2**64 % len(shape) for axis in node._saved_dims]  # negative ones are kept unsigned
            else:
                one, other = (d % 2**64 % len(shape) for d in (node._saved_dim0, node._saved_dim1))
                order[one], order[other] = other, one
            axes = [None if axis is None else order[axis] for axis in axes]
        elif re.fullmatch(_ELEMENTWISE, name) or (isinstance(node, _Custom) and len({*shape[1:]}) > 1):
            # What is broadcast says nothing of the result's axes. A custom operation keeps those of an operand of its shape.
            resizes = re.fullmatch("Cat|Slice|CopySlices|ConstantPadNd", name)
            sizes = {operand: shape_of(operand) for operand in operands if operand is not None}
            operands = [o for o, size in sizes.items() if size == shape or (resizes and len(size) == len(shape))]
        else:
            continue
        waiting += [(operand, axes) for operand in reversed(operands) if operand is not None]
    return claim


def _result_shapes(output: Tensor) -> Callable[[Any], list[int]]:
    """What gives the shape of the result of an operation before ``output``."""

    @functools.cache
    def by_gradients() -> dict[Any, list[int]]:
        # PyTorch 2.4 keeps them to itself: gradients with respect to the results have their shapes.
        nodes: list[Any] = [output.grad_fn]
        seen = set(nodes)
        for node in nodes:
            before = [before for before, _ in node.next_functions if before is not None and before not in seen]
            nodes += dict.fromkeys(before)
            seen.update(before)
        edges = [torch.autograd.graph.GradientEdge(node, 0) for node in nodes]
        gradients = torch.autograd.grad(output, edges, torch.zeros_like(output), retain_graph=True, allow_unused=True)
        return {node: [] if g is None else list(g.shape) for node, g in zip(nodes, gradients, strict=True)}

    return lambda node: (
        list(node._input_metadata[0].shape) if hasattr(node, "_input_metadata") else by_gradients()[node]
    )


def _linear_input(product: Any, shape: list[int], shape_of: Callable[[Any], list[int]]) -> Any:
    """What a linear layer worked on, if a view of this shape shows its product; all axes but the last are the same."""
    name = type(product).__name__.removesuffix("Backward0")
    if name not in ("Mm", "Addmm"):
        return None
    rows = product.next_functions[_ROWS[name]][0]
    given = rows.next_functions[0][0] if type(rows).__name__.endswith("ViewBackward0") else None
    return given if given is not None and shape_of(given)[:-1] == shape[:-1] else None


def _same_axis(shape: list[int], axis: int | None, given: list[int]) -> int | None:
    """The axis of a tensor that a view shows whole as its ``axis``."""
    if axis is None:
        return None
    before = math.prod(shape[:axis])
    return next((i for i, n in enumerate(given) if n == shape[axis] and math.prod(given[:i]) == before), None)


def layer_name(network: nn.Module, layer: str | nn.Module | None) -> str | None:
    """The name of a layer that is given by its name, or as the module itself, as for Captum."""
    if not isinstance(layer, nn.Module):
        return layer
    for name, module in unwrap_model(network).named_modules():
        if module is layer:
            return str(name)
    raise ValueError(f"The layer {type(layer).__name__} is no part of {type(network).__name__}.")


def named_layer(network: nn.Module, layer: str) -> nn.Module:
    """The module of that name; raises a ValueError if there is none."""
    known: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    if layer not in known:
        near = difflib.get_close_matches(layer, list(known)[1:], 8, 0) if isinstance(layer, str) else []
        raise ValueError(f"{type(network).__name__} has no layer {layer!r}; nearest are {', '.join(near)}.")
    return known[layer]
