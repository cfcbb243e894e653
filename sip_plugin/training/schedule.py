"""How far training is: what drives every schedule, of a method or of a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_Value = TypeVar("_Value")


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

        Args:
            asker: The method with the schedule, for the error.

        Raises:
            ValueError: If the number of epochs is not known.
        """
        if self.epochs is None:
            raise ValueError(
                f"{asker!r} has a schedule over all epochs, but their number is not known. Call "
                "trainer.set_epoch(epoch, epochs) at the start of each epoch."
            )
        return self.epoch / self.epochs


def resolve(setting: _Value | Callable[[int], _Value], epoch: int) -> _Value:
    """A setting's value in an epoch: the setting itself, or what it says if it is a callable of the epoch."""
    return setting(epoch) if callable(setting) else setting
