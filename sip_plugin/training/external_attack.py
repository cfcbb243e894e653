"""Another library's attack in the place of the built-in search."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.training.method import Method
from sip_plugin.utils import takes_targets
from sip_plugin.wrapper import SIPWrapper


class ExternalAttack:
    """An attack that is called as ``attack(images, labels)``, or one of ART's with ``attack.generate``.

    Args:
        attack: The attack, bare or wrapped in ``SIPWrapper``; also a bound method such as
            ``AutoAttack(...).run_standard_evaluation``. It attacks the network that it was made for.
        method: The method whose search it stands in for.

    Raises:
        ValueError: If the method has no search that it could stand in for.
    """

    def __init__(self, attack: Any, method: Method) -> None:
        self._attack = attack
        self._owner = getattr(attack, "__self__", attack)
        if not method.takes_attack:
            why = "its search is part of the method" if method.adversarial else "it has no search"
            raise ValueError(f"{method.name!r} takes no other attack: {why}.")

    def check_keeps_salience(self) -> None:
        """Raise a ValueError for a bare attack, which would ignore the map that there is."""
        if not isinstance(self._owner, SIPWrapper):
            name = type(self._attack).__name__
            raise ValueError(
                f"With salience the attack must leave salient elements alone, got a bare {name}. Wrap it: "
                f"attack=SIPWrapper({name}(...), mask_fn)."
            )

    def __call__(self, images: Tensor, labels: Tensor, salience: Tensor | None) -> Tensor:
        """Adversarial images of the shape, device and dtype of ``images``, without a graph.

        ``salience`` is the map of the batch; None if there is none, or the wrapped attack is to use its own. Raises a
        ``TypeError`` or ``ValueError`` where there is a map and the attack is bare, and for what is no image in ``[0, 1]``.
        """
        if takes_targets(self._attack):
            raise ValueError(f"Training needs an untargeted attack, got a targeted one: {self!r}.")
        if salience is not None:
            self.check_keeps_salience()
        with torch.enable_grad():
            if callable(getattr(self._attack, "generate", None)):
                found = self._generate(images, labels, salience)
            else:
                # A copy: what an attack does to its images (marks them for a gradient) is its own affair.
                mask = {} if salience is None else {"mask": salience}
                found = self._attack(images.clone(), labels, **mask)
        found = found[0] if isinstance(found, (tuple, list)) else found  # AutoAttack gives the labels, too
        if isinstance(found, Tensor) and found.shape != images.shape:
            raise ValueError(f"{self!r} gave {tuple(found.shape)}, not images of shape {tuple(images.shape)}.")
        check_images(found, name=f"What {type(self._attack).__name__} gave", tolerance=1e-4)
        return found.detach().to(images)

    def _generate(self, images: Tensor, labels: Tensor, salience: Tensor | None) -> Tensor:
        y = F.one_hot(labels, self._attack.estimator.nb_classes).float()
        mask = {} if salience is None else {"salience": salience.cpu().numpy()}
        return torch.from_numpy(self._attack.generate(x=images.cpu().numpy(), y=y.cpu().numpy(), **mask))

    def __repr__(self) -> str:
        return repr(self._attack)
