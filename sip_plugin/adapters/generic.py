"""An attack of an unknown library: anything called as ``attack(images, labels)`` that keeps its network in ``.model``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sip_plugin.adapters.base import SalienceAttack, project_result
from sip_plugin.adapters.projection import BatchProjection, projected_model
from sip_plugin.constraint import SalienceMap, check_images, check_labels
from sip_plugin.state import preserved


class SalienceCallable(SalienceAttack):
    """An ``attack(images, labels)`` with a ``.model``, every query of which is projected."""

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
        with self._lock, preserved(attack.model):
            check_images(images)
            images = images.detach()
            labels = None if labels is None else check_labels(labels, images)
            salience = self.salience(images, labels, mask)
            return self._attack_rows(images, labels, salience, args, kwargs)

    def _attack(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        with _model_swapped(self.wrapped, BatchProjection(images, salience)):
            given = (images.clone(),) if labels is None else (images.clone(), labels)
            adversarial = self.wrapped(*given, *args, **kwargs)
        return project_result(self.wrapped, adversarial, images, salience)


@contextmanager
def _model_swapped(attack: Any, projection: BatchProjection) -> Iterator[None]:
    before = attack.model
    attack.model = projected_model(before, projection)
    try:
        yield
    finally:
        attack.model = before
