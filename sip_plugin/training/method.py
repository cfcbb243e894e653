"""What an adversarial training method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_logits
from sip_plugin.constraint import FeasibleSet
from sip_plugin.utils import short_repr


@dataclass(frozen=True)
class TrainingProgress:
    """The epoch that training is in.

    Attributes:
        epoch: The current epoch, from 0.
        epochs: How many there will be, None as long as nobody said so.
    """

    epoch: int = 0
    epochs: int | None = None

    def fraction(self, asker: object) -> float:
        """The fraction of the epochs that is done, from 0 to below 1.

        Raises:
            ValueError: If the number of epochs is not known; says that ``asker`` has a schedule.
        """
        if self.epochs is None:
            raise ValueError(f"{asker!r} has a schedule: call trainer.set_epoch(epoch, epochs) before each epoch.")
        return self.epoch / self.epochs


class Method:
    """What an :class:`~sip_plugin.AdversarialTrainer` asks of a training method.

    The defaults are Madry's: search the images that the cross-entropy is largest at, and train on them. A method of one's
    own says in what it differs, most often in one or two of ``objective``, ``loss`` and ``start``.

    Attributes:
        name: The name that the trainer takes it by, and that checkpoints bear; that of the class if it says none.
        adversarial: Whether there is an inner search at all.
        needs_salience: Whether it is an error to train without a map.
        needs_random_start: Whether it is an error to start the search at the image itself.
        takes_attack: Whether another attack may take the place of the search.
        fixed_length: Whether all images go on to the last step, so that it can be compiled; not if ``patience`` is its own.
        step_noise: Standard deviation of the normal noise that each step of the search adds before the projection.
    """

    name = "method"
    adversarial = True
    needs_salience = False
    needs_random_start = False
    takes_attack = True
    fixed_length = True
    step_noise = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__  # or a checkpoint of one method would pass for another's
        if cls.patience is not Method.patience and "fixed_length" not in vars(cls):
            cls.fixed_length = False

    def start(self, feasible: FeasibleSet) -> Tensor:
        """Where the search starts, a point of the set ``(N, C, H, W)``; not asked with ``random_start=False``."""
        return feasible.random_start()

    def budget(self, network: nn.Module, images: Tensor, eps: float, progress: TrainingProgress) -> Tensor | None:
        """The largest change per element before salience, broadcastable to ``(N, C, H, W)``; None for ``eps`` everywhere.

        The network is in eval mode. Where ``eps`` or a salience map allows less, the smaller budget wins.
        """
        return None

    def target(self, network: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        """What the objective compares the network's output with, one row per image; computed once, before the search.

        The network is in eval mode, and no graph is recorded. The labels by default.
        """
        return labels

    def objective(self, target: Tensor) -> Callable[[Any], Tensor]:
        """What the search maximises: logits ``(n, classes)`` to a scalar, summed over the images that ``target`` is of."""
        return lambda logits: F.cross_entropy(check_logits(logits, len(target)), target, reduction="sum")

    def patience(self, progress: TrainingProgress) -> int | None:
        """After how many misclassifications an image still goes on (FAT's τ); None to take every step with every image."""
        return None

    def loss(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The scalar that the caller's loop minimises, with its graph; runs in the mode the caller set."""
        return F.cross_entropy(check_logits(network(adversarial), len(labels)), labels)

    def state_dict(self) -> dict[str, Any]:
        """What a method learns during training, empty if it goes by the epoch alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state_dict`` gave."""

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={short_repr(each)}" for name, each in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({given})"
