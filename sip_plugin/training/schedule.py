"""How far training is: what drives every schedule of a method."""

from __future__ import annotations

from dataclasses import dataclass


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
            raise ValueError(
                f"{asker!r} has a schedule: call trainer.set_epoch(epoch, epochs) at the start of each epoch."
            )
        return self.epoch / self.epochs
