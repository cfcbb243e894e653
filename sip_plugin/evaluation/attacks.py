"""Attacks of an evaluation, from any library or of one's own; and the forward pass that verifies what they find."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm
from sip_plugin.utils import attack_name, isolated_rng, takes_targets

AttackFactory = Callable[[nn.Module, float], Any]
"""``(model, eps) -> attack``; see :func:`~sip_plugin.evaluation.evaluate_robustness`."""
Attacks = str | AttackFactory | Mapping[str, AttackFactory | str]
Verify = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

_OF_ATTACKS = ("model", "estimator", "predict", "eps", "generate", "run_standard_evaluation")  # factories have none


@dataclass
class Attack:
    """One attack of an evaluation: ``find(images, labels, eps, seed, rows, run)`` gives candidates for each image.

    ``rows`` are the images' indices in the evaluated set. All randomness follows from ``seed``, the same for all batches of
    one attack at one ε. ``run`` counts ``runs`` calls for an image that is not broken (the targets of a targeted attack). A
    ``minimum_norm`` attack looks for the smallest perturbation whatever ε is: each run is called once per image.
    """

    name: str
    find: Callable[[Tensor, Tensor, float, int, Tensor, int], Tensor]
    runs: int = 1
    minimum_norm: bool = False
    notes: tuple[str, ...] = ()  # for the reader of the report


def callable_attack(name: str, model: nn.Module, factory: AttackFactory, eps: float) -> Attack:
    """An attack that a factory makes for each ε, for ``eps`` at once; one that failed must not pass for a weak one."""
    made = functools.cache(functools.partial(factory, model))

    def find(images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        attack, shape = made(eps), images.shape
        model.eval()  # which the attack before may have left in train mode
        with isolated_rng(derive_seed(seed, int(rows[0]))), torch.enable_grad():
            if hasattr(attack, "generate"):
                found = torch.from_numpy(np.asarray(attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())))
            elif hasattr(attack, "run_standard_evaluation"):
                found = attack.run_standard_evaluation(images, labels)
            else:
                found = attack(images, labels)
        found = found[0] if isinstance(found, (tuple, list)) else found  # AutoAttack also returns the labels
        legal = (found >= -1e-3) & (found <= 1 + 1e-3)  # NaN is not
        failed = rows[~legal.flatten(1).all(1).cpu()] if found.shape == shape else rows
        if len(failed):
            raise ValueError(
                f"Attack {name!r} must give finite images in [0, 1] of the shape {tuple(shape)}, got others for image(s) "
                f"{failed.tolist()[:10]} of the data. An image that it does not break it must give back unchanged."
            )
        return found.to(images.device)

    if takes_targets(made(eps)):
        raise ValueError(
            f"Attack {name!r} is targeted and would take the labels for targets: make it with targeted=False."
        )
    masked = f"{name} was restricted by salience maps (SIPWrapper): this is not the usual robust accuracy."
    return Attack(name, find, notes=(masked,) if hasattr(made(eps), "mask_fn") else ())


def parse_attacks(attack: Attacks) -> dict[str, AttackFactory | str]:
    """The attacks of an evaluation by name; a TypeError for what is no factory, such as an attack that was made already."""
    if not isinstance(attack, Mapping):
        name = attack if isinstance(attack, str) else attack_name(attack)
        attack = {"attack" if name == "<lambda>" else name: attack}
    for name, factory in attack.items():
        made = not isinstance(factory, type) and any(hasattr(factory, attribute) for attribute in _OF_ATTACKS)
        if factory != "autoattack" and (made or not callable(factory)):
            raise TypeError(
                f'attack must be "autoattack" or a factory (model, eps) -> attack, got {type(factory).__name__} for '
                f"{name!r}. Instead of an attack that was made already: lambda model, eps: PGD(model, eps=eps, ...)."
            )
    return dict(attack)


def run_batch(
    attack: Attack, images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, done: Tensor, verify: Verify
) -> dict[str, Tensor]:
    """What an attack finds at one ε: of each image's smallest example what :func:`verified_norms` gives.

    ``done`` says how many runs each image has had, before and after. A run is left out for an image that is broken within
    ε; it may be needed at a smaller one.
    """
    done, examples, nan = done.clone(), images.to("cpu", copy=True), torch.zeros(len(images), dtype=torch.bool)
    norms = torch.full((len(images),), torch.inf, dtype=torch.float64)
    for run in range(attack.runs):
        todo = ((done == run) & (norms > eps)).nonzero().flatten()
        if len(todo):
            x, y = images[todo.to(images.device)], labels[todo.to(images.device)]
            found = verify(x, y, attack.find(x.clone(), y, eps, seed, rows[todo], run))
            better = found[0] < norms[todo]
            for kept, new in zip((norms, examples, nan), found, strict=True):
                kept[todo[better]] = new[better]
            done[todo] += 1
    return {"norms": norms, "examples": examples, "nan": nan, "done": done}


def verified_norms(
    model: nn.Module, radii: Sequence[float], norm: Norm, images: Tensor, labels: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify by a forward pass what an attack calls adversarial examples, clipped to ``[0, 1]``; see `clip_rounding`.

    Gives on the CPU the norm of each perturbation, float64 and infinite where the network is not fooled; the examples; and
    where the network gave NaN, which counts as fooled.
    """
    clean = images.cpu()
    examples = candidates.detach().to("cpu", clean.dtype)
    examples = clip_rounding(torch.where(examples.isnan(), clean, examples).clamp(0, 1), clean, radii, norm)
    model.eval()
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
    """Put images that float32 rounding alone has put outside a ball exactly inside it; leave the others as they are."""
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
    clean = images.double()
    delta = adversarial.double() - clean
    if norm == "Linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps * (1 - 2.0**-40) / delta.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    result = (clean + delta).to(images.dtype)
    beyond = (result.double() - clean).abs() > delta.abs()
    return torch.where(beyond, torch.nextafter(result, images), result)
