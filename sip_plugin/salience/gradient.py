"""Salience from a teacher's input gradient (SIP-AT, eq. 7-8)."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_choice, check_classes, check_logits, output_gradient
from sip_plugin.model_state import eval_mode
from sip_plugin.salience.selection import ScoreSalience

Target = Literal["predicted", "true", "loss"]


class GradientSalience(ScoreSalience):
    """Salience maps from the gradient of a teacher: the fewest elements that hold half of its magnitude (eq. 7 and 8).

    With ``g = |∇_x T(x)|``, the map marks the ``k`` largest elements of ``g`` for the smallest ``k`` whose sum is at least
    ``mass · Σg``. One forward and one backward pass to the input per batch.

    Args:
        teacher: A classifier, images ``(N, C, H, W)`` to logits ``(N, classes)``. Runs in eval mode, and is left as it was.
        mass: The share of the gradient's magnitude that the map holds, in ``(0, 1]``.
        target: ``T``: the logit of the ``"predicted"`` class, of the ``"true"`` class, or the cross-entropy ``"loss"``; the
            last two need labels.
        per_pixel: Sum ``g`` over the channels first, so that a pixel is salient in all of them or in none.

    Raises:
        ValueError: If ``mass`` or ``target`` is not one of the above.
    """

    def __init__(
        self, teacher: nn.Module, mass: float = 0.5, *, target: Target = "predicted", per_pixel: bool = False
    ) -> None:
        check_choice("target", target, *get_args(Target))
        self.teacher = teacher
        super().__init__(mass, target)
        self.per_pixel = per_pixel

    def _scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        inputs = images.requires_grad_()
        with eval_mode(self.teacher):
            # It may write into its input, but not into a leaf.
            logits = check_logits(self.teacher(inputs.clone()), len(images), 1 + (self.target != "predicted"))
            classes = logits.argmax(1) if labels is None else labels
            check_classes(classes, logits)
            score = logits.gather(1, classes[:, None]).sum()
            if self.target == "loss":
                score = F.cross_entropy(logits, classes, reduction="sum")
            return output_gradient(score, inputs).abs()
