"""BatchNorm folded into the convolutions before it: in eval mode the same network, in fewer operations and less memory."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sip_plugin.checks import check_logits
from sip_plugin.model_state import HOOKS, eval_mode
from sip_plugin.model_utils import unwrap_ddp, unwrap_model

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # channels of a linear layer's tokens are not BatchNorm's
_OWN = {"_modules", "_parameters", "training", "_compiled_call_impl"}
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


class FoldedModel(nn.Module):
    """A network in eval mode with each BatchNorm folded into the convolution before it.

    Its ``network`` is a twin: the same classes and forward code, always in eval mode; parameters share the network's memory
    and take no gradient. A BatchNorm behind anything else becomes one multiply-add. The network itself is not changed.
    DistributedDataParallel is looked through; of a compiled network the twin is compiled with the same settings (after
    ``network.compile()`` with the default ones). What the forward code does must be the same at each call.

    Args:
        model: The network.
        images: ``(N, C, H, W)``, for which the folded logits are compared with the network's own.

    Raises:
        ValueError: If the network cannot be folded: it is sharded, ``torch.fx`` cannot trace it, or its logits would change
            by more than rounding. The message is the reason.
    """

    network: nn.Module

    def __init__(self, model: nn.Module, images: Tensor | None = None) -> None:
        super().__init__()
        self._model = (unwrap_ddp(model),)  # in a tuple, or it would be a part of this module
        self._fold()
        if images is not None:
            self._compare(images)

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits in eval mode, ``(N, classes)``."""
        logits: Tensor = self.network(images)
        return logits

    def train(self, mode: bool = True) -> FoldedModel:
        """Stay in eval mode."""
        return self

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's present parameters and statistics, in place."""
        if self._structure() != self._known:
            return self._fold()
        for module, twin in self._shared:
            _take_over(module, twin)
        found = _scales_shifts([norm for norm, _ in self._norms] + [norm for _, norm, _ in self._pairs])
        for norm, twin in self._norms:
            for ours, new in zip((twin.scale, twin.shift), found[norm], strict=True):
                ours.copy_(new)
        for layer, norm, twin in self._pairs:
            scale, shift = found[norm]
            _take_attributes(layer, twin)
            torch.mul(layer.weight, scale.view(-1, *[1] * (layer.weight.dim() - 1)), out=twin.weight)
            twin.bias.copy_(shift if layer.bias is None else shift + layer.bias * scale)
        return None

    def _structure(self) -> tuple[Any, ...]:
        """What is the same as long as the network need not be folded anew."""
        modules = list(self._model[0].modules())
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return [(id(m), _has_hooks(m)) for m in modules], [(t.shape, t.dtype, t.device) for t in tensors]

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _fold(self) -> None:
        model = self._model[0]
        if _SHARDED & {kind.__name__ for module in model.modules() for kind in type(module).__mro__}:
            raise ValueError("its parameters are sharded")
        inner = unwrap_model(model)
        layers: dict[str, Any] = dict(inner.named_modules())
        pairs, alone = _foldable(inner, layers)
        twins: dict[nn.Module, nn.Module] = {layers[name]: _ScaleShift(layers[name]) for name in alone}
        self._norms: list[tuple[Any, Any]] = list(twins.items())
        self._pairs: list[tuple[Any, Any, Any]] = []
        for layer, norm in ((layers[first], layers[second]) for first, second in pairs.items()):
            twin = _copied(layer)
            weight, bias = layer.weight.clone(), norm.running_mean.to(layer.weight.dtype, copy=True)
            if weight.dim() == 4 and weight.device.type == "cpu":  # it and what follows are faster so
                weight = weight.to(memory_format=torch.channels_last)
            twin._parameters = {"weight": nn.Parameter(weight, False), "bias": nn.Parameter(bias, False)}
            twins |= {layer: twin, norm: nn.Identity()}
            self._pairs.append((layer, norm, twin))
        folded = set(twins)
        self.network = _twin(model, twins)
        self._inner = (inner, twins[inner])
        self._shared = [
            (module, twin)
            for module, twin in twins.items()
            if module not in folded and not hasattr(module, "_orig_mod")
        ]
        for twin in self.modules():
            twin.training = False
        self._known = self._structure()
        self.refresh()

    @torch.no_grad()
    def _compare(self, images: Tensor) -> None:
        """Compare the logits of both, before compilation, so that it is not done twice, and in their own precision."""
        network, twin = self._inner
        images = images.to(next((p.dtype for p in network.parameters() if p.is_floating_point()), images.dtype))
        eps = [torch.finfo(images.dtype).eps]

        def see(_module: nn.Module, _arguments: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                tf32 = output.is_cuda and output.dtype == torch.float32  # as CUDA's convolutions are by default
                eps.append(2**-10 if tf32 else torch.finfo(output.dtype).eps)

        hooks = [module.register_forward_hook(see) for module in twin.modules()]
        try:
            with torch.autocast(images.device.type, enabled=False), eval_mode(network):
                ours, own = check_logits(twin(images.clone()), len(images), 1), network(images.clone())
        except Exception as error:
            raise ValueError(f"its folded form fails with {type(error).__name__}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        largest, size = (ours.double() - own.double()).abs().max().item(), own.abs().max().item()
        if not largest <= max(eps) ** 0.5 * size:  # half of the digits
            raise ValueError(f"folding changes its logits, of up to {size:.3g}, by {largest:.3g}")


class _ScaleShift(nn.Module):
    """A BatchNorm in eval mode."""

    scale: Tensor
    shift: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        scale, shift = map(torch.clone, _scales_shifts([norm])[norm])
        for name, value in {"scale": scale, "shift": shift, "zero": 0 * scale, "one": 0 * scale + 1}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.scale.dtype:  # under autocast, where BatchNorm keeps the type of its input
            return F.batch_norm(x, self.zero, self.one, self.scale, self.shift, eps=0.0)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)


def _foldable(network: nn.Module, layers: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """By name: the layers that a BatchNorm can be folded into, each with its BatchNorm; and the other BatchNorms.

    Raises:
        ValueError: If the network cannot be traced.
    """
    if not any(type(module) in _NORMS for module in layers.values()):
        return {}, []
    scratch = _twin(network, {})  # what the forward code leaves on a network while it is traced stays out of the user's
    for module in scratch.modules():
        vars(module).update({n: copy.copy(v) for n, v in vars(module).items() if isinstance(v, (dict, list, set))})
    try:
        graph = _Tracer().trace(_Call(scratch))
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace it ({type(error).__name__}: {error})") from error
    names = {node: str(node.target).removeprefix("network.") for node in graph.nodes}
    called = {node: name for node, name in names.items() if node.op == "call_module"}
    calls = Counter(called.values())
    read = {name.rpartition(".")[0] for node, name in names.items() if node.op == "get_attr"}

    def plain(name: str, kinds: tuple[type, ...]) -> bool:
        return type(layers[name]) in kinds and name not in read and not _has_hooks(layers[name])

    norms = [name for name in calls if plain(name, _NORMS) and layers[name].running_var is not None]
    pairs: dict[str, str] = {}
    for node, name in called.items():
        before = node.args[0] if node.args else None
        layer = called.get(before, "") if isinstance(before, fx.Node) and len(before.users) == 1 else ""
        if name in norms and calls[name] == calls[layer] == 1 and plain(layer, _LAYERS):
            pairs[layer] = name
    return pairs, sorted(set(norms) - set(pairs.values()))


class _Call(nn.Module):
    """Calls a network with one argument, whatever its signature; past its hooks and what was put over its forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return type(self.network).forward(self.network, images)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    """Whether more happens at a call than its class says: hooks, or another forward in its place."""
    return "forward" in vars(module) or any(vars(module).get(name) for name in HOOKS)


def _scales_shifts(norms: Iterable[Any]) -> dict[Any, Tensor]:
    """What each BatchNorm multiplies by and adds, ``(2, channels)``; together, as each operation is dear on a GPU."""
    alike: dict[Any, list[Any]] = defaultdict(list)
    found: dict[Any, Tensor] = {}
    for norm in norms:
        alike[norm.running_var.device, norm.running_var.dtype, norm.eps].append(norm)
    for (_, dtype, eps), group in alike.items():
        wide, parts = torch.promote_types(dtype, torch.float32), []
        for norm in group:
            weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
            bias = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias
            parts.append((norm.running_var, norm.running_mean, weight, bias))
        # In wide types: under autocast torch.cat does not take float16 and bfloat16 together.
        variance, mean, weight, bias = (torch.cat([t.to(wide) for t in each]) for each in zip(*parts, strict=True))
        scale = (variance + eps).rsqrt() * weight
        shift = bias - mean * scale
        found |= zip(group, torch.stack((scale, shift)).split([len(n.running_var) for n in group], 1), strict=True)
    return found


def _twin(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of a module with its children; those that ``twins`` holds already are taken from there."""
    if module not in twins:
        if hasattr(module, "_orig_mod"):  # compiled: once more, with the same settings
            compiled: Any = module
            twins[module] = type(compiled)(_twin(compiled._orig_mod, twins), compiled.dynamo_ctx)
        else:
            twin = twins[module] = _copied(module)
            twin._modules = {name: child and _twin(child, twins) for name, child in module._modules.items()}
            if module._compiled_call_impl is not None:
                twin.compile()
    return twins[module]


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module alone, with the same children."""
    copied: nn.Module = module.__new__(type(module))
    copied.__dict__.update(_modules=module._modules, _parameters={}, training=False)
    _take_over(module, copied)
    return copied


def _take_attributes(module: nn.Module, twin: nn.Module) -> None:
    """Let a copy have a module's present attributes, buffers and hooks."""
    for name, value in module.__dict__.items():
        if isinstance(value, MethodType) and value.__self__ is module:  # a forward that Accelerate has put there
            twin.__dict__[name] = MethodType(value.__func__, twin)
        elif name == "_buffers" or name in HOOKS:
            twin.__dict__[name] = value.copy()  # so that what is done to the copy is not done to the module
        elif name not in _OWN:
            twin.__dict__[name] = value


def _take_over(module: nn.Module, twin: nn.Module) -> None:
    """Let a copy have all that a module has at present, its parameters without gradient."""
    _take_attributes(module, twin)
    for name, parameter in module._parameters.items():
        alias = twin._parameters.get(name)
        if parameter is None:
            twin._parameters[name] = None
        elif alias is None:
            twin._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
        elif (alias.data_ptr(), alias.stride()) != (parameter.data_ptr(), parameter.stride()):
            alias.data = parameter.data
