"""One of Captum's methods as an object to be used: what it takes, and leaving it and the network behind it as they were.

Captum itself is not imported here: somebody who has a method has imported it.
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sip_plugin.model_state import eval_mode, preserve_model_state

_OURS = {"inputs", "target", "return_convergence_delta"}
_IGNORING_OTHERS = {"FeatureAblation", "FeaturePermutation"}  # whose **kwargs are for the classes that derive from them
_EXPECTED_WARNINGS = (
    "Setting backward hooks on ReLU activations",
    "Setting forward, backward hooks and attributes on non-linear",
    "Input Tensor .* did not already require gradients",
    "You are providing multiple inputs for Lime / Kernel SHAP",
)


def check_method(method: Any) -> None:
    """Refuse anything but one of Captum's methods for images.

    Raises:
        TypeError: If it is something else.
        ValueError: If it puts hooks on a network that is compiled: those are not called.
    """
    if isinstance(method, type):
        raise TypeError(
            f"method must be an instance, got the class {method.__name__}. Build it on a network: "
            f"{method.__name__}(teacher)."
        )
    if not _is_method(method) or next(iter(inspect.signature(method.attribute).parameters), None) != "inputs":
        raise TypeError(
            "method must be one of Captum's for images, an instance of captum.attr.Attribution such as "
            f"captum.attr.IntegratedGradients(teacher), got {type(method).__name__}. For a network's plain gradient: "
            "GradientSalience(teacher)."
        )
    if any("model" in vars(part) or "layer" in vars(part) for part in _parts(method)):
        for network, _ in _networks(method):
            if any(_is_compiled(module) for module in network.modules()):
                raise ValueError(
                    f"{described(method)} puts hooks on its network, and a compiled network does not call them: build it on "
                    "the network itself, not on what torch.compile gave."
                )


def options_of(method: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options of ``method.attribute`` by name, and whether it takes others too."""
    parameters = inspect.signature(method.attribute).parameters
    named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name not in _OURS}
    takes_others = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes_others = takes_others and type(method).__name__ not in _IGNORING_OTHERS
    inner = getattr(method, "attribution_method", None)
    if takes_others and inner is not None:  # NoiseTunnel hands on what it does not know
        more, takes_others = options_of(inner)
        named |= more
    return named, takes_others


def takes_target(method: Any) -> bool:
    """Whether the method attributes a class that one may choose."""
    return "target" in inspect.signature(getattr(method, "attribution_method", method).attribute).parameters


def permutes_features(method: Any) -> bool:
    """Whether the method swaps features between the images of a batch, or is made of one that does."""
    return any("FeaturePermutation" in (kind.__name__ for kind in type(part).__mro__) for part in _parts(method))


@contextmanager
def logits_checked(method: Any, check: Callable[[Any], None]) -> Iterator[None]:
    """Show each output of the method's network to ``check`` before Captum picks a class from it (past its end, on CUDA, that
    would end the process). The output of a network inside a function cannot be seen."""
    network = getattr(method, "forward_func", None)
    if not isinstance(network, nn.Module):
        yield
        return
    handle = network.register_forward_hook(lambda module, inputs, output: check(output))
    try:
        yield
    finally:
        handle.remove()


def layer_of(method: Any) -> str | None:
    """The name in its network of the layer that a method looks at; None without one, or where the network cannot be seen."""
    for part in _parts(method):
        layers = vars(part).get("layer")
        if layers is not None:
            network = _owner(part.forward_func)
            names = {id(module): name for name, module in network.named_modules()} if network is not None else {}
            found = [names.get(id(layer)) for layer in (layers if isinstance(layers, (list, tuple)) else [layers])]
            return ", ".join(name for name in found if name) or None
    return None


def described(method: Any) -> str:
    """The method's class, and what it was built on: ``NoiseTunnel(Saliency(ResNet))``."""
    inner = getattr(method, "attribution_method", None)
    if inner is not None:
        return f"{type(method).__name__}({described(inner)})"
    network = getattr(method, "forward_func", None)
    return f"{type(method).__name__}({getattr(network, '__qualname__', type(network).__name__)})"


@contextmanager
def in_use(method: Any, seed: int | None, device: torch.device) -> Iterator[Any]:
    """A copy of the method to use, on the same network, which is in eval mode and put back afterwards.

    Captum's objects are not left as they were by their use (handles of removed hooks pile up in some, others keep a state
    dict or a fitted model), nor the network's modules by a method that raises (inputs, outputs, rules, hooks).
    """
    with ExitStack() as stack:
        for network, whole in _networks(method):
            stack.enter_context(preserve_model_state(network))
            stack.enter_context(_same_attributes(network))
            if whole:
                stack.enter_context(eval_mode(network))
        stack.enter_context(warnings.catch_warnings())
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        if seed is not None:
            stack.enter_context(_seeded(seed, device))
        # A caller may be inside no_grad or inference_mode (a validation step); attributions need gradients all the same.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield _own_copy(method)


def _is_method(value: Any) -> bool:
    captum = sys.modules.get("captum.attr")
    return captum is not None and isinstance(value, captum.Attribution) and hasattr(value, "attribute")


def _parts(method: Any) -> Iterator[Any]:
    """The method, and the methods that it is made of (NoiseTunnel, GuidedGradCam)."""
    yield method
    for value in vars(method).values():
        if _is_method(value):
            yield from _parts(value)


def _networks(method: Any) -> list[tuple[nn.Module, bool]]:
    """The networks that can be seen, once each: whole ones, and layers of those that cannot (a function was given)."""
    whole: dict[int, nn.Module] = {}
    layers: dict[int, nn.Module] = {}
    for part in _parts(method):
        for name, value in vars(part).items():
            if name in ("forward_func", "model"):
                owner = _owner(value)
                whole |= {id(owner): owner} if owner is not None else {}
            elif name == "layer":
                found = value if isinstance(value, (list, tuple)) else [value]
                layers |= {id(layer): layer for layer in found if isinstance(layer, nn.Module)}
    seen = {id(module) for network in whole.values() for module in network.modules()}
    outside = [layer for key, layer in layers.items() if key not in seen]
    return [(network, True) for network in whole.values()] + [(layer, False) for layer in outside]


def _owner(function: Any) -> nn.Module | None:
    """The network that is called, by itself or by a bound method (``model.forward``)."""
    network = getattr(function, "__self__", function)
    return network if isinstance(network, nn.Module) else None


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _own_copy(method: Any) -> Any:
    copied = copy.copy(method)
    for name, value in vars(method).items():
        if _is_method(value):
            setattr(copied, name, _own_copy(value))
        elif isinstance(value, list):
            setattr(copied, name, list(value))
        elif name == "interpretable_model":  # that Lime fits
            setattr(copied, name, copy.deepcopy(value))
    return copied


@contextmanager
def _same_attributes(network: nn.Module) -> Iterator[None]:
    """Take away the attributes that were added to a network's modules, and put back those that were taken away."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for module, had in before:
            for name in vars(module).keys() - had.keys():
                del vars(module)[name]
            vars(module).update({name: had[name] for name in had.keys() - vars(module).keys()})


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that Captum draws from (torch's for the CPU and the device, NumPy's, Python's); put them back."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
