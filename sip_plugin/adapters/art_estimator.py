"""A stand-in for an ART classifier that projects every query, in the attack's own space: before any preprocessing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.adapters.projection import BatchProjection, RowSelections
from sip_plugin.constraint import project


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
