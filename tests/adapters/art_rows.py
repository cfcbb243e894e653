"""The list of ART attacks that every property runs over: arguments small enough to run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import nn

from tests.adapters.rows import CommonRow


class Probabilities(nn.Module):
    """A network that gives probabilities, as some attacks want them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).softmax(1)


class Casting(nn.Module):
    """A network that takes float64: on NumPy 2 some bare attacks ask in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.float())


def classifier(network: nn.Module, **options: Any) -> PyTorchClassifier:
    """An ART classifier of the tests' network."""
    kind = "gpu" if any(parameter.is_cuda for parameter in network.parameters()) else "cpu"
    settings = {"input_shape": (3, 16, 16), "nb_classes": 10, "clip_values": (0.0, 1.0), "device_type": kind}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), **{**settings, **options})


def one_hot(labels: torch.Tensor) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[labels.numpy()]


def the_next_class(images: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    return one_hot((labels + 1) % 10)


def reversed_images(images: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    return images[::-1].copy() if len(images) > 1 else images[:, :, ::-1].copy()


@dataclasses.dataclass(frozen=True)
class ArtRow(CommonRow):
    """An attack with its arguments; see ``CommonRow`` for what it shares with others.

    Attributes:
        y: What its ``y`` is, if not the images' labels.
        options: Further arguments of ``generate``, made of the images.
        around: What its network is put into.
    """

    name: str
    arguments: dict[str, Any]
    norm: str | None = "Linf"
    eps: float = 0.0
    fixed_steps: bool = True
    y: Callable[[np.ndarray, torch.Tensor], np.ndarray] | None = None
    options: Callable[[np.ndarray], dict[str, Any]] = lambda images: {}
    around: type[nn.Module] | None = None

    def build(self, network: nn.Module) -> EvasionAttack:
        estimator = classifier(self.around(network) if self.around else network)
        if self.name == "AutoAttack":
            return build_autoattack(estimator, self.arguments)
        return getattr(evasion, self.name)(estimator, **self.arguments)

    def call(self, attack: Any, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        x = images.detach().numpy()
        y = self.y(x, labels) if self.y else one_hot(labels)
        return torch.from_numpy(attack.generate(x, y, **self.options(x), **options))

    def references(self, attack: Any) -> list[tuple[Any, Any]]:
        holders = [attack, *(held for held in vars(attack).values() if isinstance(held, EvasionAttack))]
        return [(lambda holder=holder: holder._estimator, holder._estimator) for holder in holders]

    def __str__(self) -> str:
        return f"ART-{self.name}" + (f"-{self.norm}" if self.arguments.get("norm") in (1, 2) else "")


def build_autoattack(estimator: PyTorchClassifier, arguments: dict[str, Any]) -> evasion.AutoAttack:
    quiet = {"verbose": False}
    attacks = [
        evasion.AutoProjectedGradientDescent(
            estimator, eps=0.15, eps_step=0.1, max_iter=3, nb_random_init=1, batch_size=4, **quiet
        ),
        evasion.DeepFool(estimator, max_iter=2, batch_size=4, **quiet),
        evasion.SquareAttack(estimator, eps=0.15, max_iter=8, batch_size=4, **quiet),
    ]
    return evasion.AutoAttack(estimator, attacks=attacks, batch_size=4, **arguments)


QUIET = {"verbose": False}
LINF = {"eps": 0.1, "eps_step": 0.03, "max_iter": 4, "batch_size": 4, **QUIET}  # 6 images make two pieces
L2 = {**LINF, "norm": 2, "eps": 1.0, "eps_step": 0.4}
AUTO = {"eps": 0.15, "eps_step": 0.1, "max_iter": 5, "nb_random_init": 2, "batch_size": 4, **QUIET}
AUTO_L2 = {**AUTO, "norm": 2, "eps": 1.5, "eps_step": 1.0}
CARLINI = {"max_iter": 4, "binary_search_steps": 2, "learning_rate": 0.3, "initial_const": 10.0, **QUIET}
SEARCHING = {"norm": None, "fixed_steps": False}

TABLE = [
    ArtRow("FastGradientMethod", {"eps": 0.1, "num_random_init": 1, "batch_size": 4}, eps=0.1),
    ArtRow(
        "FastGradientMethod", {"norm": 2, "eps": 1.0, "minimal": True, "eps_step": 0.3}, "L2", 1.0, fixed_steps=False
    ),
    ArtRow("BasicIterativeMethod", LINF, eps=0.1),
    ArtRow("ProjectedGradientDescent", {**LINF, "num_random_init": 2}, eps=0.1),
    ArtRow("ProjectedGradientDescent", {**L2, "num_random_init": 1, "random_eps": True}, "L2", 1.0),
    ArtRow("ProjectedGradientDescentNumpy", {**LINF, "num_random_init": 1}, eps=0.1),
    ArtRow("ProjectedGradientDescentNumpy", {**L2, "num_random_init": 1}, "L2", 1.0),
    ArtRow("ProjectedGradientDescentPyTorch", {**LINF, "num_random_init": 1}, eps=0.1),
    ArtRow("MomentumIterativeMethod", LINF, eps=0.1),
    ArtRow("AutoProjectedGradientDescent", AUTO, eps=0.15, fixed_steps=False),
    ArtRow("AutoProjectedGradientDescent", AUTO_L2, "L2", 1.5, fixed_steps=False),
    ArtRow("AutoConjugateGradient", AUTO, eps=0.15, fixed_steps=False),
    ArtRow("AutoConjugateGradient", AUTO_L2, "L2", 1.5, fixed_steps=False),
    ArtRow("RescalingAutoConjugateGradient", AUTO, eps=0.15, fixed_steps=False),
    ArtRow("AutoAttack", {"eps": 0.15, "eps_step": 0.1}, eps=0.15, fixed_steps=False),
    ArtRow("CarliniL0Method", {**CARLINI, "batch_size": 4}, images=4, **SEARCHING),
    ArtRow("CarliniL2Method", {**CARLINI, "batch_size": 4}, grouped=False, **SEARCHING),
    ArtRow(
        "CarliniLInfMethod",
        {
            "max_iter": 3,
            "learning_rate": 0.1,
            "largest_const": 4.0,
            "initial_const": 1.0,
            "decrease_factor": 0.5,
            **QUIET,
        },
        grouped=False,
        **SEARCHING,
    ),
    ArtRow("ElasticNet", {**CARLINI, "batch_size": 4}, **SEARCHING),
    ArtRow("DeepFool", {"max_iter": 4, "nb_grads": 5, "batch_size": 4, **QUIET}, **SEARCHING),
    ArtRow("NewtonFool", {"max_iter": 4, "eta": 0.1, "batch_size": 4, **QUIET}, norm=None, around=Probabilities),
    ArtRow(
        "UniversalPerturbation",
        {"attacker": "fgsm", "attacker_params": {"eps": 0.2}, "max_iter": 2, "eps": 0.2, "norm": np.inf, **QUIET},
        eps=0.2,
        fixed_steps=False,
        universal=True,
    ),
    ArtRow(
        "TargetedUniversalPerturbation",
        {
            "attacker": "fgsm",
            "attacker_params": {"eps": 0.3, "targeted": True},
            "max_iter": 2,
            "eps": 0.3,
            "norm": np.inf,
        },
        eps=0.3,
        fixed_steps=False,
        universal=True,
        y=the_next_class,
    ),
    ArtRow(
        "VirtualAdversarialMethod",
        {"eps": 1.0, "max_iter": 1, "batch_size": 2, **QUIET},
        norm="L2",
        eps=1.0,
        around=Probabilities,
        images=2,
    ),
    ArtRow("SaliencyMapMethod", {"theta": 0.5, "gamma": 0.02, "batch_size": 4, **QUIET}, y=the_next_class, **SEARCHING),
    ArtRow("SquareAttack", {"eps": 0.2, "max_iter": 15, "batch_size": 4, **QUIET}, eps=0.2, fixed_steps=False),
    ArtRow("SquareAttack", {"norm": 2, "eps": 2.0, "max_iter": 15, **QUIET}, "L2", 2.0, fixed_steps=False),
    ArtRow(
        "SimBA",
        {"attack": "px", "max_iter": 30, "epsilon": 0.4, **QUIET},
        around=Probabilities,
        grouped=False,
        images=3,
        **SEARCHING,
    ),
    ArtRow(
        "ZooAttack",
        {
            "max_iter": 4,
            "binary_search_steps": 1,
            "nb_parallel": 40,
            "learning_rate": 0.5,
            "variable_h": 0.05,
            "initial_const": 100.0,
            "use_resize": False,
            "use_importance": False,
            **QUIET,
        },
        grouped=False,
        images=2,
        **SEARCHING,
    ),
    ArtRow(
        "HopSkipJump",
        {"max_iter": 2, "max_eval": 40, "init_eval": 20, "init_size": 40, **QUIET},
        around=Casting,
        grouped=False,
        **SEARCHING,
    ),
    ArtRow(
        "BoundaryAttack",
        {"targeted": False, "max_iter": 5, "sample_size": 5, "init_size": 40, "delta": 0.1, "epsilon": 0.1, **QUIET},
        around=Casting,
        grouped=False,
        options=lambda x: {"x_adv_init": 1 - x},
        **SEARCHING,
    ),
    ArtRow(
        "SignOPTAttack",
        {"targeted": False, "max_iter": 1, "k": 3, "num_trial": 10, "query_limit": 100, **QUIET},
        grouped=False,
        images=3,
        **SEARCHING,
    ),
    ArtRow(
        "BrendelBethgeAttack",
        {"norm": 2, "steps": 4, "lr": 0.1, "batch_size": 4},
        around=Casting,
        options=lambda x: {"x_adv_init": 1 - x},
        **SEARCHING,
    ),
    ArtRow("PixelAttack", {"th": 6, "es": 1, "max_iter": 1, **QUIET}, images=2, grouped=False, **SEARCHING),
    ArtRow("ThresholdAttack", {"th": 60, "es": 1, "max_iter": 1, **QUIET}, images=2, grouped=False, **SEARCHING),
    ArtRow(
        "Wasserstein",
        {
            "norm": "2",
            "ball": "wasserstein",
            "eps": 1.5,
            "eps_step": 0.5,
            "eps_iter": 2,
            "max_iter": 3,
            "conjugate_sinkhorn_max_iter": 5,
            "projected_sinkhorn_max_iter": 5,
            "kernel_size": 3,
            "batch_size": 4,
            **QUIET,
        },
        **SEARCHING,
    ),
    ArtRow(
        "ShadowAttack",
        {"nb_steps": 4, "learning_rate": 0.5, "batch_size": 3, **QUIET},
        norm=None,
        y=the_next_class,
        images=1,
    ),
    ArtRow(
        "FeatureAdversariesPyTorch",
        {"delta": 0.2, "layer": 0, "max_iter": 4, "step_size": 0.05, "batch_size": 4, **QUIET},
        around=Casting,
        eps=0.2,
        y=reversed_images,
        guided=True,
    ),
    ArtRow(
        "FeatureAdversariesNumpy",
        {"delta": 0.2, "layer": 0},
        around=Casting,
        eps=0.2,
        y=reversed_images,
        images=1,
        options=lambda x: {"maxiter": 1, "maxfun": 2},
        guided=True,
        fixed_steps=False,
    ),
]
