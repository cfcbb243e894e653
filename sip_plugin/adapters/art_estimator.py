"""A stand-in for an ART classifier that projects every query, in the attack's own space: before any preprocessing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack, EvasionAttack
from art.estimators.estimator import BaseEstimator
from torch import Tensor

from sip_plugin.adapters.base import patched_attribute
from sip_plugin.adapters.projection import BatchProjection, RowSelections
from sip_plugin.constraint import project
from sip_plugin.model_state import preserve_model_state


class EstimatorProjection:
    """``P_x`` for arrays and tensors.

    Args:
        images: The clean images, on the CPU.
        salience: Their binary map, broadcastable to the images, on the CPU.
        dtype: What queries are cast to.
        selections: See :class:`BatchProjection`.
        masked: Whether the attack's own mask keeps it from changing salient elements, so that queries about part of the
            batch are left as they are.
        in_place: Whether a query is its attack's iterate, and is projected in place.
        exempt: Other images of which an attack asks, which are no iterates of these.
    """

    def __init__(
        self,
        images: Tensor,
        salience: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        selections: RowSelections | None = None,
        masked: bool = False,
        in_place: bool = False,
        exempt: Tensor | None = None,
    ) -> None:
        self.dtype = dtype
        self.in_place = in_place
        self.exempt = exempt
        self.queried = False
        self.masked = masked
        self._use(BatchProjection(images, salience, selections=selections))

    def project(self, x: Any) -> tuple[Any, Tensor | None]:
        """Queries with their clean values on salient elements, and their maps; None for images that are exempt.

        Raises:
            RuntimeError: If they are no images of the clean ones' shape.
        """
        self.queried = True
        queries = x if isinstance(x, Tensor) else _tensor(x)
        if not queries.is_floating_point():
            queries = queries.to(self.dtype)
        batch = self._on(queries.device)
        if not batch.covers(queries):
            raise RuntimeError(
                f"The attack asked about an array of shape {tuple(queries.shape)} where images "
                f"(N, {', '.join(map(str, batch.images.shape[1:]))}) were expected, so its steps cannot be projected."
            )
        if self._is_exempt(queries) or (self.masked and len(queries) < len(batch.images)):
            return x, None
        if batch.free:
            return (queries.to(self.dtype) if isinstance(x, Tensor) else queries.to(self.dtype).numpy()), None
        images, salience = batch.rows(queries)
        projected = project(queries, images, salience)
        if self.in_place and not queries.requires_grad:
            queries.copy_(projected)
        projected = projected.to(self.dtype)
        return (projected if isinstance(x, Tensor) else projected.numpy()), salience

    @contextmanager
    def only(self, index: int) -> Iterator[None]:
        """For the length of a block all queries are of one image."""
        everything = self._batch
        salience = everything.salience
        self._use(
            BatchProjection(
                everything.images[index : index + 1], salience if len(salience) == 1 else salience[index : index + 1]
            )
        )
        try:
            yield
        finally:
            self._use(everything)

    def _use(self, batch: BatchProjection) -> None:
        self._batch = batch
        self._batches = {torch.device("cpu"): batch}

    def _on(self, device: torch.device) -> BatchProjection:
        batch = self._batch
        if device not in self._batches:
            images, salience = batch.images.to(device), batch.salience.to(device)
            self._batches[device] = BatchProjection(images, salience, selections=batch.selections)
        return self._batches[device]

    def _is_exempt(self, queries: Tensor) -> bool:
        if self.exempt is None:
            return False
        return torch.equal(queries.detach(), self.exempt.to(queries))


class ProjectedEstimator:
    """The methods by which an attack asks a classifier, each with its queries projected.

    A mixin before the classifier's own class, on an object that shares all of the classifier's attributes.
    """

    _sip_projection: EstimatorProjection

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own, at the projected queries."""
        return super().predict(self._sip_projection.project(x)[0], *args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own, at the projected queries."""
        return super().compute_loss(self._sip_projection.project(x)[0], *args, **kwargs)  # type: ignore[misc]

    def get_activations(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own, at the projected queries."""
        return super().get_activations(self._sip_projection.project(x)[0], *args, **kwargs)  # type: ignore[misc]

    def loss_gradient(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own, at the projected queries; 0 on salient elements."""
        projected, salience = self._sip_projection.project(x)
        return _masked(super().loss_gradient(projected, *args, **kwargs), salience)  # type: ignore[misc]

    def class_gradient(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own, at the projected queries; 0 on salient elements."""
        projected, salience = self._sip_projection.project(x)
        return _masked(super().class_gradient(projected, *args, **kwargs), salience)  # type: ignore[misc]


def projected_estimator(estimator: Any, projection: EstimatorProjection) -> Any:
    """An estimator of the same class and attributes, whose queries are projected."""
    stand_in: Any = object.__new__(_kind(type(estimator)))  # type: ignore[arg-type]
    vars(stand_in).update(vars(estimator), _sip_projection=projection)
    return stand_in


@functools.lru_cache(maxsize=32)
def _kind(kind: Any) -> Any:
    return type(kind)(f"Projected{kind.__name__}", (ProjectedEstimator, kind), {"__module__": __name__})


def _tensor(x: Any) -> Tensor:
    array = np.asarray(x)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _masked(gradient: Any, salience: Tensor | None) -> Any:
    """A gradient that is 0 on salient elements: ``(N, C, H, W)``, or ``(N, K, C, H, W)`` for each of K classes."""
    if salience is None:
        return gradient
    values = gradient if isinstance(gradient, Tensor) else _tensor(gradient)
    if values.dim() > salience.dim():
        salience = salience[:, None]
    masked = values.masked_fill(salience, 0)
    return masked if isinstance(gradient, Tensor) else masked.numpy()


# --- for the length of a call ---------------------------------------------------------------------------------------------


@contextmanager
def estimators_projected(
    attack: EvasionAttack, projection: EstimatorProjection, value_range: tuple[Any, Any] | None
) -> Iterator[None]:
    """Put projecting stand-ins in place of every estimator that an attack, or one it is built upon, holds."""
    made: dict[int, Any] = {}
    with ExitStack() as stack:
        for holder in (attack, *inner_attacks(attack)):
            for name, held in list(vars(holder).items()):
                if not isinstance(held, BaseEstimator):
                    continue
                if id(held) not in made:
                    made[id(held)] = projected_estimator(held, projection)
                    if value_range is not None:
                        made[id(held)]._clip_values = value_range
                stack.enter_context(patched_attribute(holder, name, made[id(held)]))
        yield


@contextmanager
def starts_projected(attack: EvasionAttack, method: str, projection: EstimatorProjection) -> Iterator[None]:
    """Tell the projection which image a starting point is sought for: its queries are far from any."""
    find = getattr(attack, method)
    index = -1

    def find_start(*args: Any, **kwargs: Any) -> Any:
        nonlocal index
        index += 1
        with projection.only(index):
            return find(*args, **kwargs)

    with patched_attribute(attack, method, find_start):
        yield


@contextmanager
def preserve_classifier_state(estimator: Any) -> Iterator[None]:
    """Put back what ART changes in a classifier and its network (attacks ask a stand-in, which takes the rest)."""
    wrapper: Any = getattr(estimator, "_model", None)
    training = getattr(wrapper, "training", None)
    optimizer = vars(estimator).get("_optimizer")  # which a parallel AutoAttack takes away
    with preserve_model_state(estimator.model):
        try:
            yield
        finally:
            if optimizer is not None:
                estimator._optimizer = optimizer
            if training is not None:
                wrapper.training = training


@contextmanager
def budgets_of(attack: EvasionAttack, rows: np.ndarray, count: int) -> Iterator[None]:
    """Cut budgets that an attack holds for each of ``count`` images to some of them."""
    with ExitStack() as stack:
        for holder in (attack, *inner_attacks(attack)):
            for name in ("eps", "eps_step"):
                held = vars(holder).get(name)
                if isinstance(held, np.ndarray) and held.ndim == 4 and len(held) == count:
                    stack.enter_context(patched_attribute(holder, name, held[rows]))
        yield


@contextmanager
def silent_progress(attack: EvasionAttack) -> Iterator[bool]:
    """Silence an attack's own progress bars, which know of one part at a time; give whether they were wanted."""
    verbose = bool(getattr(attack, "verbose", False))
    if not verbose:
        yield False
        return
    attack.set_params(verbose=False)
    try:
        yield True
    finally:
        attack.set_params(verbose=True)


def inner_attacks(attack: Any) -> list[Any]:
    """The attacks that an attack is built upon: ProjectedGradientDescent hands its calls to the one for its framework."""
    return [held for held in vars(attack).values() if isinstance(held, Attack)]


def network_dtype(estimator: Any) -> torch.dtype:
    """The dtype of queries; ART's own is float32, but some attacks compute in float64 on NumPy 2."""
    parameters = (p.dtype for p in estimator.model.parameters() if p.is_floating_point())
    return torch.float64 if next(parameters, None) is torch.float64 else torch.float32
