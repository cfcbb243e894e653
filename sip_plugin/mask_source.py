"""What a user may give as the source of salience maps, and how it is asked for the maps of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.constraint import SalienceMap

_LABELS = frozenset({"labels", "label", "targets", "target", "y"})
MaskFunction = Callable[..., SalienceMap]
MaskSource = MaskFunction | SalienceMap | None


def check_mask_source(source: MaskSource, name: str = "mask_fn") -> MaskSource:
    """Refuse what can never give a map.

    Raises:
        TypeError: If ``source`` is neither None, a callable, a tensor nor an array.
    """
    if source is not None and not callable(source) and not isinstance(source, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be a callable (images, labels) -> map or (images) -> map, or a map itself (torch.Tensor or NumPy "
            f"array), got {type(source).__name__}."
        )
    return source


def compute_mask(source: MaskSource, images: Tensor, labels: Tensor | None, *, keyword: str = "mask") -> SalienceMap:
    """The map of a batch, not yet checked, from a callable of (images, labels) or (images), or the map itself.

    ``keyword`` is the name under which a call brings its own.

    Raises:
        ValueError: If there is no source.
    """
    if source is None:
        raise ValueError(f"No salience map: give mask_fn (a callable or a map), or {keyword}=... with the call.")
    if isinstance(source, (Tensor, np.ndarray)):
        return source
    # A copy: what a function does to its images (marks them for a gradient, normalises them in place) is its own affair.
    with torch.inference_mode(False), torch.enable_grad():
        given = images.detach().clone()
        by_name = {"labels": labels} if _accepts_labels_by_keyword(source) else {}
        return source(given, labels) if _accepts_labels_by_position(source) else source(given, **by_name)


def accepts_labels(source: MaskSource) -> bool:
    """Whether a mask function is given labels, on which its maps may depend."""
    return callable(source) and (_accepts_labels_by_position(source) or _accepts_labels_by_keyword(source))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """A function's parameters, None where it does not say (a builtin)."""
    try:
        # A network's own signature is (*args, **kwargs); its forward says what it takes.
        named = function.forward if isinstance(function, nn.Module) else function
        return list(inspect.signature(named).parameters.values())
    except (TypeError, ValueError):
        return None


def _accepts_labels_by_keyword(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.KEYWORD_ONLY and p.name == "labels" for p in _parameters(function) or ())


def _accepts_labels_by_position(function: Callable[..., Any]) -> bool:
    """Whether a mask function takes (images, labels) and not images alone."""
    parameters = _parameters(function)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # A second parameter that has a default and is not the labels is an option of the function (threshold=0.5).
    return len(positional) >= 2 and (positional[1].default is inspect.Parameter.empty or positional[1].name in _LABELS)
