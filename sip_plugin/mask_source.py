"""What a user may give as the source of salience maps, and how it is asked for the maps of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.constraint import SalienceMap

_LABELS = frozenset({"labels", "label", "targets", "target", "y", "y_true"})
MaskSource = Callable[..., SalienceMap] | SalienceMap | None


def check_mask_source(source: MaskSource, name: str = "mask_fn") -> MaskSource:
    """The source itself; raises a TypeError if it is neither None, a callable, a tensor nor an array."""
    if source is not None and not callable(source) and not isinstance(source, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be a callable (images, labels) -> map or (images) -> map, or a map itself (tensor or array), got "
            f"{type(source).__name__}."
        )
    return source


def compute_mask(source: MaskSource, images: Tensor, labels: Tensor | None, *, keyword: str = "mask") -> SalienceMap:
    """The map of a batch, not yet checked, from a callable of (images, labels) or (images), or the map itself.

    Raises a ValueError if there is no source; ``keyword`` is the name under which a call brings its own.
    """
    if source is None:
        raise ValueError(f"No salience map: give mask_fn (a callable or a map), or {keyword}=... with the call.")
    check_mask_source(source, keyword)
    if isinstance(source, (Tensor, np.ndarray)):
        return source
    # A copy: what a function does to its images (marks them for a gradient, normalises them in place) is its own affair.
    with torch.inference_mode(False), torch.enable_grad():
        given = images.detach().clone()
        kind = _labels_parameter(source)
        if kind is inspect.Parameter.KEYWORD_ONLY:
            return source(given, labels=labels)
        return source(given) if kind is None else source(given, labels)


def accepts_labels(source: MaskSource) -> bool:
    """Whether a mask function is given labels, on which its maps may depend."""
    return callable(source) and _labels_parameter(source) is not None


def _labels_parameter(function: Callable[..., Any]) -> Any:
    """The kind of a function's parameter for the labels; None if it takes (images) alone."""
    try:
        # A network's own signature is (*args, **kwargs); its forward says what it takes.
        named = function.forward if isinstance(function, nn.Module) else function
        parameters = list(inspect.signature(named).parameters.values())
    except (TypeError, ValueError):
        return inspect.Parameter.VAR_POSITIONAL  # a builtin does not say
    for i, p in enumerate(parameters):
        if p.kind is p.VAR_POSITIONAL or (p.kind is p.KEYWORD_ONLY and p.name == "labels"):
            return p.kind
        if i > 1 and p.kind is p.POSITIONAL_OR_KEYWORD and p.name == "labels":
            return p.KEYWORD_ONLY  # behind an option
        # A second parameter that has a default and is not the labels is an option of the function (threshold=0.5).
        if i == 1 and p.kind <= p.POSITIONAL_OR_KEYWORD and (p.default is p.empty or p.name in _LABELS):
            return p.kind
    return None
