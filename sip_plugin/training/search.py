"""The inner maximisation of adversarial training, once for all methods: ``max_{δ ∈ Δ'(x)} L(f(x + δ))`` (eq. 6)."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sip_plugin.checks import check_classes, check_logits, output_gradient
from sip_plugin.constraint import FeasibleSet

Objective = Callable[[Any], Tensor]
Step = Callable[..., Tensor]
"""What :func:`ascent_step` is, also compiled."""
_numbers = itertools.count()


class EarlyStop:
    """Which images a search is done with: those misclassified more often than ``patience`` (FAT's τ) allows."""

    def __init__(self, labels: Tensor, patience: int) -> None:
        self._labels = labels
        self._left = torch.full_like(labels, patience)
        self._sure = patience  # for so many steps no image can be done, and the device need not be asked

    def running(self, logits: Tensor) -> Tensor | None:
        """The indices of the rows that go on, None if all do; later calls are about those rows."""
        wrong = check_logits(logits, len(self._labels)).argmax(1) != self._labels
        keep = ~wrong | (self._left > 0)
        self._left -= wrong.long()
        if self._sure > 0:
            self._sure -= 1
            return None
        index = keep.nonzero().flatten()  # waits for the device, which has to say how many rows the next pass has
        if len(index) == len(keep):
            return None
        self._labels, self._left = self._labels[index], self._left[index]
        return index


def ascent_step(
    network: Callable[[Tensor], Any],
    objective: Callable[[Tensor], Objective],
    target: Tensor,
    point: Tensor,
    feasible: FeasibleSet,
    alpha: float | Tensor,
    noise: float,
) -> Tensor:
    """One step of :func:`projected_ascent` as a pure function, which ``torch.compile`` takes as one graph."""
    gradient = torch.func.grad(lambda candidate: objective(target)(network(candidate.clone())))(point)
    return feasible.ascend(point, gradient, alpha, noise)


def compiled_step(device: torch.device) -> Step:
    """:func:`ascent_step` as one compiled graph; on CUDA replayed as a CUDA graph."""
    # Code of its own: what is compiled of one code, for whatever networks and methods, counts against one limit of torch's.
    code = ascent_step.__code__.replace(co_name=f"{ascent_step.__name__}_{next(_numbers)}")
    own = types.FunctionType(code, ascent_step.__globals__)
    if device.type != "cuda":
        return torch.compile(own, fullgraph=True)
    step = torch.compile(own, fullgraph=True, mode="reduce-overhead")

    def replayed(*args: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        result: Tensor = step(*args)
        return result.clone()  # the graph's own memory is overwritten by its next run

    return replayed


def projected_ascent(
    network: Callable[[Tensor], Any],
    objective: Callable[[Tensor], Objective],
    target: Tensor,
    start: Tensor,
    feasible: FeasibleSet,
    *,
    alpha: float,
    steps: int,
    noise: float = 0.0,
    stop: EarlyStop | None = None,
    step: Step | None = None,
) -> tuple[Tensor, int]:
    """Projected gradient ascent from ``start``: one forward and one backward pass to the input per step.

    Parameters get no gradient, and ``start`` is not written to.

    Args:
        network: The network, in the mode that it should be searched in.
        objective: From the target of some images to a function of the network's output for them, which gives a scalar. A
            *sum* over the images, so that the gradient of each does not shrink with the batch (and vanish in float16).
        target: What the output is compared with, one row per image.
        start: A point of the set, ``(N, C, H, W)``.
        feasible: Where the points may lie, and what a step is.
        alpha: Step size.
        steps: Largest number of steps; 0 gives ``start``.
        noise: Standard deviation of the normal noise that is added to each step before the projection.
        stop: Which images are done before the last step. They leave the batch; the result has them in their place.
        step: A compiled step, in place of the one written out here; not together with ``stop``, whose batches change.

    Returns:
        The last points ``(N, C, H, W)``, without a graph, and the number of forward passes, counted in images.
    """
    point, passes = start.detach(), 0
    if step is not None:
        size = point.new_full((), alpha)  # as a number it would be part of the graph, and a schedule compile many
        for _ in range(steps):
            point = step(network, objective, target, point, feasible, size, noise)
        return point, steps * len(point)
    result, places = point.clone(), torch.arange(len(point), device=point.device)  # where the rows of ``point`` belong
    for _ in range(steps):
        point.requires_grad_()
        with torch.enable_grad():
            output = network(point.clone())  # which may write into its input
        if not passes and not target.is_floating_point():
            check_classes(target, output)
        passes += len(point)
        running = None if stop is None else stop.running(output)
        if running is not None:
            result.index_copy_(0, places, point.detach())
            places = places[running]
            if not len(running):
                return result, passes
        with torch.enable_grad():
            value = objective(target)(output)
        gradient = output_gradient(value, point)
        point = point.detach()
        if running is not None:
            point, gradient, target = point[running], gradient[running], target[running]
            feasible = feasible.rows(running)
        point = feasible.ascend(point, gradient, alpha, noise)
    return result.index_copy_(0, places, point), passes
