"""A stand-in for an ART classifier that projects every query, in the attack's own space: before any preprocessing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack, EvasionAttack
from art.estimators.estimator import BaseEstimator
from torch import Tensor

from sip_plugin.adapters.base import attacks_in
from sip_plugin.adapters.projection import BatchProjection, salience_rows
from sip_plugin.constraint import project
from sip_plugin.model_state import preserve_model_state
from sip_plugin.utils import patched_attribute

_CPU = torch.device("cpu")


@dataclasses.dataclass
class EstimatorProjection:
    """``P_x`` for arrays and tensors.

    Attributes:
        batch: ``P_x`` for tensors on the CPU.
        dtype: What queries are cast to.
        masked: Whether the attack's own mask keeps it from changing salient elements, so that queries about part of the
            batch are left as they are.
        in_place: Whether a query is its attack's iterate, and is projected in place.
        exempt: Other images of which an attack asks, which are no iterates of these.
        queried: Whether any query came this way.
    """

    batch: BatchProjection
    dtype: torch.dtype
    masked: bool = False
    in_place: bool = False
    exempt: Tensor | None = None
    queried: bool = False

    def __post_init__(self) -> None:
        self._batches = {_CPU: self.batch}

    def project(self, x: Any) -> tuple[Any, Tensor | None]:
        """Queries with their clean values on salient elements, and their maps; None for images that are exempt."""
        self.queried = True
        queries = x if isinstance(x, Tensor) else _tensor(x)
        if not queries.is_floating_point():
            queries = queries.to(self.dtype)
        batch = self._on(queries.device)
        exempt = self.exempt is not None and torch.equal(queries.detach(), self.exempt.to(queries))
        if exempt or (self.masked and len(queries) < len(batch.images)):
            return x, None
        salience = None
        if not batch.free:
            images, salience = batch.rows(queries)
            projected = project(queries, images, salience)
            if self.in_place and not queries.requires_grad:
                queries.copy_(projected)
            queries = projected
        queries = queries.to(self.dtype)
        return (queries if isinstance(x, Tensor) else queries.numpy()), salience

    def only(self, index: int) -> AbstractContextManager[None]:
        """For the length of a block all queries are of one image."""
        rows = slice(index, index + 1)
        part = BatchProjection(self.batch.images[rows], salience_rows(self.batch.salience, rows))
        return patched_attribute(self, "_batches", {_CPU: part})

    def _on(self, device: torch.device) -> BatchProjection:
        if device not in self._batches:
            batch = self._batches[_CPU]
            images, salience = batch.images.to(device), batch.salience.to(device)
            self._batches[device] = BatchProjection(images, salience, selections=batch.selections)
        return self._batches[device]


class ProjectedEstimator:
    """The methods by which an attack asks a classifier, each with its queries projected and its gradients masked.

    A mixin before the classifier's own class, on an object that shares all of the classifier's attributes.
    """

    _sip_projection: EstimatorProjection


def _projecting(name: str) -> None:
    def method(self: ProjectedEstimator, x: Any, *args: Any, **kwargs: Any) -> Any:
        projected, salience = self._sip_projection.project(x)
        result = getattr(super(ProjectedEstimator, self), name)(projected, *args, **kwargs)
        return _masked(result, salience) if name.endswith("gradient") else result

    setattr(ProjectedEstimator, name, method)


for _name in ("predict", "compute_loss", "get_activations", "loss_gradient", "class_gradient"):
    _projecting(_name)


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
    masked = values.masked_fill(salience[:, None] if values.dim() > salience.dim() else salience, 0)
    return masked if isinstance(gradient, Tensor) else masked.numpy()


# --- for the length of a call ---------------------------------------------------------------------------------------------


@contextmanager
def estimators_projected(
    attack: EvasionAttack, projection: EstimatorProjection, value_range: tuple[Any, Any] | None
) -> Iterator[None]:
    """Put projecting stand-ins in place of every estimator that an attack, or one it is built upon, holds."""
    made: dict[int, Any] = {}
    with ExitStack() as stack:
        for holder in (attack, *attacks_in(attack, Attack)):
            for name, held in list(vars(holder).items()):
                if not isinstance(held, BaseEstimator):
                    continue
                if id(held) not in made:
                    stand_in = made[id(held)] = object.__new__(_kind(type(held)))  # type: ignore[arg-type]
                    vars(stand_in).update(vars(held), _sip_projection=projection)
                    if value_range is not None:
                        stand_in._clip_values = value_range
                stack.enter_context(patched_attribute(holder, name, made[id(held)]))
        yield


@contextmanager
def starts_projected(attack: EvasionAttack, method: str, projection: EstimatorProjection) -> Iterator[None]:
    """Tell the projection which image a starting point is sought for: its queries are far from any."""
    find = getattr(attack, method)
    indices = itertools.count()

    def find_start(*args: Any, **kwargs: Any) -> Any:
        with projection.only(next(indices)):
            return find(*args, **kwargs)

    with patched_attribute(attack, method, find_start):
        yield


@contextmanager
def preserve_classifier_state(estimator: Any) -> Iterator[None]:
    """Put back what ART changes in a classifier and its network (attacks ask a stand-in, which takes the rest)."""
    # ART's own module around the network has a mode, too; a parallel AutoAttack takes the optimizer away.
    optimizer = patched_attribute(estimator, "_optimizer", vars(estimator).get("_optimizer"))
    with preserve_model_state(estimator.model, estimator._model), optimizer:
        yield


@contextmanager
def budgets_of(attack: EvasionAttack, rows: np.ndarray, count: int) -> Iterator[None]:
    """Cut budgets that an attack holds for each of ``count`` images to some of them."""
    with ExitStack() as stack:
        for holder in (attack, *attacks_in(attack, Attack)):
            for name in ("eps", "eps_step"):
                held = vars(holder).get(name)
                if isinstance(held, np.ndarray) and held.ndim == 4 and len(held) == count:
                    stack.enter_context(patched_attribute(holder, name, held[rows]))
        yield


def network_dtype(estimator: Any) -> torch.dtype:
    """The dtype of queries; ART's own is float32, but some attacks compute in float64 on NumPy 2."""
    parameters = (p.dtype for p in estimator.model.parameters() if p.is_floating_point())
    return torch.float64 if next(parameters, None) is torch.float64 else torch.float32
