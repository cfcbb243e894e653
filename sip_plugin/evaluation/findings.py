"""What is known so far of each image at each ε, and what one finding says about the other balls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sip_plugin.evaluation.codes import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST

PENDING = -5
"""Not decided yet; no finished report has it."""


class Findings:
    """The table ``(eps, images)`` of outcomes, filled while attacks run.

    An example is credited to every ball that holds it: always to the larger ones, and to smaller ones if its norm allows.

    Args:
        radii: The ε, ascending.
        correct: Which clean images are classified correctly, ``(N,)`` bool.
        images: The clean images, if adversarial examples are to be kept.
    """

    def __init__(self, radii: Sequence[float], correct: Tensor, images: Tensor | None = None) -> None:
        count = len(correct)
        self.radii = tuple(radii)
        self.outcome = torch.full((len(self.radii), count), PENDING, dtype=torch.int64)
        self.outcome[:, ~correct] = MISCLASSIFIED
        self.smallest_norm = torch.where(correct, torch.inf, 0.0).double()
        self.smallest_by = torch.full((count,), -1, dtype=torch.int64)
        self.examples = None if images is None else images.clone()
        self.contradicted = [0] * len(self.radii)
        """For each ε how many images survived the whole attack though an example that was found later lies in the ball."""

    def pending(self, ball: int) -> Tensor:
        """Indices of the images that are still to be attacked in a ball."""
        return (self.outcome[ball] == PENDING).nonzero().flatten()

    def record(self, ball: int, attack: int, rows: Tensor, norms: Tensor, examples: Tensor | None = None) -> None:
        """Credit what an attack found in one ball to all balls.

        Args:
            ball: Index of the ε at which the attack ran.
            attack: Index of the attack.
            rows: Indices of the images, ``(n,)``.
            norms: Norm of the example found for each, infinite where there is none, ``(n,)`` float64.
            examples: The examples ``(n, C, H, W)``, if they are kept.
        """
        for k, radius in enumerate(self.radii):
            inside = rows[norms <= radius]
            known = self.outcome[k, inside]
            if k != ball:
                self.contradicted[k] += int((known == ROBUST).sum())
            open_ = (known == PENDING) | (known == ROBUST) | (known == ASSUMED)
            self.outcome[k, inside[open_]] = attack if k == ball else CARRIED
        better = norms < self.smallest_norm[rows]
        self.smallest_norm[rows[better]] = norms[better]
        self.smallest_by[rows[better]] = attack
        if self.examples is not None and examples is not None:
            self.examples[rows[better]] = examples[better]

    def close(self, ball: int, *, assume: bool) -> None:
        """Call what is still pending in a ball robust, and, if asked, in the smaller balls assumed so."""
        rows = self.pending(ball)
        self.outcome[ball, rows] = ROBUST
        if assume:
            smaller = self.outcome[:ball]
            smaller[:, rows] = torch.where(smaller[:, rows] == PENDING, ASSUMED, smaller[:, rows])

    def broken(self, ball: int) -> Tensor:
        """Which correctly classified images have an adversarial example in a ball, ``(N,)`` bool."""
        return (self.outcome[ball] >= 0) | (self.outcome[ball] == CARRIED)

    def broken_by(self) -> Tensor:
        """The attack whose example broke each image at its smallest ε, -1 where none did, ``(N,)``."""
        result = torch.full_like(self.smallest_by, -1)
        for ball in reversed(range(len(self.radii))):
            by = torch.where(self.outcome[ball] >= 0, self.outcome[ball], self.smallest_by)
            result = torch.where(self.broken(ball), by, result)
        return result

    def adversarial(self, images: Tensor) -> dict[float, Tensor] | None:
        """For each ε the smallest example found of each image if it lies in the ball, the clean image otherwise."""
        if self.examples is None:
            return None
        found = {radius: self.broken(ball).view(-1, 1, 1, 1) for ball, radius in enumerate(self.radii)}
        return {radius: torch.where(rows, self.examples, images) for radius, rows in found.items()}
