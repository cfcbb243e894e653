"""The evasion attacks of ART in the comparison with late masking."""

from __future__ import annotations

from functools import partial
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from benchmarks.strength.setting import Setting, Ways
from sip_plugin import SIPWrapper

STEPS: dict[str, Any] = {"max_iter": 10, "batch_size": 64, "verbose": False}
LINF = {"norm": "inf", "eps": 0.12, "eps_step": 0.02, **STEPS}
L2 = {"norm": 2, "eps": 1.2, "eps_step": 0.3, **STEPS}
AUTO: dict[str, Any] = {"max_iter": 20, "nb_random_init": 1, "loss_type": "cross_entropy", "batch_size": 64}
AUTO_LINF = {"norm": "inf", "eps": 0.12, "eps_step": 0.03, **AUTO, "verbose": False}
AUTO_L2 = {"norm": 2, "eps": 1.2, "eps_step": 0.3, **AUTO, "verbose": False}

ATTACKS: dict[str, dict[str, Any]] = {
    "FastGradientMethod Linf": {"norm": "inf", "eps": 0.12, "batch_size": 64},
    "FastGradientMethod L2": {"norm": 2, "eps": 2.0, "batch_size": 64},
    "BasicIterativeMethod": {"eps": 0.12, "eps_step": 0.02, **STEPS},
    "ProjectedGradientDescent Linf": LINF,
    "ProjectedGradientDescent L2": L2,
    "ProjectedGradientDescentNumpy": {**LINF, "num_random_init": 2},
    "ProjectedGradientDescentPyTorch": {**LINF, "num_random_init": 2},
    "MomentumIterativeMethod": {**LINF, "max_iter": 40},
    "AutoProjectedGradientDescent Linf": AUTO_LINF,
    "AutoProjectedGradientDescent L2": AUTO_L2,
    "AutoConjugateGradient": AUTO_L2,  # for L∞ ART takes no sign of its direction, and the bare attack hardly moves
    "RescalingAutoConjugateGradient": AUTO_L2,
    "AutoAttack": {
        "norm": "inf",
        "eps": 0.12,
        "members": ["AutoProjectedGradientDescent Linf", "DeepFool", "SquareAttack Linf"],
    },
    "CarliniL0Method": {
        "learning_rate": 0.1,
        "binary_search_steps": 3,
        "max_iter": 10,
        "initial_const": 10.0,
        "batch_size": 64,
        "verbose": False,
    },
    "CarliniL2Method": {
        "learning_rate": 0.1,
        "binary_search_steps": 4,
        "max_iter": 15,
        "initial_const": 1.0,
        "batch_size": 64,
        "verbose": False,
    },
    "CarliniLInfMethod": {"learning_rate": 0.05, "max_iter": 20, "initial_const": 0.1, "verbose": False},
    "ElasticNet": {
        "learning_rate": 0.1,
        "binary_search_steps": 4,
        "max_iter": 30,
        "initial_const": 1.0,
        "batch_size": 64,
        "verbose": False,
    },
    "DeepFool": {"max_iter": 30, "batch_size": 64, "verbose": False},
    "NewtonFool": {"max_iter": 60, "eta": 0.05, "batch_size": 64, "verbose": False},
    "UniversalPerturbation": {
        "attacker": "deepfool",
        "attacker_params": {"max_iter": 10, "verbose": False},
        "eps": 0.3,
        "max_iter": 5,
        "norm": "inf",
        "verbose": False,
    },
    "TargetedUniversalPerturbation": {
        "attacker": "fgsm",
        "attacker_params": {"targeted": True, "eps": 0.15},
        "eps": 0.3,
        "max_iter": 5,
        "norm": "inf",
    },
    "VirtualAdversarialMethod": {"eps": 6.0, "max_iter": 1, "finite_diff": 1.0, "batch_size": 64, "verbose": False},
    "SaliencyMapMethod": {"theta": 0.5, "gamma": 0.3, "batch_size": 64, "verbose": False},
    "SquareAttack Linf": {"norm": "inf", "eps": 0.2, "max_iter": 300, "batch_size": 64, "verbose": False},
    "SquareAttack L2": {"norm": 2, "eps": 4.0, "max_iter": 300, "batch_size": 64, "verbose": False},
    "SimBA dct": {"attack": "dct", "epsilon": 0.4, "max_iter": 600, "verbose": False},
    "SimBA px": {"attack": "px", "epsilon": 0.4, "max_iter": 600, "verbose": False},
    "ZooAttack": {
        "learning_rate": 0.1,
        "max_iter": 60,
        "initial_const": 10.0,
        "use_resize": False,
        "use_importance": False,
        "batch_size": 1,
        "verbose": False,
    },
    "HopSkipJump": {"max_iter": 4, "max_eval": 200, "init_eval": 20, "verbose": False},
    "BoundaryAttack": {"targeted": False, "max_iter": 30, "delta": 0.05, "epsilon": 0.1, "verbose": False},
    "SignOPTAttack": {"targeted": False, "max_iter": 20, "k": 40, "num_trial": 20, "verbose": False},
    "BrendelBethgeAttack": {"norm": 2, "steps": 60, "lr": 0.1, "batch_size": 64},
    "PixelAttack": {"th": 120, "es": 1, "max_iter": 10},
    "ThresholdAttack": {"th": 50, "es": 0, "max_iter": 30},
    "Wasserstein": {
        "regularization": 100.0,
        "eps": 2.0,
        "eps_step": 0.5,
        "max_iter": 10,
        "conjugate_sinkhorn_max_iter": 20,
        "projected_sinkhorn_max_iter": 20,
        "batch_size": 64,
        "verbose": False,
    },
    "ShadowAttack": {
        "sigma": 0.05,
        "nb_steps": 60,
        "learning_rate": 0.3,
        "lambda_tv": 0.1,
        "batch_size": 8,
        "verbose": False,
    },
    "FeatureAdversariesPyTorch": {
        "delta": 0.2,
        "layer": 8,
        "max_iter": 20,
        "step_size": 0.03,
        "batch_size": 64,
        "verbose": False,
    },
}
"""Each attack that can be measured, with its arguments."""

LEFT_OUT = {
    "GeoDA": "the bare attack fails on NumPy 2, which has no np.mat",
    "FeatureAdversariesNumpy": "its gradient is estimated element by element, by one query for each of the batch's elements",
}

IMAGES = {
    "VirtualAdversarialMethod": 32,
    "PixelAttack": 8,
    "ThresholdAttack": 16,
    "SignOPTAttack": 16,
    "HopSkipJump": 32,
    "BoundaryAttack": 16,
    "ZooAttack": 16,
    "CarliniLInfMethod": 16,
    "ShadowAttack": 32,
}
"""How many images a slow attack has, where not all."""

PROBABILITIES = ("SimBA", "VirtualAdversarialMethod", "NewtonFool")
"""Attacks that want a network that ends with a softmax."""

FLOAT32 = ("HopSkipJump", "BoundaryAttack", "BrendelBethgeAttack")
"""Attacks that ask in float64 on NumPy 2, where a float32 network fails: the bare ones have one that casts."""

STARTING_POINTS = ("BrendelBethgeAttack",)
"""Attacks that fail for the whole batch if one image has no starting point: both ways are given the same points."""

ONE_MAP = ("UniversalPerturbation", "TargetedUniversalPerturbation")
"""Attacks that look for one perturbation of all images, so that all have the first one's map."""


class Cast(nn.Module):
    """A network's first layer, which casts images to float32."""

    def forward(self, x: Tensor) -> Tensor:
        """The images in float32."""
        return x.float()


def ways(name: str, part: Setting) -> Ways:
    """The bare and the projected attack of one row."""
    kind = name.split()[0]
    model = nn.Sequential(part.model, nn.Softmax(1)) if kind in PROBABILITIES else part.model
    bare = built(name, _classifier(nn.Sequential(Cast(), model) if kind in FLOAT32 else model))
    projected = SIPWrapper(built(name, _classifier(model)), part.salience)
    y = _second_argument(kind, part)
    more = {"starting_points": part.starting_points().numpy()} if kind in STARTING_POINTS else {}
    if kind == "ShadowAttack":  # takes one image
        return partial(_one_by_one, bare, part, y), partial(_one_by_one, projected, part, y, own_map=True)
    return partial(_generate, bare, part.x, y, **more), partial(_generate, projected, part.x, y, **more)


def built(name: str, estimator: PyTorchClassifier) -> Any:
    """The attack of one row."""
    arguments: dict[str, Any] = {key: np.inf if value == "inf" else value for key, value in ATTACKS[name].items()}
    if "members" in arguments:
        arguments["attacks"] = [built(member, estimator) for member in arguments.pop("members")]
    return getattr(evasion, name.split()[0])(estimator, **arguments)


def conditions(names: list[str]) -> dict[str, Any]:
    """What else the record says of these rows."""
    kinds = {name.split()[0] for name in names}
    return {
        "fewer_images": {name: count for name, count in IMAGES.items() if name in names},
        "left_out": LEFT_OUT,
        "network_with_softmax": [kind for kind in PROBABILITIES if kind in kinds],
        "bare_queries_cast_to_float32": [kind for kind in FLOAT32 if kind in kinds],
        "same_starting_points": [kind for kind in STARTING_POINTS if kind in kinds],
        "one_map_for_all_images": [kind for kind in ONE_MAP if kind in kinds],
    }


def _classifier(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 16, 16), 10, clip_values=(0.0, 1.0), device_type="cpu")


def _one_by_one(attack: Any, part: Setting, y: np.ndarray, *, own_map: bool = False) -> Tensor:
    found = []
    for i in range(len(part.x)):
        more = {"salience": part.salience[i : i + 1]} if own_map else {}
        found.append(_generate(attack, part.x[i : i + 1], y[i : i + 1], **more))
    return torch.cat(found)


def _generate(attack: Any, x: Tensor, y: np.ndarray, **more: Any) -> Tensor:
    return torch.from_numpy(np.asarray(attack.generate(x.numpy().copy(), y, **more))).float()


def _second_argument(kind: str, part: Setting) -> np.ndarray:
    """What an attack's ``y`` is: true classes for most, targets, or images that features are to be like."""
    classes = part.y
    if kind in ("SaliencyMapMethod", "ShadowAttack"):
        classes = part.targets()
    if kind == "TargetedUniversalPerturbation":
        classes = torch.full_like(part.y, 3)
    if kind == "FeatureAdversariesPyTorch":
        images, labels = part.training.tensors
        first = torch.stack([(labels == target).nonzero()[0, 0] for target in part.targets()])
        return images[first].numpy()
    one_hot: np.ndarray = np.eye(10, dtype=np.float32)[classes.numpy()]
    return one_hot
