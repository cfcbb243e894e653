"""The arguments of an evaluation, checked and made plain."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, get_args

import numpy as np
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_eps
from sip_plugin.evaluation.attacks import AttackFactory
from sip_plugin.evaluation.autoattack import attack_names, autoattack_package
from sip_plugin.evaluation.radii import distinct


class Request(NamedTuple):
    """What an evaluation was asked for.

    Attributes:
        model: The network, without what synchronises processes.
        attacks: Factories by name, or ``"autoattack"``.
        version: AutoAttack's version, or its attacks.
        first: How many images at most.
        keep_examples: Whether adversarial images are asked for.
        settings: The rest, as plain JSON values, as the report will say it.
    """

    model: nn.Module
    attacks: dict[str, AttackFactory | str]
    version: str | Sequence[str]
    first: int | None
    keep_examples: bool
    settings: dict[str, Any]


def radii(eps: float | Iterable[float], norm: Norm) -> tuple[float, ...]:
    """The radii, ascending, each once; one or more, all above 0."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}.")
    eps = _number(eps)
    given = [_number(radius) for radius in eps] if isinstance(eps, Iterable) else [eps]
    found = distinct(check_eps(radius, norm) for radius in given)
    if not found or found[0] == 0:
        raise ValueError(
            f"eps must hold one radius or more, all above 0 (clean accuracy is always reported), got {given}."
        )
    return found


def _number(value: Any) -> Any:
    """What a tensor or an array holds, as Python numbers: one, or a list of them."""
    return value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value


def attack_list(version: Any) -> str | tuple[str, ...]:
    """One of AutoAttack's versions, or a list of its attacks."""
    given = version if isinstance(version, str) or not isinstance(version, Iterable) else tuple(version)
    if isinstance(given, str) or (isinstance(given, tuple) and all(isinstance(name, str) for name in given)):
        attack_names(given)  # raises if there is no such version or attack
        return given
    raise TypeError(f'version must be a name such as "standard", or a list of names of attacks, got {given!r}.')


def whole(value: Any, name: str, least: int) -> int:
    """A whole number, from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}.")
    return int(value)


def flag(value: Any, name: str) -> bool:
    """True or False, and nothing that merely counts as such."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def described(attacks: Mapping[str, AttackFactory | str], version: str | Sequence[str]) -> dict[str, Any]:
    """The attacks as the report's settings say them."""
    found: dict[str, Any] = {}
    for name, factory in attacks.items():
        if isinstance(factory, str):
            package = autoattack_package().__name__
            found[name] = {
                "version": version if isinstance(version, str) else "custom",
                "attacks": list(attack_names(version)),
                "package": f"{package} {_installed(package)}",
            }
        else:
            found[name] = "factory"
    return found


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
