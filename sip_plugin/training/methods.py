"""The training methods: each a small class that says only in what it differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


class Method:
    """What an :class:`~sip_plugin.training.AdversarialTrainer` asks of a training method.

    The defaults are Madry's: search the images that the cross-entropy is largest at, and train on them.

    Attributes:
        name: The name that the trainer takes it by.
        adversarial: Whether there is an inner search at all.
        needs_salience: Whether it is an error to train without a map.
    """

    name = "method"
    adversarial = True
    needs_salience = False

    def objective(self, labels: Tensor) -> Callable[[Any], Tensor]:
        """What the inner search maximises: logits ``(N, classes)`` to a scalar, summed over the images."""
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")

    def loss(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The scalar that the caller's loop minimises, with its graph; runs in the mode the caller set."""
        return F.cross_entropy(network(adversarial), labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Standard(Method):
    """Cross-entropy on the clean images: no adversary, so no map is asked for either."""

    name = "standard"
    adversarial = False


class Madry(Method):
    """Adversarial training with projected gradient descent (Madry et al. 2018).

    With a salience map it is SIP-AT; without, every element has the budget ε.
    """

    name = "madry"


class SIPAT(Method):
    """Salient Information Preserving Adversarial Training (eq. 6 and 9): Madry with the budget ``ε·(1 − M)``."""

    name = "sip-at"
    needs_salience = True


METHODS: dict[str, type[Method]] = {method.name: method for method in (Standard, Madry, SIPAT)}
"""The methods by name."""


def as_method(method: str | Method) -> Method:
    """A method object from its name, or itself.

    Raises:
        TypeError: If it is neither.
        ValueError: If the name is unknown.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method object, got {method!r}. Names: {', '.join(METHODS)}.")
    if method not in METHODS:
        raise ValueError(f"Unknown training method {method!r}. Known: {', '.join(METHODS)}.")
    return METHODS[method]()
