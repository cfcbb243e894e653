"""Salience from a teacher's input gradient (SIP-AT, eq. 7-8)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_images
from sip_plugin.model_state import eval_mode
from sip_plugin.salience.selection import binarize, check_finite, check_mass, require_labels

Target = Literal["predicted", "true", "loss"]


class GradientSalience:
    """Salience maps from the gradient of a teacher: the fewest elements that hold half of its magnitude.

    With ``g = |∇_x T(x)|``, the map marks the ``k`` largest elements of ``g`` for the smallest ``k`` whose sum is at least
    ``mass · Σg`` (eq. 7 and 8). Adversarially trained teachers give maps that follow the object; SIP-S uses a Madry-trained
    WideResNet-34 for CIFAR. One forward and one backward pass to the input per batch.

    Args:
        teacher: A classifier, images ``(N, C, H, W)`` to logits ``(N, classes)``. Runs in eval mode, and is left as it was.
        mass: The share of the gradient's magnitude that the map holds, in ``(0, 1]``.
        target: ``T``: the logit of the ``"predicted"`` class, of the ``"true"`` class, or the cross-entropy ``"loss"``; the
            last two need labels.
        per_pixel: Sum ``g`` over the channels first, so that a pixel is salient in all of them or in none.

    Raises:
        TypeError: If ``teacher`` is not an ``nn.Module``.
        ValueError: If ``mass`` or ``target`` is not one of the above.

    Example:
        >>> mask_fn = GradientSalience(teacher)
        >>> salience = mask_fn(images)  # bool, the images' shape
    """

    def __init__(
        self, teacher: nn.Module, mass: float = 0.5, *, target: Target = "predicted", per_pixel: bool = False
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher must be a torch.nn.Module, got {type(teacher).__name__}.")
        if target not in ("predicted", "true", "loss"):
            raise ValueError(f'target must be "predicted", "true" or "loss", got {target!r}.')
        self.teacher = teacher
        self.mass = check_mass(mass)
        self.target = target
        self.per_pixel = per_pixel

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the maps of a batch.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``; only used where ``target`` needs them.

        Returns:
            ``bool``, ``(N, C, H, W)``; 1 marks a salient element.

        Raises:
            TypeError: If ``images`` or ``labels`` are of the wrong type.
            ValueError: If their shapes or values do not fit, labels are missing, or a gradient is NaN or infinite.
        """
        return binarize(self.magnitude(images, labels), self.mass, per_pixel=self.per_pixel)

    def magnitude(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns ``|∇_x T(x)|``, the scores that the map is selected from; arguments and errors as of a call.

        Returns:
            Non-negative and finite, ``(N, C, H, W)``.
        """
        check_images(images)
        magnitude = self._gradient(images, labels).abs()
        check_finite(magnitude, "The teacher's gradient")
        return magnitude

    def __repr__(self) -> str:
        return (
            f"GradientSalience({type(self.teacher).__name__}, mass={self.mass:g}, target={self.target!r}, "
            f"per_pixel={self.per_pixel})"
        )

    def _gradient(self, images: Tensor, labels: Tensor | None) -> Tensor:
        labels = None if self.target == "predicted" else require_labels(self.target, labels, images)
        # A caller may be inside no_grad or inference_mode (a validation step); a map needs its gradient all the same.
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(self.teacher):
            inputs = images.detach().clone().requires_grad_()
            logits = self.teacher(inputs.clone())  # it may write into its input, but not into a leaf
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"The teacher must give logits of shape ({len(images)}, classes), got {got}.")
            if not logits.requires_grad:  # it does not depend on the images: empty maps
                return torch.zeros_like(inputs)
            if labels is not None:
                check_classes(labels, logits)
            if self.target == "loss":
                score = F.cross_entropy(logits, labels, reduction="sum")  # type: ignore[arg-type]
            else:
                classes = logits.argmax(1) if labels is None else labels
                score = logits.gather(1, classes[:, None]).sum()
            return torch.autograd.grad(score, inputs)[0]
