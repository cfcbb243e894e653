"""What an attack is asked and what it answers, whichever library it is from; and who checks the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm
from sip_plugin.evaluation.balls import into_nearest_ball, perturbation_norms


def derived_seed(*parts: object) -> int:
    """A seed that follows from others; equal parts give equal seeds on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


class Verdict(NamedTuple):
    """What candidates are worth: :class:`Attempt`'s first fields."""

    norms: Tensor
    examples: Tensor
    nan: Tensor


@dataclass(frozen=True)
class Judge:
    """Verifies by the network's own forward pass what an attack calls an adversarial example."""

    model: nn.Module
    radii: Sequence[float]
    norm: Norm

    def __call__(self, images: Tensor, labels: Tensor, candidates: Tensor) -> Verdict:
        """The norm of each candidate's perturbation, infinite where the network is not fooled, and the candidate.

        Candidates are clipped to ``[0, 1]``, and where only rounding put one outside a ball, to that ball. A network that
        gives NaN for one is fooled by it.

        Args:
            images: Clean images on the network's device, ``(N, C, H, W)``.
            labels: ``(N,)``.
            candidates: What the attack gave, ``(N, C, H, W)``.

        Returns:
            All on the CPU.

        Raises:
            ValueError: If the attack gave something of another shape.
        """
        if candidates.shape != images.shape:
            raise ValueError(
                f"The attack was given images of shape {tuple(images.shape)} and must give as many of the same shape, got "
                f"{tuple(candidates.shape)}."
            )
        clean = images.cpu()
        examples = candidates.detach().to("cpu", clean.dtype)
        examples = torch.where(examples.isnan(), clean, examples).clamp(0, 1)
        examples = into_nearest_ball(examples, clean, self.radii, self.norm)
        with torch.no_grad():
            logits = self.model(examples.to(images.device))
        nan = logits.isnan().any(1)
        fooled = (nan | (logits.argmax(1) != labels)).cpu()
        norms = perturbation_norms(examples, clean, self.norm)
        return Verdict(torch.where(fooled & (norms > 0), norms, torch.inf), examples, nan.cpu())


@dataclass(frozen=True)
class Batch:
    """Some images for an attack.

    Attributes:
        images: ``(N, C, H, W)`` on the network's device.
        labels: ``(N,)``.
        rows: Their indices in the whole set, ``(N,)``, on the CPU.
        done: How many of the attack's parts each image has had (see :class:`Stage`), ``(N,)``, on the CPU.
        eps: The radius to attack at.
        seed: The same for all batches of one attack at one ε.
        judge: Verifies candidates.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    done: Tensor
    eps: float
    seed: int
    judge: Judge


@dataclass(frozen=True)
class Attempt:
    """What came of attacking a batch; all on the CPU.

    Attributes:
        norms: Norm of the example found for each image, infinite where there is none, ``(N,)`` float64.
        examples: ``(N, C, H, W)``.
        nan: Whether the network gave NaN for the example, ``(N,)`` bool.
        done: How many of the attack's parts each image has had now, ``(N,)``.
    """

    norms: Tensor
    examples: Tensor
    nan: Tensor
    done: Tensor


class Stage(Protocol):
    """One attack of an evaluation."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def cost(self) -> float:
        """Roughly how many forward passes it takes for an image that it cannot break."""

    @property
    def parts(self) -> int:
        """0 for an attack that runs anew at each ε.

        A minimum-norm attack does not depend on ε: it consists of this many parts, each of which is run once per image, and
        what it finds serves every ε.
        """

    def notes(self, eps: float) -> list[str]:
        """What a reader of the report should know of this attack; made ready for one ε, it fails now or works later."""

    def attack(self, batch: Batch) -> Attempt:
        """Look for adversarial examples."""
