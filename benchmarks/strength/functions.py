"""The attacks of libraries without an adapter of their own, most of them functions, in the comparison with late masking."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import secmlt.adv.evasion as secml  # before adv_lib: it puts something in the place of visdom, which no longer builds
import torch
import torchattack
from torch import Tensor, nn

from benchmarks.strength.setting import Setting, Ways
from sip_plugin import SIPWrapper

LINF = {"eps": 0.12, "alpha": 0.02, "steps": 10}
LONG = {"eps": 0.12, "alpha": 0.01, "steps": 40}  # for attacks whose queries are random or transformed
LAYER = {**LINF, "feature_layer_cfg": "4", "num_ens": 5}
CLIPPED = {"clip_min": 0.0, "clip_max": 1.0}
SEARCH = {"binary_search_steps": 4, "max_iterations": 60, "initial_const": 1.0}

ATTACKS: dict[str, dict[str, Any]] = {
    "adv_lib.alma": {"num_steps": 60},
    "adv_lib.apgd Linf": {"norm": "inf", "eps": 0.12, "n_iter": 20},
    "adv_lib.apgd L2": {"norm": 2, "eps": 1.2, "n_iter": 20},
    "adv_lib.apgd L1": {"norm": 1, "eps": 20.0, "n_iter": 20},
    "adv_lib.apgd_targeted": {"norm": "inf", "eps": 0.12, "n_iter": 20, "num_targets": 3},
    "adv_lib.carlini_wagner_l2": {"learning_rate": 0.03, **SEARCH},
    "adv_lib.carlini_wagner_linf": {
        "learning_rate": 0.05,
        "max_iterations": 20,
        "initial_const": 0.1,
        "largest_const": 2.0,
    },
    "adv_lib.ddn": {"steps": 30},
    "adv_lib.df": {"steps": 50},
    "adv_lib.fab Linf": {"norm": "inf", "n_iter": 20},
    "adv_lib.fab L2": {"norm": 2, "n_iter": 20},
    "adv_lib.fab L1": {"norm": 1, "n_iter": 20},
    "adv_lib.fga": {"targeted": False, "max_iter": 60},
    "adv_lib.vfga": {"targeted": False, "max_iter": 40},
    "adv_lib.fmn L0": {"norm": 0, "steps": 60},
    "adv_lib.fmn L1": {"norm": 1, "steps": 60},
    "adv_lib.fmn L2": {"norm": 2, "steps": 60},
    "adv_lib.fmn Linf": {"norm": "inf", "steps": 60},
    "adv_lib.pdgd": {"num_steps": 60},
    "adv_lib.pdpgd L1": {"norm": 1, "num_steps": 60},
    "adv_lib.pdpgd L2": {"norm": 2, "num_steps": 60},
    "adv_lib.pdpgd Linf": {"norm": "inf", "num_steps": 60},
    "adv_lib.perc_al": {"num_classes": 10, "max_iterations": 60},
    "adv_lib.pgd_linf": {"ε": 0.12, "steps": 10, "absolute_step_size": 0.02},
    "adv_lib.sdf": {"steps": 20},
    "adv_lib.sigma_zero": {"num_steps": 60},
    "adv_lib.str_attack": {"retrain": False, **SEARCH},
    "adv_lib.tr": {"iter": 100, "eps": 0.05},
    "torchattack.FGSM": {"eps": 0.12},
    "torchattack.IFGSM": LINF,
    "torchattack.PGD": LINF,
    "torchattack.PGDL2": {"eps": 1.2, "alpha": 0.3, "steps": 10},
    "torchattack.MIFGSM": LINF,
    "torchattack.NIFGSM": LINF,
    "torchattack.DIFGSM": LONG,
    "torchattack.TIFGSM": {**LINF, "kern_len": 5},
    "torchattack.SINIFGSM": LINF,
    "torchattack.VMIFGSM": LINF,
    "torchattack.VNIFGSM": LINF,
    "torchattack.Admix": {**LINF, "num_classes": 10},
    "torchattack.BSR": {**LONG, "num_scale": 5, "num_block": 2},
    "torchattack.DeCoWA": {**LONG, "num_warping": 4},
    "torchattack.GRA": {**LINF, "num_neighbors": 4},
    "torchattack.MIG": {**LINF, "s_factor": 5, "targeted": True},  # otherwise it makes the true class more likely
    "torchattack.MuMoDIG": LINF,
    "torchattack.BFA": {**LAYER, "num_classes": 10},
    "torchattack.DANAA": LAYER,
    "torchattack.FIA": LAYER,
    "torchattack.NAA": LAYER,
    "torchattack.DR": {**LONG, "eps": 0.3, "feature_layer_cfg": "4"},
    "torchattack.ILPD": {**LONG, "feature_layer_cfg": "4"},
    "torchattack.FDA": {**LONG, "eps": 0.25},
    "torchattack.DeepFool": {"steps": 20},
    "cleverhans.fast_gradient_method": {"eps": 0.12, "norm": "inf", **CLIPPED},
    "cleverhans.projected_gradient_descent": {"eps": 1.2, "eps_iter": 0.3, "nb_iter": 10, "norm": 2, **CLIPPED},
    "cleverhans.sparse_l1_descent": {"eps": 20.0, "eps_iter": 3.0, "grad_sparsity": 95, **CLIPPED},
    "cleverhans.carlini_wagner_l2": {"n_classes": 10, "lr": 0.03, **SEARCH},
    "cleverhans.spsa": {"eps": 0.3, "nb_iter": 20, "learning_rate": 0.03, "spsa_samples": 64, **CLIPPED},
    "cleverhans.hop_skip_jump_attack": {"norm": 2, "num_iterations": 4, "initial_num_evals": 20, "verbose": False},
    "secml_torch.PGD native": {
        "perturbation_model": "linf",
        "epsilon": 0.12,
        "num_steps": 10,
        "step_size": 0.02,
        "backend": "native",
    },
    "secml_torch.FMN native": {"perturbation_model": "l2", "num_steps": 60, "step_size": 1.0, "backend": "native"},
    "secml_torch.DDN native": {"num_steps": 30, "eps_init": 1.0, "backend": "native"},
    "secml_torch.DeepFool foolbox": {"num_steps": 50, "backend": "foolbox"},
}
"""Each attack that can be measured, with its arguments."""

LEFT_OUT = {"torchattack.GeoDA": "it searches for ever where no random noise fools the network"}
IMAGES = {"adv_lib.carlini_wagner_linf": 8, "cleverhans.spsa": 16, "cleverhans.hop_skip_jump_attack": 16}
"""How many images a slow attack has, where not all."""


def ways(name: str, part: Setting) -> Ways:
    """The bare and the projected attack of one row."""
    arguments = {key: math.inf if value == "inf" else value for key, value in ATTACKS[name].items()}
    library, kind = name.split()[0].split(".")
    attack = built(library, kind, part.model, arguments)
    bare, projected = partial(called, name, attack), partial(called, name, SIPWrapper(attack, part.salience))
    return partial(bare, part.x, part.y), partial(projected, part.x, part.y)


def built(library: str, name: str, model: nn.Module, arguments: dict[str, Any]) -> Any:
    """An attack on a network: an object with a ``.model``, or a function that holds the network."""
    if library == "adv_lib":
        return partial(getattr(importlib.import_module("adv_lib.attacks"), name), model, **arguments)
    if library == "cleverhans":
        return partial(getattr(importlib.import_module(f"cleverhans.torch.attacks.{name}"), name), model, **arguments)
    if library == "secml_torch":
        module = importlib.import_module(f"{secml.__name__}.{name.lower()}")
        return partial(getattr(module, name)(**arguments), model)
    return getattr(torchattack, name)(model, device=torch.device("cpu"), **arguments)


def called(name: str, attack: Any, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """What an attack, bare or wrapped, gives for a batch."""
    adversarial: Tensor
    if name.startswith("secml_torch") and not isinstance(attack, SIPWrapper):
        ((adversarial, _),) = attack([(x.detach(), y)], stream=True)
    elif name.startswith("cleverhans"):
        adversarial = attack(x.detach(), **({} if "hop_skip" in name else {"y": y}), **options)
    else:
        adversarial = attack(x if isinstance(attack, SIPWrapper) else x.detach(), y, **options)
    return adversarial.detach()


def conditions(names: list[str]) -> dict[str, Any]:
    """What else the record says of these rows."""
    return {"fewer_images": {name: count for name, count in IMAGES.items() if name in names}, "left_out": LEFT_OUT}
