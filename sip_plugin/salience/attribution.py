"""Salience from any of Captum's attribution methods."""

from __future__ import annotations

import copy
import inspect
import numbers
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_images, check_logits
from sip_plugin.model_state import eval_mode, preserve_model_state
from sip_plugin.salience.selection import binarize, check_finite, check_mass, require_labels
from sip_plugin.utils import isolated_rng

Target = Literal["predicted", "true"] | int | None
Sign = Literal["absolute", "positive"]

_EXPECTED_WARNINGS = (
    "Setting backward hooks on ReLU activations",
    "Setting forward, backward hooks and attributes on non-linear",
    "Input Tensor .* did not already require gradients",
    "You are providing multiple inputs for Lime / Kernel SHAP",
)


class AttributionSalience:
    """Salience maps from one of Captum's methods: the fewest elements that hold half of the attributions' magnitude.

    With the attributions ``a`` to a class, the map marks the ``k`` largest elements of ``|a|`` for the smallest ``k`` whose
    sum is at least ``mass · Σ|a|`` (eq. 8 of SIP-AT). Attributions to a layer, ``(N, K, h, w)``, are summed over its
    channels and upsampled bilinearly, so that their maps are the same for all channels. ``target="predicted"`` takes one
    forward pass more than the method itself.

    The network runs in eval mode and is left as it was, also when the method raises; Captum works on a copy of ``method``.
    If the method was built on a function, the network inside it is not found: put it into eval mode yourself.

    Args:
        method: An instance built on the teacher, ``captum.attr.IntegratedGradients(teacher)``. Positional only: Captum has
            options of that name.
        mass: The share of the attributions' magnitude that the map holds, in ``(0, 1]``.
        target: The class to explain: the ``"predicted"`` one, the ``"true"`` one (needs labels), or a class index for all
            images. None if the method takes no target, or the network returns one number per image.
        sign: ``"absolute"`` uses the magnitude of all attributions, ``"positive"`` only those in favour of the class.
        per_pixel: Sum ``|a|`` over the channels first, so that a pixel is salient in all of them or in none.
        batch_size: The largest number of images passed to the method at once; None for all.
        seed: For methods that draw random numbers: each call draws the same, and torch's, NumPy's and Python's random
            generators are left as they were (on the CPU and on CUDA devices).
        per_batch: Options of ``method.attribute`` that depend on the images, each a function of them:
            ``{"baselines": torch.zeros_like}``.
        **options: The other options of ``method.attribute``: ``n_steps=20``.

    Raises:
        TypeError: If ``method`` is none of Captum's, has no such option or target, or needs an option that is not given.
        ValueError: If an argument is none of the above, or the method cannot work on a compiled network.

    Attributes:
        layer: The name of the layer that the method was built on (as ``named_modules`` has it), None without one.

    Example:
        >>> mask_fn = AttributionSalience(captum.attr.IntegratedGradients(teacher), n_steps=20)
        >>> salience = mask_fn(images)  # bool, the images' shape
    """

    def __init__(
        self,
        method: Any,
        /,
        mass: float = 0.5,
        *,
        target: Target = "predicted",
        sign: Sign = "absolute",
        per_pixel: bool = False,
        batch_size: int | None = None,
        seed: int | None = None,
        per_batch: Mapping[str, Callable[[Tensor], Any]] | None = None,
        **options: Any,
    ) -> None:
        from captum.attr import Attribution

        if not isinstance(method, Attribution) or "inputs" not in (signature := _signature(method)).parameters:
            raise TypeError(
                "method must be one of Captum's for images, an instance of captum.attr.Attribution such as "
                f"captum.attr.IntegratedGradients(teacher), got {method!r}. For a plain gradient: GradientSalience(teacher)."
            )
        self.per_batch = dict(per_batch or {})
        given: dict[str, Any] = {"inputs": None} | ({} if target is None else {"target": target})
        try:
            signature.bind(**given, **options, **self.per_batch)
        except TypeError as error:
            raise TypeError(
                f"{_described(method)}.attribute: {error}. It takes {', '.join(signature.parameters)}; a method "
                "that takes no target needs target=None."
            ) from None
        if target not in ("predicted", "true", None) and not _is_index(target):
            raise ValueError(f'target must be "predicted", "true", the index of a class or None, got {target!r}.')
        if sign not in ("absolute", "positive"):
            raise ValueError(f'sign must be "absolute" or "positive", got {sign!r}.')
        networks = _networks(method)
        if any({"model", "layer"} & vars(part).keys() for part in _parts(method)) and any(map(_is_compiled, networks)):
            raise ValueError(
                f"{_described(method)} puts hooks on its network, and a compiled network does not call them. Build it on "
                "the network itself."
            )
        names = {id(module): name for network in reversed(networks) for name, module in network.named_modules()}
        self.layer = ", ".join(dict.fromkeys(names[id(network)] for network in networks if names[id(network)])) or None
        self.method = method
        self.mass = check_mass(mass)
        self.target: Target = target
        self.sign: Sign = sign
        self.per_pixel = per_pixel
        self.batch_size = batch_size
        self.seed = seed
        self.options = options

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the maps of a batch.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``; only used with ``target="true"``.

        Returns:
            ``bool``, ``(N, C, H, W)``; 1 marks a salient element.

        Raises:
            TypeError: If ``images`` or ``labels`` are of the wrong type.
            ValueError: If their shapes or values do not fit, labels are missing, or attributions are not of images or not
                finite.
            Exception: What the method raises. docs/salience.md lists what each of them needs.
        """
        check_images(images)
        size = len(images) if self.batch_size is None else self.batch_size
        parts = images.split(size)
        kinds = {kind.__name__ for part in _parts(self.method) for kind in type(part).__mro__}
        if "FeaturePermutation" in kinds and min(map(len, parts)) == 1:
            raise ValueError(
                f"{_described(self.method)} swaps features between the images of a batch, and finds nothing in a batch of "
                f"one; got {len(images)} image(s) with batch_size={self.batch_size}. It needs two or more at once."
            )
        labels = require_labels(self.target, labels, images) if self.target == "true" else None
        classes = [self.target] * len(parts) if labels is None else labels.split(size)
        with self._isolated(images.device) as method:
            if labels is not None and isinstance(method.forward_func, nn.Module):
                # Before Captum picks a class past the output's end, which on CUDA would end the process.
                method.forward_func.register_forward_hook(lambda module, inputs, output: check_classes(labels, output))
            found = [self._attribute(method, part, target) for part, target in zip(parts, classes, strict=True)]
        attributions = torch.cat(found)
        check_finite(attributions, f"Captum's {type(self.method).__name__}", "the network and the method's options")
        scores = attributions.abs() if self.sign == "absolute" else attributions.clamp(min=0)
        if scores.shape != images.shape:  # those of a layer
            scores = scores.sum(1, keepdim=True, dtype=torch.float64)
            scores = F.interpolate(scores, size=images.shape[2:], mode="bilinear", align_corners=False)
        return binarize(scores, self.mass, per_pixel=self.per_pixel).expand_as(images)

    def __repr__(self) -> str:
        names = ("mass", "target", "sign", "per_pixel", "layer", "batch_size", "seed")
        settings = {name: getattr(self, name) for name in names} | dict.fromkeys(self.per_batch, "…") | self.options
        shown = [f"{name}={_short(value)}" for name, value in settings.items()]
        return f"AttributionSalience({_described(self.method)}, {', '.join(shown)})"

    @contextmanager
    def _isolated(self, device: torch.device) -> Iterator[Any]:
        """A copy of the method on the same network, which is in eval mode; both are left as they were.

        Captum leaves hook handles and fitted models in its methods and, if one raises, attributes in the network.
        """
        networks = _networks(self.method)
        shared = (*networks, *(part.forward_func for part in _parts(self.method)))
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(preserve_model_state(network))
                stack.enter_context(_preserve_attributes(network))
                stack.enter_context(eval_mode(network))
            stack.enter_context(warnings.catch_warnings())
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            if self.seed is not None:
                stack.enter_context(isolated_rng(device))
                _set_seed(self.seed, device)
            # A caller may be inside no_grad or inference_mode (a validation step); attributions need gradients all the same.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            yield copy.deepcopy(self.method, {id(value): value for value in shared})

    def _attribute(self, method: Any, images: Tensor, target: Tensor | Target) -> Tensor:
        images = images.detach().clone()
        version = images._version
        options = self.options | {name: function(images.clone()) for name, function in self.per_batch.items()}
        if target == "predicted":
            more = options.get("additional_forward_args")
            extra = more if isinstance(more, tuple) else () if more is None else (more,)
            with torch.no_grad():
                target = check_logits(method.forward_func(images.clone(), *extra), len(images)).argmax(1)
        if target is not None:
            options["target"] = target
        attributions = method.attribute(images.requires_grad_(), **options)
        if images._version != version:  # methods without gradients would go on with the changed images
            raise ValueError(
                f"The network of {_described(method)} writes into its input, and Captum needs that input again. Let it work "
                "on a copy: x = x.clone() at the beginning of its forward."
            )
        if isinstance(attributions, tuple) and len(attributions) == 1:
            (attributions,) = attributions
        if not isinstance(attributions, Tensor) or attributions.dim() != 4 or len(attributions) != len(images):
            got = tuple(attributions.shape) if isinstance(attributions, Tensor) else f"a {type(attributions).__name__}"
            raise ValueError(
                f"{_described(method)}.attribute must return one tensor, of the images' shape {tuple(images.shape)} or, for "
                f"a layer, ({len(images)}, K, h, w), got {got}. The network must return a result per image, and a layer one "
                "tensor with positions."
            )
        return attributions.detach()


def _signature(method: Any) -> inspect.Signature:
    """The arguments of ``method.attribute``."""
    if not hasattr(method, "attribute"):
        return inspect.Signature()
    known = list(inspect.signature(method.attribute).parameters.values())
    if method.attribute.__module__.startswith("captum."):  # it ignores its **kwargs, except in NoiseTunnel
        known = [parameter for parameter in known if parameter.kind is not parameter.VAR_KEYWORD]
    if hasattr(method, "attribution_method"):
        names = [parameter.name for parameter in known]
        known += [p for p in _signature(method.attribution_method).parameters.values() if p.name not in names]
    return inspect.Signature([p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY) for p in known])


def _parts(method: Any) -> list[Any]:
    """The method, and the methods that it is made of (NoiseTunnel, GuidedGradCam)."""
    return [method, *(part for value in vars(method).values() if hasattr(value, "attribute") for part in _parts(value))]


def _networks(method: Any) -> list[nn.Module]:
    """The networks and layers that a method was built on; a network inside a function is not found."""
    found = []
    for part in _parts(method):
        layers = getattr(part, "layer", None)
        found.append(getattr(part.forward_func, "__self__", part.forward_func))  # also of model.forward
        found += layers if isinstance(layers, (list, tuple)) else [layers]
    return [network for network in found if isinstance(network, nn.Module)]


def _is_compiled(network: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in network.modules())


def _is_index(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0


def _described(value: Any) -> str:
    """``NoiseTunnel(Saliency(ResNet))``."""
    inside = getattr(value, "attribution_method", getattr(value, "forward_func", None))
    name = str(getattr(value, "__qualname__", type(value).__name__))
    return name if inside is None else f"{name}({_described(inside)})"


def _short(value: Any) -> str:
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _set_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of the device (no other's), NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def _preserve_attributes(network: nn.Module) -> Iterator[None]:
    """Remove the attributes that were added to a network's modules, and put back those that were removed (LRP's rules)."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for module, had in before:
            for name in vars(module).keys() - had.keys():
                del vars(module)[name]
            vars(module).update({name: had[name] for name in had.keys() - vars(module).keys()})
