"""Attacks of an evaluation, from any library or of one's own; and the forward pass that verifies what they find."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm

AttackFactory = Callable[[nn.Module, float], Any]
"""``(model, eps) -> attack``: makes an attack for one ε.

An attack is called as ``attack(images, labels)``, ``attack.generate(x=, y=)`` with NumPy arrays (ART) or
``attack.run_standard_evaluation(images, labels)``, and returns adversarial images.
"""

_METHODS = ("generate", "run_standard_evaluation")
_OF_ATTACKS = ("model", "estimator", "predict", "eps", *_METHODS)  # what attack objects have, and factories have not


@dataclass
class Attack:
    """One attack of an evaluation.

    Attributes:
        name: What the report calls it.
        model: The attacked network.
        runs: How many times it is called for an image that it does not break (the targets of a targeted attack).
        cost: Roughly how many forward passes all of its runs take for such an image, relatively to other attacks.
        minimum_norm: Whether it looks for the smallest perturbation whatever ε is, without drawing at random. Then each
            run is called once per image, and what it finds serves every ε.
        black_box: Whether it uses the network's outputs alone, and not their gradient; None if nobody knows.
    """

    name: str
    model: nn.Module
    runs: int = 1
    cost: float = 1.0
    minimum_norm: bool = False
    black_box: bool | None = None

    def notes(self, eps: float) -> list[str]:
        """What a reader of the report should know of this attack; fails now rather than later if there is none for ε."""
        raise NotImplementedError

    def __call__(self, images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        """Look for adversarial examples.

        Args:
            images: ``(N, C, H, W)`` on the network's device; may be written to.
            labels: ``(N,)``.
            eps: The radius.
            seed: What all randomness follows from, the same for all batches of one attack at one ε.
            rows: Indices of the images in the evaluated set, ``(N,)``, on the CPU.
            run: The number of the run.

        Returns:
            Candidates, as many of the same shape.
        """
        raise NotImplementedError


@dataclass
class CallableAttack(Attack):
    """An attack that a factory makes for each ε."""

    factory: AttackFactory = field(kw_only=True)
    _made: dict[float, Any] = field(default_factory=dict)

    def notes(self, eps: float) -> list[str]:
        """Warns of an attack that a map restricts."""
        if not hasattr(self._attack(eps), "mask_fn"):
            return []
        return [
            f"{self.name} was restricted by salience maps (SIPWrapper): what it leaves is no robust accuracy in the usual "
            "sense."
        ]

    def __call__(self, images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        """Seed all generators, and run the attack.

        Raises:
            TypeError: If it does not return floating-point images.
            ValueError: If they are not finite or not in [0, 1].
        """
        seed = derive_seed(seed, int(rows[0]))
        torch.default_generator.manual_seed(seed)
        if images.is_cuda:
            torch.cuda.manual_seed(seed)  # the current device, which is the network's
        np.random.seed(seed % 2**32)
        random.seed(seed)
        attack = self._attack(eps)
        with torch.enable_grad():
            if hasattr(attack, "generate"):
                found = torch.from_numpy(np.asarray(attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())))
            elif hasattr(attack, "run_standard_evaluation"):
                found = attack.run_standard_evaluation(images, labels)
                found = found[0] if isinstance(found, (tuple, list)) else found  # some versions also return the labels
            else:
                found = attack(images, labels)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            given = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"Attack {self.name!r} must give floating-point images in [0, 1], got {given}.")
        if found.shape == images.shape:  # otherwise the verification says which shape is due
            self._check_values(found.detach(), rows)
        return found.to(images.device)

    def _check_values(self, found: Tensor, rows: Tensor) -> None:
        """An attack that failed must not pass for one that found nothing."""
        failed = rows[~found.isfinite().flatten(1).all(1).cpu()].tolist()
        if failed:
            raise ValueError(
                f"Attack {self.name!r} must give finite images, got NaN or infinity in image(s) "
                f"{', '.join(map(str, failed[:10]))}{', ...' * (len(failed) > 10)} of the data. An image that it does not "
                "break it must give back unchanged; otherwise its failure would count as robustness."
            )
        low, high = (bound.item() for bound in found.aminmax())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"Attack {self.name!r} must give images in [0, 1], got values from {low:g} to {high:g}.")

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


def parse_attacks(attack: str | AttackFactory | Mapping[str, AttackFactory | str]) -> dict[str, AttackFactory | str]:
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
        if isinstance(factory, str):
            if factory != "autoattack":
                raise ValueError(f'attack must be "autoattack" or a factory (model, eps) -> attack, got {factory!r}.')
        elif not isinstance(factory, type) and any(hasattr(factory, name) for name in _OF_ATTACKS):
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


def run_batch(
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    eps: float,
    seed: int,
    rows: Tensor,
    done: Tensor,
    radii: Sequence[float],
    norm: Norm,
) -> dict[str, Tensor]:
    """Attack some images at one ε (see :meth:`Attack.__call__`), and verify what is found for all ``radii``.

    ``done`` says how many of the attack's runs each image has had, ``(N,)``. A run is left out for an image that is broken
    within ε; it may be needed at a smaller one.

    Returns:
        On the CPU: ``norms`` of the smallest example found of each image, infinite where there is none, ``(N,)`` float64;
        the ``examples`` ``(N, C, H, W)``; whether the network gave ``nan`` for it, ``(N,)``; ``done`` as it is now.
    """
    done, examples, nan = done.clone(), images.to("cpu", copy=True), torch.zeros(len(images), dtype=torch.bool)
    norms = torch.full((len(images),), torch.inf, dtype=torch.float64)
    for run in range(attack.runs):
        todo = ((done == run) & (norms > eps)).nonzero().flatten()
        if not len(todo):
            continue
        on_device = todo.to(images.device)
        candidates = attack(images[on_device], labels[on_device], eps, seed, rows[todo], run)
        found = verified_norms(attack.model, images[on_device], labels[on_device], candidates, radii, norm)
        better = found[0] < norms[todo]
        for kept, new in zip((norms, examples, nan), found, strict=True):
            kept[todo[better]] = new[better]
        done[todo] += 1
    return {"norms": norms, "examples": examples, "nan": nan, "done": done}


def verified_norms(
    model: nn.Module, images: Tensor, labels: Tensor, candidates: Tensor, radii: Sequence[float], norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify by a forward pass what an attack calls adversarial examples of images ``(N, C, H, W)``.

    Candidates are clipped to ``[0, 1]``, and where only rounding put one outside a ball, to that ball. A network that gives
    NaN for one is fooled by it.

    Returns:
        On the CPU: the norm of each perturbation, infinite where the network is not fooled, ``(N,)`` float64; the clipped
        candidates; where the network gave NaN, ``(N,)``.

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
    examples = clip_rounding(torch.where(examples.isnan(), clean, examples).clamp(0, 1), clean, radii, norm)
    with torch.no_grad():
        logits = model(examples.to(images.device))
    nan = logits.isnan().any(1)
    fooled = (nan | (logits.argmax(1) != labels)).cpu()
    norms = perturbation_norms(examples, clean, norm)
    return torch.where(fooled & (norms > 0), norms, torch.inf), examples, nan.cpu()


def perturbation_norms(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """The norm of each image's perturbation, ``(N,)``, computed in float64."""
    delta = (adversarial.double() - images.double()).flatten(1)
    return delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)


def clip_rounding(adversarial: Tensor, images: Tensor, radii: Sequence[float], norm: Norm) -> Tensor:
    """Put images that float32 rounding alone has put outside a ball exactly inside it; leave the others as they are.

    Wherever :func:`perturbation_norms` was above one of the radii (ascending) by rounding, it no longer is.
    """
    slack = 4 * 2.0**-24 * (1.0 if norm == "Linf" else images[0].numel() ** 0.5)
    norms, result = perturbation_norms(adversarial, images, norm), adversarial.clone()
    for radius in radii:
        rows = (norms > radius) & (norms <= radius + slack)
        if rows.any():
            result[rows] = _into_ball(adversarial[rows], images[rows], radius, norm)
    return result


def derive_seed(*parts: object) -> int:
    """A seed that follows from others; equal parts give equal seeds on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def _into_ball(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """The projection of images in ``[0, 1]`` to the ball, rounded towards the clean image: exactly inside, in float64."""
    if norm == "Linf":
        low, high = images.double() - eps, images.double() + eps
        result = torch.minimum(torch.maximum(adversarial.double(), low), high).to(images.dtype)
        above, below = result.double() > high, result.double() < low
        towards = torch.where(above, -torch.inf, torch.inf).to(result.dtype)
        return torch.where(above | below, torch.nextafter(result, towards), result)
    result = adversarial.clone()
    while (outside := (norms := perturbation_norms(result, images, norm)) > eps).any():
        scale = (eps / norms[outside] * (1 - 2.0**-20)).view(-1, *[1] * (images.dim() - 1))
        clean = images[outside].double()
        result[outside] = (clean + (result[outside].double() - clean) * scale).to(images.dtype)
    return result


def _name(attack: Any) -> str:
    if isinstance(attack, str):
        return attack
    while isinstance(attack, functools.partial):
        attack = attack.func
    name: str = getattr(attack, "__name__", type(attack).__name__)
    return "attack" if name == "<lambda>" else name
