"""An attack of an unknown library: anything called as ``attack(images, labels)`` that keeps its network in ``.model``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sip_plugin.adapters.base import Batch, SalienceAttack, concat, project_result
from sip_plugin.adapters.projection import (
    BatchProjection,
    ProjectedModel,
    counted_calls,
    model_replaced,
    warn_if_not_queried,
)
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state


class SalienceCallable(SalienceAttack):
    """An ``attack(images, labels)`` with a ``.model``, every query of which is projected."""

    def __init__(self, attack: Any, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        super().__init__(attack, mask_fn, one_by_one=one_by_one)
        with model_replaced(attack, ProjectedModel(attack.model)):
            pass  # an attack whose model cannot be replaced is refused now and not at its first call

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *args: Any,
        mask: SalienceMap | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Adversarial images ``(N, C, H, W)`` that equal the clean ones on salient elements.

        ``images`` are in ``[0, 1]``, ``labels`` class indices ``(N,)``, or None where the attack needs none. ``mask`` is the
        map for this call, in place of ``mask_fn``; further arguments are the attack's own. Raises a ``TypeError`` or
        ``ValueError`` if images, labels or map do not fit.
        """
        with self._lock, preserve_model_state(self.wrapped.model):
            check_images(images)
            images = images.detach()
            labels = None if labels is None else check_labels(labels, images)
            batch = Batch(images, labels, self.salience(images, labels, mask), args, kwargs)

            def run(alone: bool) -> Tensor:
                return concat(*map(self._attack, batch.split(1 if alone else len(images))))

            return self._alone_if_need_be(run, batch.salience)

    def _attack(self, batch: Batch) -> Tensor:
        projection = BatchProjection(batch.images, batch.salience)
        stand_in = ProjectedModel(self.wrapped.model, projection, labels=batch.labels)
        given = batch.images.clone()
        with counted_calls(self.wrapped.model) as calls, model_replaced(self.wrapped, stand_in):
            labels = () if batch.labels is None else (batch.labels,)
            adversarial = self.wrapped(given, *labels, *batch.args, **batch.kwargs)
        result = project_result(self.wrapped, adversarial, batch.images, batch.salience)
        warn_if_not_queried(self.wrapped, stand_in.queried, torch.equal(result, batch.images), len(calls))
        return result
