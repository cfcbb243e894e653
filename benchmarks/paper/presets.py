"""The tables: which cells they have. ``cifar10``, ``cifar100`` and ``cub`` are the paper's (sections 4.1 to 4.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.paper.protocols import Cell, Evaluation, Training

PAPER_METHODS = ("standard", "madry", "trades", "fat", "part", "sip-s")
CONTROLS = ("sip-random", "sip-least")


@dataclass(frozen=True)
class Preset:
    """A table: all its methods on all its networks, over the seeds."""

    dataset: str
    archs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    teacher_arch: str
    training: Training
    evaluation: Evaluation = field(default_factory=Evaluation)
    base: str | None = None
    """A preset with the same settings, whose cells of some methods stand in this table, too."""

    def cells(self) -> Iterator[Cell]:
        """Seed by seed, so that an interrupted table is whole for the seeds that it has; without those of ``base``."""
        others = PRESETS[self.base].methods if self.base else ()
        for seed in self.seeds:
            for arch in self.archs:
                for method in (method for method in self.methods if method not in others):
                    yield Cell(self.dataset, arch, method, seed, self.teacher_arch, self.training, self.evaluation)


_CIFAR = Training(epochs=100, milestones=(60,))
# A sixth of CIFAR-10 and a network and schedule that two CPU cores finish; every method of the library and the controls.
_CPU = Preset(
    "cifar10",
    ("convnet24",),
    ("standard", "madry", "sip-s", "trades", "fat", "fat-rising", "part", "mart", "sip-fat-rising", *CONTROLS),
    (0, 1, 2),
    "convnet48",
    Training(
        epochs=12,
        learning_rate=0.1,
        schedule="one-cycle",
        nesterov=True,
        precision="bf16-mixed",
        validation_every=4,
    ),
    Evaluation(assume_survivors=True, batch_size=64, fold_batchnorm=True),
)

PRESETS = {
    "cifar10": Preset("cifar10", ("resnet18", "wrn-34-10"), PAPER_METHODS, tuple(range(5)), "wrn-34-10", _CIFAR),
    "cifar100": Preset("cifar100", ("resnet18", "wrn-34-10"), PAPER_METHODS, tuple(range(5)), "wrn-34-10", _CIFAR),
    "cub": Preset(
        "cub",
        ("resnet50", "densenet121"),
        (*PAPER_METHODS, "sip-h"),
        tuple(range(5)),
        "densenet121",
        Training(
            epochs=80,
            milestones=tuple(range(10, 80, 10)),
            decay=0.75,
            augmentation="flip",
            alpha=1 / 255,
            steps=32,
            pretrained=True,
        ),
        Evaluation(batch_size=64),
    ),
    "cifar10-cpu": _CPU,
    # How large the maps are, and whose.
    "cifar10-cpu-maps": dataclasses.replace(
        _CPU,
        methods=(
            *("madry", "sip-s", "sip-random", "sip-s-25", "sip-random-25", "sip-s-75", "sip-random-75"),
            *("sip-same-class", "sip-other-class"),
        ),
        seeds=(0, 1),
        base="cifar10-cpu",
    ),
    # A larger network, trained for longer.
    "cifar10-cpu-long": dataclasses.replace(
        _CPU,
        archs=("convnet32",),
        methods=("madry", "sip-s", "sip-random", "fat", "sip-fat", "sip-s-pixel", "sip-random-pixel"),
        seeds=(0, 1),
        training=dataclasses.replace(_CPU.training, epochs=30, validation_every=10, fold_search=True),
    ),
    # For slices of minutes on one GPU.
    "cifar10-w32": Preset(
        "cifar10",
        ("resnet18-w32",),
        (
            *("madry", "sip-s", "sip-random", "trades", "fat", "standard", "part", "sip-fat"),
            *("fat-rising", "sip-fat-rising"),
        ),
        (0, 1, 2),
        "resnet18-w32",
        Training(
            epochs=30,
            batch_size=256,
            learning_rate=0.2,
            schedule="one-cycle",
            nesterov=True,
            precision="bf16-mixed",
            compile=True,
            fold_search=True,
        ),
        Evaluation(assume_survivors=True, batch_size=512, fold_batchnorm=True),
    ),
    # Minutes on two cores: shows the machinery, not the methods' worth.
    "digits": Preset(
        "digits",
        ("convnet8",),
        ("standard", "madry", "sip-s", "trades", "fat", "part", "mart", "sip-trades", "sip-fat", *CONTROLS),
        (0, 1),
        "convnet16",
        Training(
            epochs=10,
            learning_rate=0.1,
            schedule="one-cycle",
            nesterov=True,
            augmentation="none",
            eps=0.2,
            alpha=0.05,
            validation_every=5,
        ),
        Evaluation(eps=(0.05, 0.1, 0.15, 0.2), images=128, assume_survivors=True, batch_size=64, fold_batchnorm=True),
    ),
}
