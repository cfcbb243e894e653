"""Any attack as a stage of an evaluation: torchattacks, ART, AutoAttack, or a function of one's own."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.adapters.base import SalienceAttack
from sip_plugin.evaluation.stages import Attempt, Batch, derived_seed

AttackFactory = Callable[[nn.Module, float], Any]
"""``(model, eps) -> attack``: makes an attack for one ε.

An attack is called as ``attack(images, labels)``, ``attack.generate(x=, y=)`` with NumPy arrays (ART) or
``attack.run_standard_evaluation(images, labels)``, and gives adversarial images.
"""

_METHODS = ("generate", "run_standard_evaluation")
_HELD = ("model", "estimator", "predict", "eps", *_METHODS)  # what attack objects have, and factories have not


@dataclass
class FactoryStage:
    """An attack that a factory makes anew for each ε.

    Its random numbers follow from the seed, ε, its name and the batch's first image.
    """

    name: str
    factory: AttackFactory
    model: nn.Module
    cost: float = 1.0
    parts: int = 0
    _made: dict[float, Any] = field(default_factory=dict)

    def notes(self, eps: float) -> list[str]:
        """What a reader of the report should know of this attack."""
        if isinstance(self._attack(eps), SalienceAttack):
            return [
                f"{self.name} was restricted by salience maps (SIPWrapper): what it leaves is no robust accuracy in the "
                "usual sense."
            ]
        return []

    def attack(self, batch: Batch) -> Attempt:
        """Run the attack on the whole batch.

        Raises:
            TypeError: If it gives no floating-point images.
            ValueError: If they are not finite, not in [0, 1], or not of the shape it was given.
        """
        seed = derived_seed(batch.seed, int(batch.rows[0]))
        torch.default_generator.manual_seed(seed)
        if batch.images.is_cuda:
            torch.cuda.manual_seed(seed)  # the current device, which is the network's
        np.random.seed(seed % 2**32)
        random.seed(seed)
        with torch.enable_grad():
            candidates = self._run(self._attack(batch.eps), batch.images.clone(), batch.labels.clone())
        if candidates.shape == batch.images.shape:  # otherwise the judge says which shape is due
            self._check_values(candidates, batch.rows)
        return Attempt(*batch.judge(batch.images, batch.labels, candidates), batch.done)

    def _attack(self, eps: float) -> Any:
        if eps not in self._made:
            attack = self.factory(self.model, eps)
            if not callable(attack) and not any(hasattr(attack, name) for name in _METHODS):
                raise TypeError(
                    f"The factory of attack {self.name!r} must give an attack, which is called as attack(images, labels), "
                    f".generate(x=, y=) or .run_standard_evaluation(images, labels), got {type(attack).__name__}."
                )
            if any(kind.__module__.partition(".")[0] == "foolbox" for kind in type(attack).__mro__):
                raise TypeError(
                    f"Attack {self.name!r} is one of Foolbox, which takes its network and eps at the call. Have the factory "
                    "give a function: lambda images, labels: attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, "
                    "labels, epsilons=eps)[1]."
                )
            self._made[eps] = attack
        return self._made[eps]

    def _run(self, attack: Any, images: Tensor, labels: Tensor) -> Tensor:
        if hasattr(attack, "generate"):
            found = torch.from_numpy(np.asarray(attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())))
        elif hasattr(attack, "run_standard_evaluation"):
            found = attack.run_standard_evaluation(images, labels)
            found = found[0] if isinstance(found, (tuple, list)) else found  # some versions also give the labels
        else:
            found = attack(images, labels)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            given = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"Attack {self.name!r} must give floating-point images in [0, 1], got {given}.")
        return found.to(images.device)

    def _check_values(self, candidates: Tensor, rows: Tensor) -> None:
        """An attack that failed must not pass for one that found nothing."""
        failed = rows[~candidates.detach().isfinite().flatten(1).all(1).cpu()].tolist()
        if failed:
            raise ValueError(
                f"Attack {self.name!r} must give finite images, got NaN or infinity in image(s) "
                f"{', '.join(map(str, failed[:10]))}{', ...' * (len(failed) > 10)} of the data. An image that it does not "
                "break it must give back unchanged; otherwise its failure would count as robustness."
            )
        low, high = (bound.item() for bound in candidates.detach().aminmax())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"Attack {self.name!r} must give images in [0, 1], got values from {low:g} to {high:g}.")


def factories(attack: str | AttackFactory | Mapping[str, AttackFactory | str]) -> dict[str, AttackFactory | str]:
    """The attacks of an evaluation by name.

    Raises:
        TypeError: If something is no factory, for instance an attack that was made already.
        ValueError: If there is no attack, or a string other than ``"autoattack"``.
    """
    named: dict[str, AttackFactory | str] = dict(attack) if isinstance(attack, Mapping) else {_name(attack): attack}
    if not named:
        raise ValueError(
            'attack must name one attack or more, got an empty mapping. For AutoAttack: attack="autoattack".'
        )
    for name, factory in named.items():
        if not isinstance(name, str):
            raise TypeError(f"The names of attacks must be strings, got {name!r}.")
        if isinstance(factory, str):
            if factory != "autoattack":
                raise ValueError(f'attack must be "autoattack" or a factory (model, eps) -> attack, got {factory!r}.')
        elif not isinstance(factory, type) and any(hasattr(factory, held) for held in _HELD):
            raise TypeError(
                f"attack={name!r} is an attack that was made already ({type(factory).__name__}), so its network and eps are "
                "fixed. Give a factory instead, which is called for each eps: lambda model, eps: "
                f"{type(factory).__name__}(model, eps=eps, ...)."
            )
        elif not callable(factory):
            raise TypeError(
                f"attack must be a factory (model, eps) -> attack, got {type(factory).__name__} for {name!r}."
            )
    return named


def _name(attack: Any) -> str:
    if isinstance(attack, str):
        return attack
    while isinstance(attack, functools.partial):
        attack = attack.func
    name: str = getattr(attack, "__name__", type(attack).__name__)
    return "attack" if name == "<lambda>" else name
