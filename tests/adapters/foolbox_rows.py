"""The list of Foolbox attacks that every property runs over: arguments small enough to run."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import foolbox
import foolbox.attacks as attacks
import torch
from foolbox.criteria import TargetedMisclassification
from torch import nn

from tests.adapters.rows import CommonRow

_networks: "weakref.WeakKeyDictionary[Any, nn.Module]" = weakref.WeakKeyDictionary()


class Thresholding(nn.Module):
    """A network that sees black and white."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x >= 0.5).to(x.dtype))


@dataclasses.dataclass(frozen=True)
class FoolboxRow(CommonRow):
    """An attack with its arguments; see ``CommonRow`` for what it shares with others.

    Attributes:
        epsilons: The budgets of its call; the result is that of the last.
        options: Further arguments of its call, made of the images.
        targeted: Whether it needs target classes.
        around: What its network is put into.
    """

    name: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    epsilons: list[float] | None = None
    norm: str | None = None
    fixed_steps: bool = False
    options: Callable[[torch.Tensor], dict[str, Any]] = lambda images: {}
    targeted: bool = False
    around: type[nn.Module] | None = None

    @property
    def eps(self) -> float:
        assert self.epsilons is not None
        return self.epsilons[-1]

    def build(self, network: nn.Module) -> attacks.Attack:
        attack = getattr(attacks, self.name)(**self.arguments)
        _networks[attack] = self.around(network) if self.around else network
        return attack

    def outcome(self, attack: Any, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
        """What Foolbox's call gives: raw and clipped images and success, for each budget."""
        network = _networks[attack.__dict__.get("wrapped", attack)]
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
        criterion = TargetedMisclassification((labels + 1) % 10) if self.targeted else labels
        return attack(model, images, criterion, epsilons=self.epsilons, **self.options(images.detach()), **options)

    def call(self, attack: Any, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        _, clipped, _ = self.outcome(attack, images, labels, **options)
        return clipped if self.epsilons is None else clipped[-1]

    def references(self, attack: Any) -> list[tuple[Any, Any]]:
        """It holds no network; its methods are its class's own."""
        return [(lambda: {"run", "get_random_start"} & set(vars(attack)), set())]

    def __str__(self) -> str:
        return f"Foolbox-{self.name}"


BUDGETS = {"Linf": [0.05, 0.15], "L2": [0.5, 2.0], "L1": [5.0, 40.0]}
GRADIENT = {
    "ProjectedGradientDescentAttack": {"steps": 4},
    "AdamProjectedGradientDescentAttack": {"steps": 4},
    "BasicIterativeAttack": {"steps": 4},
    "AdamBasicIterativeAttack": {"steps": 4},
    "MomentumIterativeFastGradientMethod": {"steps": 4},
    "FastGradientAttack": {},
}
L2, LINF, L1 = (
    {"epsilons": BUDGETS["L2"], "norm": "L2"},
    {"epsilons": BUDGETS["Linf"], "norm": "Linf"},
    {"epsilons": BUDGETS["L1"]},
)
ANY_DISTANCE = {"distance": foolbox.distances.linf}
INVERTED = {"init_attack": attacks.InversionAttack()}  # finds a start for each of the tests' images

TABLE = [
    *(
        FoolboxRow(f"{norm}{kind}", arguments, BUDGETS[norm], norm if norm != "L1" else None, fixed_steps=True)
        for norm in BUDGETS
        for kind, arguments in GRADIENT.items()
    ),
    FoolboxRow("L2ContrastReductionAttack", **L2, fixed_steps=True),
    FoolboxRow("VirtualAdversarialAttack", {"steps": 3}, **L2, fixed_steps=True),
    FoolboxRow("DDNAttack", {"steps": 6}, **L2),
    *(
        FoolboxRow(name, **(LINF if name.startswith("Linf") else L2), fixed_steps=True)
        for name in (
            "L2AdditiveGaussianNoiseAttack",
            "L2AdditiveUniformNoiseAttack",
            "L2ClippingAwareAdditiveGaussianNoiseAttack",
            "L2ClippingAwareAdditiveUniformNoiseAttack",
            "LinfAdditiveUniformNoiseAttack",
        )
    ),
    *(
        FoolboxRow(
            name,
            {"repeats": 20},
            **({**LINF, "epsilons": [0.5]} if name.startswith("Linf") else {**L2, "epsilons": [15.0]}),
        )
        for name in (
            "L2RepeatedAdditiveGaussianNoiseAttack",
            "L2RepeatedAdditiveUniformNoiseAttack",
            "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
            "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
            "LinfRepeatedAdditiveUniformNoiseAttack",
        )
    ),
    FoolboxRow("SparseL1DescentAttack", {"steps": 4}, **L1, fixed_steps=True),
    FoolboxRow("InversionAttack", ANY_DISTANCE, **LINF),
    FoolboxRow("BinarySearchContrastReductionAttack", ANY_DISTANCE, **LINF),
    FoolboxRow("LinearSearchContrastReductionAttack", {**ANY_DISTANCE, "steps": 20}, **LINF),
    FoolboxRow(
        "L2CarliniWagnerAttack", {"steps": 12, "binary_search_steps": 3, "stepsize": 0.1, "initial_const": 10.0}, **L2
    ),
    FoolboxRow("NewtonFoolAttack", {"steps": 2}, **L2),
    FoolboxRow(
        "EADAttack", {"steps": 12, "binary_search_steps": 3, "initial_stepsize": 0.1, "initial_const": 10.0}, **L1
    ),
    FoolboxRow("GaussianBlurAttack", {**ANY_DISTANCE, "steps": 20}, **LINF),
    FoolboxRow("L2DeepFoolAttack", {"steps": 4, "candidates": 4}, **L2),
    FoolboxRow("LinfDeepFoolAttack", {"steps": 4, "candidates": 4}, **LINF),
    FoolboxRow("SaltAndPepperNoiseAttack", {"steps": 30}, **L2),
    FoolboxRow("LinearSearchBlendedUniformNoiseAttack", {**ANY_DISTANCE, "steps": 20, "directions": 5}, **LINF),
    FoolboxRow(
        "BinarizationRefinementAttack",
        ANY_DISTANCE,
        **{**LINF, "epsilons": [0.6]},
        options=lambda x: {"starting_points": 1 - x},
        around=Thresholding,
        guided=True,
        noisy=False,  # it compares two answers of the network
    ),
    FoolboxRow("BoundaryAttack", {**INVERTED, "steps": 12}, **L2),
    FoolboxRow("HopSkipJumpAttack", {**INVERTED, "steps": 1, "initial_gradient_eval_steps": 10}, **L2, noisy=False),
    # Their steps differ in the optimiser alone, which asks nothing, and which numba compiles for half a minute for each.
    FoolboxRow("L0BrendelBethgeAttack", {**INVERTED, "steps": 0}),
    FoolboxRow("L1BrendelBethgeAttack", {**INVERTED, "steps": 0}, **L1),
    FoolboxRow("L2BrendelBethgeAttack", {**INVERTED, "steps": 3}, **L2),
    FoolboxRow("LinfinityBrendelBethgeAttack", {**INVERTED, "steps": 0}, **LINF),
    FoolboxRow("L0FMNAttack", {"steps": 30}),
    FoolboxRow("L1FMNAttack", {"steps": 8}, **L1),
    FoolboxRow("L2FMNAttack", {"steps": 8}, **L2),
    FoolboxRow("LInfFMNAttack", {"steps": 8}, **LINF),
    FoolboxRow("GenAttack", {"steps": 4, "population": 4}, epsilons=[0.3], norm="Linf", targeted=True),
    FoolboxRow("PointwiseAttack", {"l2_binary_search": False}, images=2, options=lambda x: {"starting_points": 1 - x}),
]
