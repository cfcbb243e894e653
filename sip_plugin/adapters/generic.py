"""An attack of an unknown library: anything called as ``attack(images, labels)`` that keeps its network in ``.model``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sip_plugin.adapters.base import SalienceAttack, project_result
from sip_plugin.adapters.projection import BatchProjection, ProjectedModel, model_replaced, warn_if_not_queried
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state


class SalienceCallable(SalienceAttack):
    """An ``attack(images, labels)`` with a ``.model``, every query of which is projected."""

    def __init__(self, attack: Any, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        super().__init__(attack, mask_fn, one_by_one=one_by_one)
        with model_replaced(attack, ProjectedModel(attack.model, None)):
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

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``, or None where the attack needs none.
            *args: The attack's own further arguments.
            mask: The map for this call, in place of ``mask_fn``.
            **kwargs: The attack's own further arguments.

        Raises:
            TypeError: If ``images``, ``labels`` or the map are of the wrong type.
            ValueError: If their shapes or values do not fit.
        """
        attack = self.wrapped
        with self._lock, preserve_model_state(attack.model):
            check_images(images)
            images = images.detach()
            labels = None if labels is None else check_labels(labels, images)
            salience = self.salience(images, labels, mask)
            return self._attack_rows(images, labels, salience, args, kwargs)

    def _attack(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        stand_in = ProjectedModel(self.wrapped.model, BatchProjection(images, salience))
        with model_replaced(self.wrapped, stand_in):
            given = (images.clone(),) if labels is None else (images.clone(), labels)
            adversarial = self.wrapped(*given, *args, **kwargs)
        result = project_result(self.wrapped, adversarial, images, salience)
        warn_if_not_queried(self.wrapped, stand_in, torch.equal(result, images))
        return result
