"""The list of torchattacks attacks that every property runs over: arguments small enough to run."""

import dataclasses
from typing import Any

import torch
import torchattacks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.adapters.rows import CommonRow


@dataclasses.dataclass(frozen=True)
class Row(CommonRow):
    """An attack with its arguments; see ``CommonRow`` for what it shares with others.

    Attributes:
        name: Its class in torchattacks.
        arguments: What it is built with, besides the model.
        norm: The norm of its ball, None for an attack without one.
        fixed_steps: Whether it makes the same queries and random draws whatever the network answers.
    """

    name: str
    arguments: dict[str, Any]
    norm: str | None = "Linf"
    fixed_steps: bool = True

    def call(self, attack: Any, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        """The attack's result for a batch."""
        return attack(images, labels, **options)

    def references(self, attack: Any) -> list[tuple[Any, Any]]:
        """Each object that holds the network for the attack, with what it holds."""
        holders = (attack, *attack._attacks.values())
        held = [(holder, holder.model) for holder in holders]
        return [(lambda holder=holder: holder.model, value) for holder, value in held]

    @property
    def eps(self) -> float:
        return self.arguments["max_epsilon" if "max_epsilon" in self.arguments else "eps"]

    def build(self, network: nn.Module) -> torchattacks.attack.Attack:
        build = BUILDERS.get(self.name)
        return build(network) if build else getattr(torchattacks, self.name)(network, **self.arguments)

    def __str__(self) -> str:
        return self.name + (f"-{self.norm}" if "norm" in self.arguments else "")


def build_autoattack(network: nn.Module) -> torchattacks.AutoAttack:
    attack = torchattacks.AutoAttack(network, eps=0.15, seed=0)
    for member in attack._autoattack.attacks:
        if isinstance(member, torchattacks.Square):
            member.n_queries = 20
        else:
            member.steps = 3
    return attack


def build_multiattack(network: nn.Module) -> torchattacks.MultiAttack:
    return torchattacks.MultiAttack(
        [
            torchattacks.FGSM(network, eps=0.1),
            torchattacks.DIFGSM(network, eps=0.15, alpha=0.05, steps=4, diversity_prob=0.0),
            torchattacks.PGDL2(network, eps=1.0, alpha=0.4, steps=4),
            torchattacks.DeepFool(network, steps=3),
        ]
    )


def build_lgv(network: nn.Module) -> torchattacks.LGV:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 3, 16, 16, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    settings = {"eps": 0.1, "alpha": 0.03, "steps": 5}
    return torchattacks.LGV(network, loader, lr=0.001, epochs=1, nb_models_epoch=2, verbose=False, **settings)


BUILDERS = {"AutoAttack": build_autoattack, "MultiAttack": build_multiattack, "LGV": build_lgv}

SHORT = {"eps": 0.1, "alpha": 0.03, "steps": 4}
SMOOTHED = {"steps": 3, "noise_batch_size": 3, "noise_sd": 0.05, "batch_max": 10}  # 6 images make two parts
SAME = {"diversity_prob": 0.0}
ELASTIC = {"lr": 0.1, "binary_search_steps": 5, "max_iterations": 20, "initial_const": 1.0}

TABLE = [
    Row("VANILA", {}, norm=None, finds=False),
    Row("GN", {"std": 0.1}, norm=None),
    Row("FGSM", {"eps": 0.1}, loop=True),
    Row("BIM", SHORT, loop=True),
    Row("RFGSM", SHORT),
    Row("PGD", SHORT, loop=True),
    Row("EOTPGD", {**SHORT, "eot_iter": 2}),
    Row("FFGSM", {"eps": 0.1, "alpha": 0.08}),
    Row("TPGD", SHORT),
    Row("MIFGSM", SHORT, loop=True),
    Row("UPGD", {**SHORT, "random_start": True, "decay": 0.5}),
    Row("APGD", {"norm": "Linf", "eps": 0.1, "steps": 6, "n_restarts": 2}, fixed_steps=False),
    Row("APGD", {"norm": "L2", "eps": 1.0, "steps": 6, "n_restarts": 2}, norm="L2", fixed_steps=False),
    Row("APGDT", {"norm": "Linf", "eps": 0.15, "steps": 4, "n_classes": 5}, fixed_steps=False),
    Row("APGDT", {"norm": "L2", "eps": 2.0, "steps": 4, "n_classes": 5}, norm="L2", fixed_steps=False),
    Row("DIFGSM", {**SHORT, "diversity_prob": 0.7, "decay": 0.5, "random_start": True}, loop=True, plain=SAME),
    Row("TIFGSM", {**SHORT, "diversity_prob": 0.7, "decay": 0.5, "random_start": True}, loop=True, plain=SAME),
    Row("Jitter", SHORT),
    Row("NIFGSM", SHORT),
    Row("PGDRS", {"eps": 0.1, "alpha": 0.03, **SMOOTHED}, plain={"noise_sd": 0.0}),
    Row("SINIFGSM", {**SHORT, "m": 3}, plain={"m": 1}),
    Row("VMIFGSM", {**SHORT, "N": 2}),
    Row("VNIFGSM", {**SHORT, "N": 2}),
    Row("SPSA", {"eps": 0.1, "delta": 0.01, "lr": 0.03, "nb_iter": 3, "nb_sample": 7, "max_batch_size": 3}),
    Row("JSMA", {"theta": 1.0, "gamma": 0.01}, norm=None, fixed_steps=False),
    Row("EADL1", ELASTIC, norm=None, fixed_steps=False, bounded=False),
    Row("EADEN", ELASTIC, norm=None, fixed_steps=False, bounded=False),
    Row("PIFGSM", {"max_epsilon": 0.1, "num_iter_set": 4}),
    Row("PIFGSMPP", {"max_epsilon": 0.1, "num_iter_set": 4}),
    Row("CW", {"c": 10, "steps": 12, "lr": 0.05}, norm=None, fixed_steps=False),
    Row("PGDL2", {"eps": 1.0, "alpha": 0.4, "steps": 4}, norm="L2", loop=True),
    Row("DeepFool", {"steps": 5}, norm=None, fixed_steps=False),
    Row("PGDRSL2", {"eps": 1.0, "alpha": 0.4, **SMOOTHED}, norm="L2", plain={"noise_sd": 0.0}),
    Row("SparseFool", {"steps": 2}, norm=None, fixed_steps=False),
    Row("OnePixel", {"pixels": 4, "steps": 4, "popsize": 40, "inf_batch": 7}, norm=None, fixed_steps=False),
    Row(
        "Pixle",
        {"max_iterations": 6, "restarts": 3, "x_dimensions": 4, "y_dimensions": 4},
        norm=None,
        fixed_steps=False,
    ),
    Row("FAB", {"norm": "Linf", "eps": 0.3, "steps": 6}, fixed_steps=False),
    Row(
        "FAB",
        {"norm": "L2", "eps": 4.0, "steps": 6, "multi_targeted": True, "n_classes": 5},
        norm="L2",
        fixed_steps=False,
    ),
    Row("Square", {"norm": "Linf", "eps": 0.3, "n_queries": 60}, fixed_steps=False),
    Row("Square", {"norm": "L2", "eps": 4.0, "n_queries": 60}, norm="L2", fixed_steps=False),
    Row("AutoAttack", {"eps": 0.15}, fixed_steps=False),
    Row("MultiAttack", {}, norm=None, fixed_steps=False),
    Row("LGV", {"eps": 0.1}),
]


def distance(norm: str, change: torch.Tensor) -> torch.Tensor:
    """The size of each image's change."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)
