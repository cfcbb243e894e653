"""The one list of torchattacks attacks that every property runs over: arguments small enough to run."""

import dataclasses
from typing import Any

import torch
import torchattacks
from torch import nn


@dataclasses.dataclass(frozen=True)
class Row:
    """An attack with its arguments.

    Attributes:
        name: Its class in torchattacks.
        arguments: What it is built with, besides the model.
        norm: The norm of its ball, None for an attack without one.
        fixed_steps: Whether it makes the same queries and random draws whatever the network answers.
        loop: Whether a plain loop in the tests says what it must compute, bit for bit.
    """

    name: str
    arguments: dict[str, Any]
    norm: str | None = "Linf"
    fixed_steps: bool = True
    loop: bool = False

    def build(self, network: nn.Module) -> torchattacks.attack.Attack:
        return getattr(torchattacks, self.name)(network, **self.arguments)

    def __str__(self) -> str:
        return self.name + (f"-{self.norm}" if "norm" in self.arguments else "")


SHORT = {"eps": 0.1, "alpha": 0.03, "steps": 4}

TABLE = [
    Row("FGSM", {"eps": 0.1}, loop=True),
    Row("BIM", SHORT, loop=True),
    Row("PGD", SHORT, loop=True),
    Row("PGDL2", {"eps": 1.0, "alpha": 0.4, "steps": 4}, norm="L2", loop=True),
    Row("MIFGSM", SHORT, loop=True),
    Row("DIFGSM", {**SHORT, "diversity_prob": 0.7, "decay": 0.5, "random_start": True}, loop=True),
    Row("TIFGSM", {**SHORT, "diversity_prob": 0.7, "decay": 0.5, "random_start": True}, loop=True),
    Row("APGD", {"norm": "Linf", "eps": 0.1, "steps": 6, "n_restarts": 2}, fixed_steps=False),
    Row("APGD", {"norm": "L2", "eps": 1.0, "steps": 6, "n_restarts": 2}, norm="L2", fixed_steps=False),
    Row("CW", {"c": 10, "steps": 12, "lr": 0.05}, norm=None, fixed_steps=False),
    Row("Square", {"norm": "Linf", "eps": 0.3, "n_queries": 60}, fixed_steps=False),
    Row("Square", {"norm": "L2", "eps": 4.0, "n_queries": 60}, norm="L2", fixed_steps=False),
]


def distance(norm: str, change: torch.Tensor) -> torch.Tensor:
    """The size of each image's change."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)
