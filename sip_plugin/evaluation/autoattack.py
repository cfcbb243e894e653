"""AutoAttack's attacks, run one by one from the package's own attack objects, as its standard evaluation sets them up."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm
from sip_plugin.evaluation.attacks import Attack, AttackFactory, derive_seed

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The package's versions and the attacks of each, in their order."""

_COSTS = {"apgd-ce": 200, "apgd-dlr": 200, "apgd-t": 1800, "fab": 6500, "fab-t": 3600, "square": 5000}
"""All attacks, and their forward passes for an image of ten classes; a gradient counts as another one."""


def autoattack_members(
    model: nn.Module, version: str | Sequence[str], norm: Norm, classes: int, device: torch.device
) -> list[Attack]:
    """The attacks of one of AutoAttack's versions, or those named (then with the settings of its custom version).

    Raises:
        ValueError: If there is no such version or attack.
        ImportError: If no AutoAttack package is installed.
    """
    setting = version if isinstance(version, str) else "custom"
    return [
        (MinimumNormFAB if name == "fab-t" else AutoAttackMember)(
            name, model, version=setting, norm=norm, classes=classes, device=device
        )
        for name in attack_names(version)
    ]


def attack_names(version: str | Sequence[str]) -> tuple[str, ...]:
    """The attacks of a version, or those named.

    Raises:
        ValueError: If there is no such version or attack.
    """
    if isinstance(version, str):
        if version not in VERSIONS:
            raise ValueError(
                f"version must be one of {', '.join(VERSIONS)}, or a list of attacks ({', '.join(_COSTS)}), got {version!r}."
            )
        return VERSIONS[version]
    names = tuple(version)
    if not names or len(set(names)) < len(names) or not set(names) <= set(_COSTS):
        raise ValueError(f"version as a list must name some of {', '.join(_COSTS)}, each once, got {list(names)}.")
    return names


def attack_settings(attacks: Mapping[str, AttackFactory | str], version: str | Sequence[str]) -> dict[str, Any]:
    """The attacks as the report's settings say them."""
    names, found = attack_names(version), dict[str, Any](dict.fromkeys(attacks, "factory"))
    for name in [name for name, factory in attacks.items() if isinstance(factory, str)]:
        package = autoattack_package().__name__
        try:
            number = metadata.version(package)
        except metadata.PackageNotFoundError:
            number = "of unknown version"
        chosen = version if isinstance(version, str) else "custom"
        found[name] = {"version": chosen, "attacks": list(names), "package": f"{package} {number}"}
    return found


def autoattack_package() -> Any:
    """The module that AutoAttack is in: ``pyautoattack``, or the original ``autoattack``.

    Raises:
        ImportError: If neither is installed.
    """
    for name in ("pyautoattack", "autoattack"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ImportError("The evaluation by AutoAttack needs its package: pip install 'sip-plugin[autoattack]'")


@dataclass
class AutoAttackMember(Attack):
    """One of AutoAttack's attacks.

    Its random numbers do not depend on the batch: APGD's starts follow from the seed and the image itself, and Square's
    search is the same sequence for all images (as in the package, where batches of one seed share it). Only the
    untargeted FAB's restarts (version "plus") draw by the batch.
    """

    version: str = field(kw_only=True)
    norm: Norm = field(kw_only=True)
    classes: int = field(kw_only=True)
    device: torch.device = field(kw_only=True)

    def __post_init__(self) -> None:
        self.cost = _COSTS[self.name]
        self.black_box = self.name == "square"

    def notes(self, eps: float) -> list[str]:
        """Where the attack differs from the package's."""
        needed = {"apgd-t": 4, "apgd-dlr": 3}.get(self.name, 0)
        if self.classes >= needed:
            return []
        return [
            f"{self.name} maximised the plain logit margin: the DLR loss needs {needed} classes, the network has "
            f"{self.classes}."
        ]

    def __call__(self, images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        """See :meth:`Attack.__call__`."""
        member = self._member(eps)
        if self.name.startswith("apgd"):
            _start_by_image(member, seed, self.norm)
        elif self.name == "square":
            _search_for_all(member)
        member.seed = seed if self.name == "square" else derive_seed(seed, int(rows[0]))
        with torch.no_grad():
            found: Tensor = member.perturb(images, labels)
        return found

    def _member(self, eps: float) -> Any:
        """The package's attack object, set as the package sets it before it runs it."""
        kind = autoattack_package().AutoAttack
        options: dict[str, Any] = {"norm": self.norm, "eps": eps, "seed": 0, "device": self.device}
        if "verbose" in inspect.signature(kind).parameters:
            options["verbose"] = False
        attack = kind(self.model, version=self.version, **options)
        if self.name in ("apgd-ce", "apgd-dlr"):
            attack.apgd.loss = self.name.removeprefix("apgd-")
            if self.name == "apgd-dlr" and self.classes < 3:
                attack.apgd.dlr_loss = _margin
            return attack.apgd
        if self.name == "square":
            return attack.square
        if self.name == "apgd-t":
            member = attack.apgd_targeted
            if self.classes < 4:
                member.dlr_loss_targeted = lambda logits, labels: _targeted_margin(logits, labels, member.y_target)
        else:
            member = attack.fab
            member.targeted = self.name == "fab-t"
            if member.targeted:
                member.n_restarts = 1
        member.n_target_classes = min(member.n_target_classes, self.classes - 1)
        return member


@dataclass
class MinimumNormFAB(AutoAttackMember):
    """The targeted FAB: starts at the image, draws nothing at random, and looks for the smallest perturbation whatever ε is.

    So each target is run once for an image, and what it finds is what it would find at any ε. As in the package, targets
    after the one that breaks an image at this ε are left out; they are run if a smaller ε needs them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.minimum_norm = True
        self.runs = self._member(1.0).n_target_classes

    def __call__(self, images: Tensor, labels: Tensor, eps: float, seed: int, rows: Tensor, run: int) -> Tensor:
        """Run one target."""
        member = self._member(eps)
        member.seed = 0  # nothing is drawn
        member.target_class = run + 2  # the package counts from the end of the sorted logits
        with torch.no_grad():
            found: Tensor = member.attack_single_run(images, labels, use_rand_start=False, is_targeted=True)
        return found


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


def _search_for_all(member: Any) -> None:
    """Have Square draw signs once for all images of a batch, as it draws the places of its squares.

    Then the sequence does not depend on how many images are left. What it means for one image is the same.
    """

    def random_choice(shape: Sequence[int]) -> Tensor:
        shape = [1, *shape[1:]] if len(shape) == 4 else list(shape)
        return torch.sign(2 * torch.rand(shape).to(member.device) - 1)

    member.random_choice = random_choice


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The DLR loss without its denominator, which needs three classes."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def _targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted DLR loss without its denominator, which needs four classes."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
