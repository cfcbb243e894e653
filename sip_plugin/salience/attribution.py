"""Salience from any of Captum's attribution methods."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sip_plugin.checks import check_classes, check_images, check_logits
from sip_plugin.salience.captum_method import (
    check_method,
    described,
    in_use,
    layer_of,
    logits_checked,
    options_of,
    permutes_features,
    takes_target,
)
from sip_plugin.salience.selection import binarize, check_finite, check_mass, require_labels

Target = Literal["predicted", "true"] | int | None
Sign = Literal["absolute", "positive"]


class AttributionSalience:
    """Salience maps from one of Captum's methods: the fewest elements that hold half of what it attributes.

    With the attributions ``a`` to a class, the map marks the ``k`` largest elements of ``|a|`` for the smallest ``k`` whose
    sum is at least ``mass · Σ|a|`` (eq. 8 of SIP-AT). Attributions to a layer, ``(N, K, h, w)``, are summed over its
    channels and enlarged bilinearly, so that their maps are the same for all channels. The passes are the method's own; one
    forward pass more finds the class where ``target`` is ``"predicted"``.

    The network runs in eval mode and is left as it was, also when the method raises; Captum works on a copy of ``method``.
    A network inside a function that the method was built on cannot be seen: put it into eval mode yourself.

    Args:
        method: An instance built on the teacher, ``captum.attr.IntegratedGradients(teacher)``. By position: Captum has
            options of that name.
        mass: The share of the attributions' magnitude that the map holds, in ``(0, 1]``.
        target: The class: the ``"predicted"`` one, the ``"true"`` one, which needs labels, or the index of one for all
            images. None where the method takes none, or the network gives one number per image.
        sign: ``"absolute"`` counts what speaks for the class and against it; ``"positive"`` what speaks for it.
        per_pixel: Sum ``|a|`` over the channels first, so that a pixel is salient in all of them or in none.
        batch_size: The most images that the method gets at once; None for all.
        seed: For methods that draw random numbers: each call draws the same, and torch's, NumPy's and Python's random
            generators are left as they were (on the CPU and on CUDA devices).
        per_batch: Options of ``method.attribute`` that depend on the images, each a function of them:
            ``{"baselines": torch.zeros_like}``.
        **options: Options of ``method.attribute`` that do not: ``n_steps=20``.

    Raises:
        TypeError: If ``method`` is none of Captum's, has no such option, needs one that is not given, or an argument is of
            the wrong type.
        ValueError: If an argument is none of the above, or the method cannot work on a compiled network.

    Attributes:
        layer: The name in the network of the layer that the method looks at, None if it looks at none.

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
        check_method(method)
        if per_batch is not None and not isinstance(per_batch, Mapping):
            raise TypeError(
                'per_batch must be a mapping of options to functions of the images, {"baselines": torch.zeros_like}, got '
                f"{type(per_batch).__name__}."
            )
        _check_options(method, options, per_batch or {})
        if sign not in ("absolute", "positive"):
            raise ValueError(f'sign must be "absolute" or "positive", got {sign!r}.')
        self.method = method
        self.layer = layer_of(method)
        self.mass = check_mass(mass)
        self.target: Target = _check_target(target, method)
        self.sign: Sign = sign
        self.per_pixel = per_pixel
        self.batch_size = None if batch_size is None else _check_whole("batch_size", batch_size, least=1)
        self.seed = None if seed is None else _check_whole("seed", seed, least=0)
        self.per_batch = dict(per_batch or {})
        self.options = options

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The maps of a batch.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``; only used with ``target="true"``.

        Returns:
            ``bool``, ``(N, C, H, W)``; 1 marks a salient element.

        Raises:
            TypeError: If ``images`` or ``labels`` are of the wrong type.
            ValueError: If their shapes or values do not fit, labels are missing, or attributions are not of images or not
                finite.
            Exception: What the method raises. docs/salience.md says what each of them asks of a network.
        """
        check_images(images)
        labels = require_labels(self.target, labels, images) if self.target == "true" else None
        parts = images.split(self.batch_size or len(images))
        known = labels.split(self.batch_size or len(images)) if labels is not None else [None] * len(parts)
        if permutes_features(self.method) and min(map(len, parts)) == 1:
            raise ValueError(
                f"{described(self.method)} swaps features between the images of a batch, and so finds nothing for a batch "
                f"of one; {len(images)} image(s) came, with batch_size={self.batch_size}. Give it two or more at once."
            )
        with in_use(self.method, self.seed, images.device) as method:
            found = [self._attributions(method, part, given) for part, given in zip(parts, known, strict=True)]
        attributions = torch.cat(found)
        check_finite(attributions, f"Captum's {type(self.method).__name__}", "the network and the method's options")
        return binarize(self._scores(attributions, images), self.mass, per_pixel=self.per_pixel).expand_as(images)

    def __repr__(self) -> str:
        given: dict[str, Any] = {
            "mass": self.mass,
            "target": self.target,
            "sign": self.sign,
            "per_pixel": self.per_pixel,
        }
        optional = {"layer": self.layer, "batch_size": self.batch_size, "seed": self.seed, "per_batch": self.per_batch}
        given |= {name: value for name, value in optional.items() if value not in (None, {})} | self.options
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in given.items())
        return f"AttributionSalience({described(self.method)}, {arguments})"

    def _attributions(self, method: Any, images: Tensor, labels: Tensor | None) -> Tensor:
        images = images.detach().clone()
        untouched = images._version
        options = self.options | {name: function(images.clone()) for name, function in self.per_batch.items()}
        if self.target is not None:
            options["target"] = self._classes(method.forward_func, images, labels, options)
        try:
            with logits_checked(method, lambda output: _check_classes(options.get("target"), output)):
                attributions = method.attribute(images.requires_grad_(), **options)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note("docs/salience.md of sip-plugin says what each of Captum's methods asks of a network.")
                if "in-place" in str(error):
                    error.add_note("A network that writes into its input must be given a copy of it: x = x.clone().")
            raise
        if images._version != untouched:  # methods without gradients go on with what the network left
            raise ValueError(
                f"The network of {described(method)} writes into its input, and Captum needs that input again. Let it work "
                "on a copy: x = x.clone() at the beginning of its forward."
            )
        return _checked(attributions, images, method)

    def _classes(
        self, network: Callable[..., Any], images: Tensor, labels: Tensor | None, options: dict[str, Any]
    ) -> Tensor | int:
        if isinstance(self.target, int):
            return self.target
        if labels is not None:
            return labels
        more = options.get("additional_forward_args")
        if not isinstance(more, tuple):
            more = () if more is None else (more,)
        with torch.no_grad():
            output = network(images.clone(), *more)
        return check_logits(output, len(images)).argmax(1)

    def _scores(self, attributions: Tensor, images: Tensor) -> Tensor:
        scores = attributions.abs() if self.sign == "absolute" else attributions.clamp(min=0)
        if scores.shape == images.shape:
            return scores
        pixels = scores.sum(1, keepdim=True, dtype=torch.float64)
        return F.interpolate(pixels, size=images.shape[2:], mode="bilinear", align_corners=False)


def _check_options(method: Any, options: Mapping[str, Any], per_batch: Mapping[str, Any]) -> None:
    known, takes_others = options_of(method)
    given = options.keys() | per_batch.keys()
    unknown = sorted(given - known.keys())
    if unknown and not takes_others:
        raise TypeError(
            f"{type(method).__name__}.attribute has no option {', '.join(unknown)}. It has: {', '.join(known) or 'none'}."
        )
    missing = [name for name, parameter in known.items() if parameter.default is parameter.empty and name not in given]
    if missing:
        raise TypeError(
            f"{type(method).__name__}.attribute needs {', '.join(missing)}: give {missing[0]}=..., or "
            f"per_batch={{{missing[0]!r}: function of the images}}."
        )
    twice = sorted(options.keys() & per_batch.keys())
    if twice:
        raise TypeError(f"Give {', '.join(twice)} as an option or in per_batch, not both.")
    for name, function in per_batch.items():
        if not callable(function):
            raise TypeError(f"per_batch[{name!r}] must be a function of the images, got {type(function).__name__}.")


def _check_target(target: Any, method: Any) -> Target:
    if target is None:
        return None
    if not takes_target(method):
        raise ValueError(f"{type(method).__name__}.attribute takes no target: give target=None.")
    if target in ("predicted", "true"):
        return target  # type: ignore[no-any-return]
    if isinstance(target, bool) or not isinstance(target, numbers.Integral) or target < 0:
        raise ValueError(f'target must be "predicted", "true", the index of a class or None, got {target!r}.')
    return int(target)


def _check_classes(target: Any, output: Any) -> None:
    """Refuse a class that the network has no logit for."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        return
    if isinstance(target, Tensor):
        check_classes(target, output)
    elif isinstance(target, int) and target >= output.shape[1]:
        raise ValueError(f"target must be below {output.shape[1]}, the number of the network's classes, got {target}.")


def _check_whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def _checked(attributions: Any, images: Tensor, method: Any) -> Tensor:
    """The attributions if they are of images: of their shape, or of a layer with positions."""
    if isinstance(attributions, tuple) and len(attributions) == 1:
        (attributions,) = attributions
    if not isinstance(attributions, Tensor):
        several = isinstance(attributions, (tuple, list))
        got = f"{len(attributions)} of them" if several else type(attributions).__name__
        raise ValueError(
            f"{type(method).__name__}.attribute must give one tensor of attributions, got {got}. For a layer with several "
            "inputs or outputs, choose one with a single tensor."
        )
    if attributions.dim() != 4 or len(attributions) != len(images):
        raise ValueError(
            f"{type(method).__name__}.attribute must give attributions of the images' shape {tuple(images.shape)} or, for a "
            f"layer, ({len(images)}, K, h, w), got {tuple(attributions.shape)}. The network must give a result for each "
            "image, and a layer one with positions."
        )
    return attributions.detach()


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_short(entry)}' for key, entry in value.items())}}}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)
