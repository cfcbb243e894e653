"""What an evaluation found: an outcome for each image at each ε, and the figures that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sip_plugin.checks import Norm

ROBUST = -1
"""Attacked by every attack at this ε, and still right."""
MISCLASSIFIED = -2
"""Wrong on the clean image, so not attacked."""
ASSUMED = -3
"""Not attacked at this ε, because it survived a larger one (``assume_survivors=True``)."""
CARRIED = -4
"""An adversarial example that was found at another ε lies in this ball too."""


@dataclass(frozen=True)
class RobustnessReport:
    """Clean and robust accuracy of one network, image by image.

    Attributes:
        eps: The radii, ascending.
        norm: ``"Linf"`` or ``"L2"``.
        attacks: Names of the attacks in the order in which they ran (for AutoAttack its stages).
        labels: Class indices, ``(N,)``.
        outcome: ``(len(eps), N)``, int64: the index of the attack that broke the image at that ε, or ``ROBUST``,
            ``MISCLASSIFIED``, ``ASSUMED`` or ``CARRIED``.
        broken_by: ``(N,)``, int64: index of the attack whose example broke the image at its smallest ε; -1 if none did.
        smallest_norm: ``(N,)``, float64: norm of the smallest perturbation found that breaks the image; 0 where the clean
            image is wrong, infinite where none was found.
        settings: What the evaluation was asked for, as plain JSON values (attack, version, seed, assume_survivors, …).
        warnings: What a reader should know before believing the figures, one sentence each.
        seconds: Wall time.
        adversarial: eps -> adversarial images ``(N, C, H, W)`` (the clean image where none was found), if asked for.
    """

    eps: tuple[float, ...]
    norm: Norm
    attacks: tuple[str, ...]
    labels: Tensor
    outcome: Tensor
    broken_by: Tensor
    smallest_norm: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    adversarial: dict[float, Tensor] | None = None
