"""The attacks of Foolbox in the comparison with late masking."""

from __future__ import annotations

from functools import partial
from typing import Any

import foolbox
from torch import Tensor

from benchmarks.strength.setting import Setting, Ways
from sip_plugin import SIPWrapper

EPSILONS = {"L1": 25.0, "L2": 1.5, "Linf": 0.12}
DESCENTS: dict[str, dict[str, Any]] = {
    "ProjectedGradientDescentAttack": {"steps": 30, "rel_stepsize": 0.1},
    "AdamProjectedGradientDescentAttack": {"steps": 30, "rel_stepsize": 0.1},
    "BasicIterativeAttack": {"steps": 10},
    "AdamBasicIterativeAttack": {"steps": 10},
    "MomentumIterativeFastGradientMethod": {"steps": 10},
    "FastGradientAttack": {},
}

ATTACKS: dict[str, dict[str, Any]] = {
    "L2ContrastReductionAttack": {"epsilons": 6.0},
    "VirtualAdversarialAttack": {"epsilons": 2.5, "steps": 20, "xi": 0.1},
    "DDNAttack": {"epsilons": 1.5, "steps": 30},
    **{
        f"{norm}{kind}": {"epsilons": epsilon, **arguments}
        for norm, epsilon in EPSILONS.items()
        for kind, arguments in DESCENTS.items()
    },
    "L2AdditiveGaussianNoiseAttack": {"epsilons": 12.0},
    "L2AdditiveUniformNoiseAttack": {"epsilons": 12.0},
    "L2ClippingAwareAdditiveGaussianNoiseAttack": {"epsilons": 10.0},
    "L2ClippingAwareAdditiveUniformNoiseAttack": {"epsilons": 10.0},
    "LinfAdditiveUniformNoiseAttack": {"epsilons": 0.7},
    "L2RepeatedAdditiveGaussianNoiseAttack": {"epsilons": 10.0, "repeats": 100},
    "L2RepeatedAdditiveUniformNoiseAttack": {"epsilons": 10.0, "repeats": 100},
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": {"epsilons": 8.0, "repeats": 100},
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": {"epsilons": 8.0, "repeats": 100},
    "LinfRepeatedAdditiveUniformNoiseAttack": {"epsilons": 0.5, "repeats": 100},
    "SparseL1DescentAttack": {"epsilons": 20.0, "steps": 20, "quantile": 0.95},
    "InversionAttack": {"epsilons": None},
    "BinarySearchContrastReductionAttack": {"epsilons": None},
    "LinearSearchContrastReductionAttack": {"epsilons": None, "steps": 100},
    "L2CarliniWagnerAttack": {
        "epsilons": None,
        "binary_search_steps": 4,
        "steps": 60,
        "stepsize": 0.03,
        "initial_const": 1.0,
    },
    "NewtonFoolAttack": {"epsilons": None, "steps": 100, "stepsize": 1e-4},
    "EADAttack": {
        "epsilons": None,
        "binary_search_steps": 4,
        "steps": 60,
        "initial_stepsize": 0.05,
        "initial_const": 1.0,
    },
    "GaussianBlurAttack": {"epsilons": None, "steps": 100},
    "L2DeepFoolAttack": {"epsilons": None, "steps": 50},
    "LinfDeepFoolAttack": {"epsilons": None, "steps": 50},
    "SaltAndPepperNoiseAttack": {"epsilons": None, "steps": 200},
    "LinearSearchBlendedUniformNoiseAttack": {"epsilons": None, "directions": 200, "steps": 100},
    "BoundaryAttack": {"epsilons": None, "steps": 300},
    "HopSkipJumpAttack": {
        "epsilons": None,
        "steps": 3,
        "initial_gradient_eval_steps": 20,
        "max_gradient_eval_steps": 40,
    },
    "L0BrendelBethgeAttack": {"epsilons": None, "steps": 30},
    "L1BrendelBethgeAttack": {"epsilons": None, "steps": 30},
    "L2BrendelBethgeAttack": {"epsilons": None, "steps": 30},
    "LinfinityBrendelBethgeAttack": {"epsilons": None, "steps": 30},
    "L0FMNAttack": {"epsilons": None, "steps": 60},
    "L1FMNAttack": {"epsilons": None, "steps": 60},
    "L2FMNAttack": {"epsilons": None, "steps": 60},
    "LInfFMNAttack": {"epsilons": None, "steps": 60},
    "GenAttack": {"epsilons": 0.4, "steps": 60, "population": 20},
    "PointwiseAttack": {"epsilons": None},
}
"""Each attack that can be measured, with its arguments; ``epsilons`` is the call's (None: no budget)."""

LEFT_OUT = {
    "BinarizationRefinementAttack": "it rounds points that another attack found and takes no steps of its own, so that late "
    "masking and projection give the same images",
}

IMAGES = {
    "L0BrendelBethgeAttack": 16,
    "L1BrendelBethgeAttack": 16,
    "L2BrendelBethgeAttack": 16,
    "LinfinityBrendelBethgeAttack": 16,
    "PointwiseAttack": 16,
    "GenAttack": 32,
}
"""How many images a slow attack has, where not all."""

FROM_FAR = (
    "BoundaryAttack",
    "HopSkipJumpAttack",
    "L0BrendelBethgeAttack",
    "L1BrendelBethgeAttack",
    "L2BrendelBethgeAttack",
    "LinfinityBrendelBethgeAttack",
    "PointwiseAttack",
)
"""Attacks that fail for the whole batch if one image has no starting point: both ways are given the same points."""


def ways(name: str, part: Setting) -> Ways:
    """The bare and the projected attack of one row."""
    arguments = dict(ATTACKS[name])
    epsilons = arguments.pop("epsilons")
    attack = getattr(foolbox.attacks, name)(**arguments)
    call: dict[str, Any] = {"epsilons": epsilons}
    if name in FROM_FAR:
        call["starting_points"] = part.starting_points()
    criterion = foolbox.criteria.Misclassification(part.y)
    if name == "GenAttack":
        criterion = foolbox.criteria.TargetedMisclassification(part.targets())
    model = foolbox.PyTorchModel(part.model, bounds=(0, 1), device="cpu")

    def run(attack: Any) -> Tensor:
        clipped: Tensor = attack(model, part.x, criterion, **call)[1]
        return clipped

    return partial(run, attack), partial(run, SIPWrapper(attack, part.salience))


def conditions(names: list[str]) -> dict[str, Any]:
    """What else the record says of these rows."""
    return {
        "fewer_images": {name: count for name, count in IMAGES.items() if name in names},
        "left_out": LEFT_OUT,
        "same_starting_points": [name for name in FROM_FAR if name in names],
    }
