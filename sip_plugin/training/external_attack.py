"""Another library's attack in the place of the built-in search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sip_plugin.checks import check_images
from sip_plugin.training.method import Method
from sip_plugin.wrapper import SIPWrapper


class ExternalAttack:
    """An attack that is called as ``attack(images, labels)``, or one of ART's with ``attack.generate``.

    Args:
        attack: The attack, bare or wrapped in ``SIPWrapper``; also a bound method such as
            ``AutoAttack(...).run_standard_evaluation``. It attacks the network that it was made for.
        method: The method whose search it stands in for.

    Raises:
        TypeError: If it is not such an attack.
        ValueError: If the method has no search that it could stand in for, or needs maps that a bare attack cannot keep.
    """

    def __init__(self, attack: Any, method: Method) -> None:
        self._attack = attack
        self._of_art = callable(getattr(attack, "generate", None))
        self.wrapped = isinstance(getattr(attack, "__self__", attack), SIPWrapper)
        if isinstance(attack, type) or not (self._of_art or callable(attack)):
            raise TypeError(
                "attack must be called as attack(images, labels) or have ART's generate(x, y), got "
                f"{attack if isinstance(attack, type) else type(attack).__name__}."
            )
        if not method.takes_attack:
            why = "its search is part of the method" if method.adversarial else "it has no search"
            raise ValueError(f"{method.name!r} takes no other attack: {why}.")
        if method.needs_salience:
            self.check_keeps_salience(f"{method.name!r}")
        bounds = getattr(getattr(attack, "estimator", None), "clip_values", None) if self._of_art else None
        if bounds is not None and not (np.all(np.equal(bounds[0], 0)) and np.all(np.equal(bounds[1], 1))):
            raise ValueError(f"The attack's estimator must have clip_values=(0, 1), as the images have, got {bounds}.")

    def check_keeps_salience(self, who: str) -> None:
        """Refuse a bare attack where there is a map, which it would ignore.

        Raises:
            ValueError: If the attack is not wrapped.
        """
        if not self.wrapped:
            name = type(self._attack).__name__
            raise ValueError(
                f"{who} needs an attack that leaves salient elements alone, got a bare {name}. Wrap it: "
                f"attack=SIPWrapper({name}(...), mask_fn)."
            )

    def __call__(self, images: Tensor, labels: Tensor, salience: Tensor | None) -> Tensor:
        """Adversarial images ``(N, C, H, W)`` without a graph, on the device and of the dtype of ``images``.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``.
            salience: The map of the batch; None if there is none, or the wrapped attack is to use its own.

        Raises:
            RuntimeError: If the attack gives something else.
            ValueError: If there is a map and the attack is bare, the attack is a targeted one (it would take the labels for
                targets and make the images easier), or its images are not in ``[0, 1]``.
        """
        if getattr(getattr(self._attack, "__self__", self._attack), "targeted", False):
            raise ValueError(f"Training needs an untargeted attack, got a targeted one: {self!r}.")
        if salience is not None:
            self.check_keeps_salience("A salience map")
        # A copy: what an attack does to its images (marks them for a gradient) is its own affair.
        found = (
            self._generate(images, labels, salience) if self._of_art else self._call(images.clone(), labels, salience)
        )
        if not isinstance(found, Tensor) or found.shape != images.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RuntimeError(f"{self!r} gave {got} where images of shape {tuple(images.shape)} were expected.")
        found = found.detach().to(images)
        check_images(found, name=f"What {type(self._attack).__name__} gave", tolerance=1e-4)
        return found

    def _call(self, images: Tensor, labels: Tensor, salience: Tensor | None) -> Any:
        with torch.enable_grad():
            if salience is None:
                return self._attack(images, labels)
            return self._attack(images, labels, mask=salience)

    def _generate(self, images: Tensor, labels: Tensor, salience: Tensor | None) -> Any:
        x = images.cpu().numpy()
        y = F.one_hot(labels, self._attack.estimator.nb_classes).float().cpu().numpy()
        with torch.enable_grad():
            if salience is None:
                found = self._attack.generate(x=x, y=y)
            else:
                found = self._attack.generate(x=x, y=y, salience=salience.cpu().numpy())
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else found

    def __repr__(self) -> str:
        return repr(self._attack)
