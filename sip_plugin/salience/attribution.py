"""Salience from any of Captum's attribution methods."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.cam import channel_axis
from sip_plugin.checks import check_choice, check_classes, check_logits
from sip_plugin.model_state import preserve_model_state
from sip_plugin.salience.selection import ScoreSalience
from sip_plugin.utils import isolated_rng


class AttributionSalience(ScoreSalience):
    """Salience maps from one of Captum's methods: the fewest elements that hold half of the attributions' magnitude.

    The documentation's page "Maps from Captum" says what each method needs. Attributions to a layer, ``(N, K, h, w)``, give
    maps of pixels. The network runs in eval mode and is left as it was (one inside a function is not found: put it into eval
    mode yourself).

    Args:
        method: An instance built on the teacher, ``captum.attr.IntegratedGradients(teacher)``.
        mass: The share of the attributions' magnitude that the map holds, in ``(0, 1]``.
        target: The ``"predicted"`` class (one more forward pass), the ``"true"`` one (needs labels), or an index for all
            images. None if the method takes no target, or the network returns one number per image.
        sign: ``"absolute"`` uses the magnitude of all attributions, ``"positive"`` only those in favour of the class.
        per_pixel: Sum the magnitude over the channels first, so that a pixel is salient in all of them or in none.
        batch_size: The largest number of images passed to the method at once; None for all.
        seed: For methods that draw random numbers: the same in each call, and the generators are left as they were.
        per_batch: Options that depend on the images, each a function of them: ``{"baselines": torch.zeros_like}``.
        **options: The other options of ``method.attribute``: ``n_steps=20``.

    Raises:
        TypeError: If ``method.attribute`` has no such option or target, or needs an option that is not given.
        ValueError: If another argument is none of the above, or the method cannot work on a compiled network.

    Attributes:
        layer: The name of the layer that the method was built on (as ``named_modules`` has it), None without one.
    """

    def __init__(
        self,
        method: Any,
        /,
        mass: float = 0.5,
        *,
        target: Literal["predicted", "true"] | int | None = "predicted",
        sign: Literal["absolute", "positive"] = "absolute",
        per_pixel: bool = False,
        batch_size: int | None = None,
        seed: int | None = None,
        per_batch: Mapping[str, Callable[[Tensor], Any]] | None = None,
        **options: Any,
    ) -> None:
        asked = {} if target is None else {"target": target}
        _signature(method).bind(inputs=None, **asked, **options, **(per_batch or {}))
        if isinstance(target, str):
            check_choice("target", target, "predicted", "true")
        check_choice("sign", sign, "absolute", "positive")
        networks = _networks(method)
        compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl for n in networks for m in n.modules())
        if compiled and any({"model", "layer"} & vars(part).keys() for part in _parts(method)):
            raise ValueError("A compiled network does not call the method's hooks. Build it on the network itself.")
        names = {id(module): name for network in reversed(networks) for name, module in network.named_modules()}
        self.method = method
        super().__init__(mass, target)
        self.sign = sign
        self.per_pixel = per_pixel
        self.layer = next((names[id(network)] for network in networks if names[id(network)]), None)
        self.batch_size = batch_size
        self.seed = seed
        self.per_batch = dict(per_batch or {})
        self.options = options

    def _scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        networks, methods = _networks(self.method), _parts(self.method)
        parts = images.split(self.batch_size or len(images))
        classes = [self.target] * len(parts) if labels is None else labels.split(len(parts[0]))
        if len(parts[-1]) == 1 and any(type(m).__name__ == "FeaturePermutation" for m in methods):
            raise ValueError("FeaturePermutation needs two images or more at once (batch_size), got a batch of one.")
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting .*hooks|Input Tensor|You are providing multiple inputs")
            # Captum leaves hook handles and fitted models in its methods and, if one raises, attributes in the network.
            shared = (*networks, *(m.forward_func for m in methods))
            method = copy.deepcopy(self.method, {id(value): value for value in shared})
            for layer in (getattr(part, "layer", None) for part in methods):
                if isinstance(layer, nn.Module):
                    stack.callback(layer.register_forward_hook(_check_axes).remove)
            stack.enter_context(preserve_model_state(*networks))
            for network in networks:
                network.eval()
                for module in network.modules():
                    stack.callback(object.__setattr__, module, "__dict__", dict(vars(module)))
            if self.seed is not None:
                stack.enter_context(isolated_rng(self.seed))
            if labels is not None and isinstance(method.forward_func, nn.Module):
                # Before Captum picks a class past the output's end, which on CUDA would end the process.
                method.forward_func.register_forward_hook(lambda module, inputs, output: check_classes(labels, output))
            attributions = torch.cat([self._attribute(method, *part) for part in zip(parts, classes, strict=True)])
        scores = attributions.abs() if self.sign == "absolute" else attributions.clamp(min=0)
        scores = torch.where(attributions.isfinite(), scores, torch.nan)  # of −∞ the clamp would make an ordinary 0
        if scores.shape != images.shape:  # those of a layer
            scores = scores.sum(1, keepdim=True, dtype=torch.float64)
            scores = F.interpolate(scores, size=images.shape[2:], mode="bilinear", align_corners=False)
        return scores

    def _attribute(self, method: Any, images: Tensor, target: Any) -> Tensor:
        images = images.clone()
        options = self.options | {name: function(images.clone()) for name, function in self.per_batch.items()}
        if target == "predicted":
            more = options.get("additional_forward_args")
            extra = more if isinstance(more, tuple) else () if more is None else (more,)
            with torch.no_grad():
                target = check_logits(method.forward_func(images.clone(), *extra), len(images)).argmax(1)
        if target is not None:
            options["target"] = target
        found: Any = method.attribute(images.requires_grad_(), **options)
        if images._version:  # counts what was written; methods without gradients would go on with the changed images
            raise ValueError("The network writes into its input, which Captum needs again: begin it with x.clone().")
        if getattr(found, "ndim", 0) != 4 or len(found) != len(images):
            raise ValueError(f"The method must give (N, K, h, w), got {getattr(found, 'shape', type(found))}.")
        return torch.as_tensor(found).detach()


def _check_axes(layer: nn.Module, inputs: Any, output: Any) -> None:
    """Refuse a layer whose output Captum would take for what it is not."""
    if isinstance(output, Tensor) and output.dim() == 4:
        if output.grad_fn is None:  # methods that take no gradient
            leaves = (t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in inputs)
            with torch.enable_grad():
                output = layer.forward(*(t.clone() if isinstance(t, Tensor) else t for t in leaves))
        if channel_axis(output) == 3:
            raise ValueError(
                f"The output of {type(layer).__name__} is (N, h, w, K), and Captum takes it for (N, K, h, w). Use "
                "CAMSalience, which takes both, or a layer behind a permutation."
            )


def _signature(method: Any) -> inspect.Signature:
    """The options of ``method.attribute``, and of the method inside a NoiseTunnel."""
    known = dict(inspect.signature(method.attribute).parameters)
    if method.attribute.__module__.startswith("captum."):
        known.pop("kwargs", None)  # it ignores them, except in NoiseTunnel
    if hasattr(method, "attribution_method"):
        known |= _signature(method.attribution_method).parameters
    return inspect.Signature([p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY) for p in known.values()])


def _parts(method: Any) -> list[Any]:
    """The method, and the methods that it is made of (NoiseTunnel, GuidedGradCam)."""
    return [method, *(part for value in vars(method).values() if hasattr(value, "attribute") for part in _parts(value))]


def _networks(method: Any) -> list[nn.Module]:
    """The networks and layers that a method was built on; a network inside a function is not found."""
    parts = _parts(method)
    found = [getattr(part.forward_func, "__self__", part.forward_func) for part in parts]  # also of model.forward
    for layers in (getattr(part, "layer", None) for part in parts):
        found += layers if isinstance(layers, list) else [layers]
    return [network for network in found if isinstance(network, nn.Module)]
