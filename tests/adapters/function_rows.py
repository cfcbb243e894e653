"""The list of attacks of libraries without an adapter of their own that every property runs over, and that the page lists.

It imports none of them, so that ``scripts/make_compatibility.py`` can read it.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from tests.adapters.rows import CommonRow

LIBRARIES = {
    "adv_lib": "adv_lib 0.2 (`adv-lib`)",
    "torchattack": "torchattack 1.7",
    "cleverhans": "CleverHans 4.0 (`cleverhans.torch`)",
    "secml_torch": "SecML-Torch 1.5 (`secml-torch`)",
}
VIT, GENERATOR = (
    "bound to certain vision transformers of timm; not tried",
    "asks a generator of its own, and never the wrapped network",
)
OUTSIDE = {
    "torchattack": {
        **dict.fromkeys(("ATT", "PNAPatchOut", "TGR", "VDC"), VIT),
        **dict.fromkeys(("BIA", "CDA", "GAMA", "LTP"), GENERATOR),
        "BPA": "bound to ResNets; works on a ResNet-18",
        "L2T": "calls CUDA whatever its device is; not tried",
        "SGM": "bound to ResNets and DenseNets; works on a ResNet-18",
        "SSA": "takes images of 224×224 only; works on them",
        "SSP": "asks a VGG of its own, and never the wrapped network",
    },
    "cleverhans": {
        "noise": "asks no network",
        "semantic": "asks no network",
    },
}
"""Attacks that the contract does not run over: why, and whether they work."""


@dataclasses.dataclass(frozen=True)
class FunctionRow(CommonRow):
    """An attack with its arguments; see ``CommonRow`` for what it shares with others.

    Attributes:
        alone: Whether it asks about copies or parts of its batch and so runs one image at a time.
        remark: What the page says of it.
    """

    library: str
    name: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    norm: str | None = "Linf"
    fixed_steps: bool = True
    alone: bool = False
    remark: str = ""

    @property
    def eps(self) -> float:
        return next(self.arguments[name] for name in ("eps", "ε", "epsilon") if name in self.arguments)

    def build(self, network: nn.Module) -> Any:
        from benchmarks.strength.functions import built

        arguments = dict(self.arguments)
        if "feature_layer_cfg" in arguments and not isinstance(network, nn.Sequential):  # within a network of the tests
            arguments["feature_layer_cfg"] = f"network.{arguments['feature_layer_cfg']}"
        return built(self.library, self.name, network, arguments)

    def call(self, attack: Any, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        from benchmarks.strength.functions import called

        return called(f"{self.library}.{self.name}", attack, images, labels, **options)

    def references(self, attack: Any) -> list[tuple[Any, Any]]:
        if self.library == "torchattack":
            return [(lambda: attack.model, attack.model)]
        return [(lambda: attack.args, attack.args)]

    def __str__(self) -> str:
        more = [
            str(self.arguments[name]) for name in ("norm", "perturbation_model", "backend") if name in self.arguments
        ]
        return "-".join([self.library, self.name, *more])


INF = math.inf
STEPS = {"eps": 0.1, "alpha": 0.03, "steps": 3}
LAYER = {**STEPS, "feature_layer_cfg": "4", "num_ens": 2}
FREE = {"norm": None, "fixed_steps": False}
ALONE = {"fixed_steps": False, "alone": True}
CLIPPED = {"clip_min": 0.0, "clip_max": 1.0}

PARTS = ("carlini_wagner_linf", "df", "sdf", "fga", "vfga", "Admix", "BSR", "FDA", "MIG")

TABLE = [
    *(
        FunctionRow("adv_lib", name, arguments, **FREE, alone=name in PARTS)
        for name, arguments in {
            "alma": {"num_steps": 6},
            "carlini_wagner_l2": {
                "max_iterations": 10,
                "binary_search_steps": 2,
                "initial_const": 10.0,
                "learning_rate": 0.1,
            },
            "carlini_wagner_linf": {
                "max_iterations": 5,
                "initial_const": 1.0,
                "largest_const": 4.0,
                "learning_rate": 0.1,
            },
            "ddn": {"steps": 5},
            "df": {"steps": 4},
            "pdgd": {"num_steps": 5},
            "perc_al": {"num_classes": 10, "max_iterations": 4},
            "sdf": {"steps": 2, "df_steps": 2, "search_iter": 2},
            "sigma_zero": {"num_steps": 5},
            "str_attack": {"max_iterations": 4, "binary_search_steps": 2, "initial_const": 10.0, "retrain": False},
            "tr": {"iter": 5},
            "fga": {"targeted": False, "max_iter": 15, "n_samples": 2},
            "vfga": {"targeted": False, "max_iter": 15, "n_samples": 2},
        }.items()
    ),
    *(
        FunctionRow("adv_lib", "fmn", {"norm": norm, "steps": 20 if norm == 0 else 10}, **FREE)
        for norm in (0, 1, 2, INF)
    ),
    *(FunctionRow("adv_lib", "pdpgd", {"norm": norm, "num_steps": 5}, **FREE) for norm in (0, 1, 2, INF)),
    *(FunctionRow("adv_lib", "fab", {"norm": norm, "n_iter": 3}, **FREE) for norm in (1, 2, INF)),
    FunctionRow("adv_lib", "apgd", {"norm": INF, "eps": 0.1, "n_iter": 4}, fixed_steps=False),
    FunctionRow(
        "adv_lib", "apgd", {"norm": 2, "eps": 1.0, "n_iter": 4, "n_restarts": 2}, "L2", **ALONE, remark="with restarts"
    ),
    FunctionRow("adv_lib", "apgd", {"norm": 1, "eps": 10.0, "n_iter": 4}, None, fixed_steps=False),
    FunctionRow("adv_lib", "apgd_targeted", {"norm": INF, "eps": 0.1, "n_iter": 3, "num_targets": 2}, **ALONE),
    FunctionRow(
        "adv_lib",
        "pgd_linf",
        {"ε": 0.15, "steps": 3, "restarts": 2, "absolute_step_size": 0.1},
        **ALONE,
        remark="with restarts",
    ),
    *(
        FunctionRow("torchattack", name, {**STEPS, **arguments}, fixed_steps=name not in PARTS, alone=name in PARTS)
        for name, arguments in {
            "IFGSM": {},
            "PGD": {},
            "MIFGSM": {},
            "NIFGSM": {},
            "DIFGSM": {},
            "TIFGSM": {"kern_len": 5},
            "SINIFGSM": {"m": 2},
            "VMIFGSM": {"n": 2},
            "VNIFGSM": {"n": 2},
            "Admix": {"num_classes": 10},
            "BSR": {"num_scale": 2},
            "DeCoWA": {"num_warping": 2},
            "GRA": {"num_neighbors": 2},
            "MIG": {"s_factor": 2},
            "BFA": {**LAYER, "num_classes": 10},
            "DANAA": LAYER,
            "FIA": LAYER,
            "NAA": LAYER,
            "DR": {"feature_layer_cfg": "4"},
            "ILPD": {"feature_layer_cfg": "4"},
            "FDA": {},
            "MuMoDIG": {},
        }.items()
    ),
    FunctionRow("torchattack", "FGSM", {"eps": 0.1}),
    FunctionRow("torchattack", "PGDL2", {"eps": 1.0, "alpha": 0.4, "steps": 3}, "L2"),
    FunctionRow("torchattack", "DeepFool", {"steps": 4}, **FREE),
    FunctionRow(
        "torchattack",
        "GeoDA",
        {"input_shape": (3, 16, 16), "max_queries": 500, "sub_dim": 8},
        images=1,
        alone=True,
        **FREE,
    ),
    FunctionRow("cleverhans", "fast_gradient_method", {"eps": 0.1, "norm": INF, **CLIPPED}),
    FunctionRow(
        "cleverhans",
        "projected_gradient_descent",
        {"eps": 1.0, "eps_iter": 0.4, "nb_iter": 3, "norm": 2, **CLIPPED},
        "L2",
    ),
    FunctionRow("cleverhans", "sparse_l1_descent", {"eps": 10.0, "eps_iter": 4.0, "nb_iter": 3, **CLIPPED}, None),
    FunctionRow(
        "cleverhans",
        "carlini_wagner_l2",
        {"n_classes": 10, "lr": 0.1, "initial_const": 10.0, "binary_search_steps": 2, "max_iterations": 5},
        **FREE,
    ),
    FunctionRow("cleverhans", "spsa", {"eps": 0.1, "nb_iter": 2, "spsa_samples": 4, **CLIPPED}, alone=True),
    FunctionRow(
        "cleverhans",
        "hop_skip_jump_attack",
        {"norm": 2, "initial_num_evals": 10, "num_iterations": 1, "verbose": False},
        alone=True,
        **FREE,
    ),
    FunctionRow(
        "secml_torch",
        "PGD",
        {
            "perturbation_model": "linf",
            "epsilon": 0.1,
            "num_steps": 3,
            "step_size": 0.04,
            "random_start": True,
            "backend": "native",
        },
    ),
    FunctionRow(
        "secml_torch",
        "FMN",
        {"perturbation_model": "l2", "num_steps": 5, "step_size": 1.0, "backend": "native"},
        **FREE,
    ),
    FunctionRow("secml_torch", "DDN", {"num_steps": 10, "eps_init": 1.0, "backend": "native"}, **FREE),
    FunctionRow(
        "secml_torch",
        "PGD",
        {"perturbation_model": "linf", "epsilon": 0.1, "num_steps": 3, "step_size": 0.04, "backend": "advlib"},
    ),
    FunctionRow("secml_torch", "DeepFool", {"num_steps": 4, "backend": "foolbox"}, **FREE),
]
