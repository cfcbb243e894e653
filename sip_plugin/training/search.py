"""The inner maximisation of adversarial training, once for all methods: ``max_{δ ∈ Δ'(x)} L(f(x + δ))`` (eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sip_plugin.constraint import FeasibleSet

Objective = Callable[[Any], Tensor]


def maximise(
    network: Callable[[Tensor], Any],
    objective: Objective,
    start: Tensor,
    feasible: FeasibleSet,
    *,
    alpha: float,
    steps: int,
) -> Tensor:
    """Projected gradient ascent from ``start``: one forward and one backward pass to the input per step.

    Parameters get no gradient, and ``start`` is not written to.

    Args:
        network: The network, in the mode that it should be searched in.
        objective: The network's output to a scalar. A *sum* over the images, so that the gradient of each does not shrink
            with the batch (and vanish in float16).
        start: A point of the set, ``(N, C, H, W)``.
        feasible: Where the points may lie, and what a step is.
        alpha: Step size.
        steps: Number of steps; 0 gives ``start``.

    Returns:
        The last point, ``(N, C, H, W)``, without a graph.
    """
    point = start.detach()
    for _ in range(steps):
        point.requires_grad_()
        with torch.enable_grad():
            value = objective(network(point))
        (gradient,) = torch.autograd.grad(value, point)
        point = feasible.ascend(point.detach(), gradient, alpha)
    return point
