"""AutoAttack's attacks, run one by one from the package's own attack objects, as its standard evaluation sets them up."""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm
from sip_plugin.evaluation.attacks import Attack, Attacks, callable_attack, derive_seed, parse_attacks
from sip_plugin.model_utils import model_device

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The package's versions and the attacks of each, in their order."""

_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}
"""All attacks, and how many classes each needs; the DLR loss has a denominator, without which fewer will do."""


def attack_names(version: str | Sequence[str]) -> tuple[str, ...]:
    """The attacks of a version, or those named; a ValueError if there are none."""
    names = VERSIONS.get(version, ()) if isinstance(version, str) else tuple(version)
    if not names or not set(names) <= set(_CLASSES):
        known = f"one of {', '.join(VERSIONS)}, or a list of attacks ({', '.join(_CLASSES)})"
        raise ValueError(f"version must be {known}, got {version!r}.")
    return names


def make_attacks(
    attack: Attacks,
    version: str | Sequence[str],
    model: nn.Module,
    norm: Norm,
    clean: Mapping[str, Tensor],
    image: Tensor,
    eps: float,
) -> list[Attack]:
    """The attacks of an evaluation, for what :func:`clean_statistics` says and images like this; ``eps`` is of its radii.

    Raises:
        ValueError: If AutoAttack cannot attack this network, or images of this size.
    """
    made: list[Attack] = []
    for name, factory in parse_attacks(attack).items():
        if isinstance(factory, str):
            names = attack_names(version)
            if not clean["differentiable"].all() and set(names) != {"square"}:
                raise ValueError(
                    "The network's output has no gradient with respect to the image, which AutoAttack needs. Is its "
                    "forward under torch.no_grad(), does it round, or is it quantised? The black-box attack alone: "
                    'version=["square"].'
                )
            if norm == "L2" and "square" in names and not _square_fits(*image.shape[1:]):
                raise ValueError(
                    f"AutoAttack's Square fails in L2 on images of {image.shape[1]}×{image.shape[2]} pixels, where its "
                    "first squares do not fit. Resize them, or leave it out: version="
                    f"{[each for each in names if each != 'square']}."
                )
            made += [autoattack_member(model, each, version, norm, int(clean["classes"][0])) for each in names]
        else:
            made.append(callable_attack(name, model, factory, eps))
    return made


def _square_fits(height: int, width: int) -> bool:
    """Whether the squares by which Square begins in L2, in rows from a margin on, end within the image."""
    size, margin = height // 5, (height - height // 5 * 5) // 2
    ends = (margin + length // max(size, 1) * size <= length for length in (height, width))
    return size == 1 or (size > 1 and all(ends))  # of one pixel, those outside are empty


def attack_settings(attack: Attacks, version: str | Sequence[str]) -> dict[str, Any]:
    """The attacks as the report's settings say them; a ValueError if two have one name."""
    attacks, names = parse_attacks(attack), list(attack_names(version))
    listed = [each for name, factory in attacks.items() for each in (names if factory == "autoattack" else [name])]
    if len({*listed}) < len(listed):
        raise ValueError(f"Attacks need names of their own, got {', '.join(listed)}.")
    found: dict[str, Any] = dict.fromkeys(attacks, "factory")
    for name in [name for name, factory in attacks.items() if factory == "autoattack"]:
        package = autoattack_package().__name__
        setting = version if isinstance(version, str) else "custom"
        found[name] = {"version": setting, "attacks": names, "package": f"{package} {metadata.version(package)}"}
    return found


def autoattack_package() -> Any:
    """The module that AutoAttack is in: ``pyautoattack``, or the original ``autoattack``."""
    for name in ("pyautoattack", "autoattack"):
        if find_spec(name):
            return importlib.import_module(name)
    raise ImportError("The evaluation by AutoAttack needs its package: pip install 'sip-plugin[autoattack]'")


def _member(model: nn.Module, name: str, version: str, norm: Norm, classes: int, eps: float) -> Any:
    """The package's attack object, set as the package sets it before it runs it."""
    package = autoattack_package()
    options: dict[str, Any] = {"norm": norm, "eps": eps, "seed": 0, "device": model_device(model), "version": version}
    options |= {"verbose": False} if package.__name__ == "autoattack" else {}
    attack = package.AutoAttack(model, **options)
    if name == "square":
        return attack.square
    if name in ("apgd-ce", "apgd-dlr"):
        attack.apgd.loss = name.removeprefix("apgd-")
        if classes < _CLASSES[name]:
            attack.apgd.dlr_loss = lambda logits, labels: (
                logits.scatter(1, labels[:, None], -torch.inf).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)
            )
        return attack.apgd
    member = attack.apgd_targeted if name == "apgd-t" else attack.fab
    if classes < _CLASSES[name]:
        member.dlr_loss_targeted = lambda logits, labels: (
            logits.gather(1, member.y_target[:, None]) - logits.gather(1, labels[:, None])
        ).squeeze(1)
    member.n_target_classes = min(member.n_target_classes, classes - 1)
    if name != "apgd-t":
        member.targeted = name == "fab-t"
        member.n_restarts = 1 if member.targeted else member.n_restarts
    return member


def autoattack_member(model: nn.Module, name: str, version: str | Sequence[str], norm: Norm, classes: int) -> Attack:
    """One of AutoAttack's attacks, set as in a version of it, or if attacks were named, as in its custom version.

    Its random numbers do not depend on the batch: APGD's starts follow from the seed and the image itself, and Square's
    search is the same sequence for all images (as in the package, where batches of one seed share it). Only the
    untargeted FAB's restarts (version "plus") draw by the batch.
    """
    make = partial(_member, model, name, version if isinstance(version, str) else "custom", norm, classes)

    def find(images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        member = make(eps)
        member.seed = seed if name == "square" else derive_seed(seed, int(rows[0]))
        if name.startswith("apgd"):
            _start_by_image(member, seed, norm)
        elif name == "square":
            # Signs are drawn once for all images of a batch, as the places of the squares are: the sequence does not
            # depend on how many images are left, and means the same for each.
            member.random_choice = lambda shape: torch.sign(
                2 * torch.rand([1, *shape[1:]] if len(shape) == 4 else shape).to(images.device) - 1
            )
        with torch.no_grad():
            if name != "fab-t":
                return member.perturb(images, labels)  # type: ignore[no-any-return]
            member.target_class = run + 2  # the package counts from the end of the sorted logits
            return member.attack_single_run(images, labels, use_rand_start=False, is_targeted=True)  # type: ignore[no-any-return]

    if name != "fab-t":
        margin = f"{name} maximised the plain logit margin: the DLR loss needs {_CLASSES[name]} classes, not {classes}."
        return Attack(name, find, notes=(margin,) * (classes < _CLASSES[name]))
    # The targeted FAB starts at the image, draws nothing at random, and looks for the smallest perturbation whatever ε is:
    # each target is run once for an image. Targets after the one that breaks it at this ε are run if a smaller ε needs them.
    return Attack(name, find, make(1.0).n_target_classes, minimum_norm=True)


def _start_by_image(member: Any, seed: int, norm: Norm) -> None:
    """Have APGD start each run at a point that follows from the seed, the run's number and the image."""
    single_run, numbers = member.attack_single_run, itertools.count()

    def attack_single_run(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
        number = next(numbers)
        if x_init is None:
            noise = torch.stack([_noise(image, norm, seed, number) for image in x.detach().cpu()]).to(x)
            x_init = x + member.eps * member.normalize(noise)
        return single_run(x, y, x_init=x_init)

    member.attack_single_run = attack_single_run


def _noise(image: Tensor, norm: Norm, seed: int, number: int) -> Tensor:
    content = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
    generator = torch.Generator().manual_seed(derive_seed(seed, number, content))
    if norm == "Linf":
        return 2 * torch.rand(image.shape, generator=generator) - 1
    return torch.randn(image.shape, generator=generator)
