"""The attacks of torchattacks in the comparison with late masking."""

from __future__ import annotations

from functools import partial
from typing import Any

import torchattacks
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.strength.setting import Setting, Ways
from sip_plugin import SIPWrapper

LINF = {"eps": 0.12, "alpha": 0.02, "steps": 10}
SMOOTHED = {"steps": 10, "noise_batch_size": 4, "noise_sd": 0.05}
ELASTIC = {"lr": 0.05, "binary_search_steps": 5, "max_iterations": 50, "initial_const": 1.0}

ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM": {"eps": 0.12},
    "BIM": LINF,
    "RFGSM": LINF,
    "PGD": LINF,
    "EOTPGD": LINF,
    "FFGSM": {"eps": 0.12, "alpha": 0.15},
    "TPGD": LINF,
    "MIFGSM": LINF,
    "UPGD": LINF,
    "APGD Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "APGD L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "APGDT Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "APGDT L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "DIFGSM": {"eps": 0.12, "alpha": 0.01, "steps": 40},
    "TIFGSM": {**LINF, "len_kernel": 5},
    "Jitter": {**LINF, "steps": 20, "scale": 5},  # with its default of 10 even the bare attack leaves half correct
    "NIFGSM": LINF,
    "PGDRS": {"eps": 0.12, "alpha": 0.02, **SMOOTHED},
    "SINIFGSM": {**LINF, "eps": 0.15, "m": 3},
    "VMIFGSM": {**LINF, "N": 3},
    "VNIFGSM": {**LINF, "N": 3},
    "SPSA": {"eps": 0.2, "lr": 0.02, "nb_iter": 10, "nb_sample": 64, "max_batch_size": 16},
    "JSMA": {"theta": 1.0, "gamma": 0.05},
    "EADL1": ELASTIC,
    "EADEN": ELASTIC,
    "PIFGSM": {"max_epsilon": 0.12, "num_iter_set": 10},
    "PIFGSMPP": {"max_epsilon": 0.12, "num_iter_set": 10},
    "CW": {"c": 5, "steps": 60, "lr": 0.03},
    "PGDL2": {"eps": 1.2, "alpha": 0.3, "steps": 10},
    "DeepFool": {"steps": 20},
    "PGDRSL2": {"eps": 1.2, "alpha": 0.3, **SMOOTHED},
    "SparseFool": {"steps": 5},
    "OnePixel": {"pixels": 6, "steps": 10, "popsize": 60},
    "Pixle": {"max_iterations": 20, "restarts": 10, "x_dimensions": 5, "y_dimensions": 5},
    "FAB Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "FAB L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "Square Linf": {"norm": "Linf", "eps": 0.2, "n_queries": 300},
    "Square L2": {"norm": "L2", "eps": 2.0, "n_queries": 300},
    "AutoAttack": {"norm": "Linf", "eps": 0.12, "seed": 0},
    "MultiAttack": {"members": ["FGSM", "PGDL2"]},
    "LGV": {**LINF, "lr": 0.005, "epochs": 1, "nb_models_epoch": 2, "verbose": False},
}
"""Each attack that steers by the network, with its arguments."""

LEFT_OUT = {"VANILA": "makes no query", "GN": "makes no query"}
IMAGES: dict[str, int] = {}


def ways(name: str, part: Setting) -> Ways:
    """The bare and the projected attack of one row."""
    attack = built(name, part.model, DataLoader(part.training, batch_size=50))
    return partial(attack, part.x, part.y), partial(SIPWrapper(attack, part.salience), part.x, part.y)


def built(name: str, model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> Any:
    """The attack of one row."""
    arguments = ATTACKS[name]
    if name == "MultiAttack":
        return torchattacks.MultiAttack([built(member, model, loader) for member in arguments["members"]])
    if name == "LGV":
        return torchattacks.LGV(model, loader, **arguments)
    return getattr(torchattacks, name.split()[0])(model, **arguments)


def conditions(names: list[str]) -> dict[str, Any]:
    """What else the record says of these rows: nothing."""
    return {}
