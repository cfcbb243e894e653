"""What a user may give as the source of salience maps, and how it is asked for the maps of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sip_plugin.constraint import SalienceMap

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


def call_mask_source(source: MaskSource, images: Tensor, labels: Tensor | None) -> SalienceMap:
    """The map of a batch, not yet checked, from a callable of (images, labels) or (images), or the map itself.

    Raises:
        ValueError: If there is no source.
    """
    if source is None:
        raise ValueError("No salience map: give mask_fn (a callable or a map), or mask=... with the call.")
    if isinstance(source, (Tensor, np.ndarray)):
        return source
    return source(images, labels) if _takes_labels(source) else source(images)


def _takes_labels(function: Callable[..., Any]) -> bool:
    """Whether a mask function takes (images, labels) and not images alone."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # A second parameter that has a default and is not the labels is an option of the function (threshold=0.5).
    return len(positional) >= 2 and (positional[1].default is inspect.Parameter.empty or positional[1].name == "labels")
