"""The training methods: every general property is tested over this list. A new method is a new row."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sip_plugin.training import FAT, MART, PART, SIPAT, TRADES, AdversarialTrainer, Madry, Method, Standard

EPS, ALPHA, STEPS = 0.1, 0.03, 4


@dataclass(frozen=True)
class Row:
    """A method, and what is known of it."""

    make: Callable[[], Method]
    passes: int | None  # forward passes of a call with K = STEPS, None where it depends on the images
    starts_at_the_image: bool = True  # random_start=False is legal

    def trainer(self, model, salience=None, **changes):
        settings = {"eps": EPS, "alpha": ALPHA, "steps": STEPS, **changes}
        trainer = AdversarialTrainer(model, self.make(), salience=salience, **settings)
        trainer.set_epoch(5, 10)
        return trainer

    def __str__(self):
        return self.make().name


ROWS = [
    Row(Standard, 1),
    Row(Madry, STEPS + 1),
    Row(SIPAT, STEPS + 1),
    Row(TRADES, 1 + STEPS + 2, starts_at_the_image=False),
    Row(MART, STEPS + 2),
    Row(FAT, None),
    Row(lambda: PART(eps_low=0.05), STEPS + 1 + 1),
]
every_method = pytest.mark.parametrize("row", ROWS, ids=str)
every_search = pytest.mark.parametrize("row", [row for row in ROWS if row.make().adversarial], ids=str)
