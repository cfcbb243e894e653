"""How a network is trained and evaluated, as plain data: everything that a result file has to state."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from sip_plugin.checks import check_eps
from sip_plugin.evaluation.autoattack import VERSIONS
from sip_plugin.evaluation.eps import distinct_eps

Schedule = Literal["step", "one-cycle"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Training:
    """The training protocol. What the paper does not state (section 4.3) is marked so.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes together.
        learning_rate: SGD's; the highest one of a one-cycle schedule.
        schedule: ``"step"`` (times ``decay`` at each of ``milestones``) or ``"one-cycle"`` (up for 30 % of training, then
            down to zero by a cosine).
        milestones: Epochs after which the learning rate falls.
        decay: Factor of each fall.
        momentum: SGD's; not stated in the paper.
        weight_decay: SGD's; not stated in the paper.
        nesterov: Not stated in the paper.
        augmentation: ``"none"``, ``"flip"`` or ``"crop-flip"`` (a crop after a padding of an eighth of the height); not
            stated in the paper.
        eps: Radius of the search (L∞).
        alpha: Its step size.
        steps: Its steps.
        validation_share: Share of the training images that is held out.
        validation_every: Epochs between two looks at the held-out images; the last epoch always looks.
        precision: Lightning Fabric's: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        pretrained: Start from torchvision's ImageNet weights.
        compile: Compile the search's step as one graph.
        fold_search: Search on the network with its BatchNorm layers folded into the convolutions before them.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.01
    schedule: Schedule = "step"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    augmentation: Literal["none", "flip", "crop-flip"] = "crop-flip"
    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    validation_share: float = 0.1
    validation_every: int = 10
    precision: Precision = "32-true"
    pretrained: bool = False
    compile: bool = False
    fold_search: bool = False

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch-size", self.batch_size, 1)
        _at_least("steps", self.steps, 0)
        _at_least("validation-every", self.validation_every, 1)
        for name in ("eps", "alpha"):
            check_eps(getattr(self, name), name=name)
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be above 0, got {self.learning_rate}.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"--validation-share is a share from 0 to below 1, got {self.validation_share}.")

    def rate(self, done: float) -> float:
        """The learning rate when ``done`` epochs (a fraction, too) lie behind."""
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(done >= milestone for milestone in self.milestones)
        share, rise = done / self.epochs, 0.3
        if share < rise:
            return self.learning_rate * (0.04 + 0.96 * share / rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))


@dataclass(frozen=True)
class Evaluation:
    """AutoAttack, unrestricted, at nested ε (section 4.4).

    Attributes:
        eps: The radii (L∞).
        version: AutoAttack's version.
        images: How many test images, from the first; None for all.
        assume_survivors: Take an image that survives at a large ε for a survivor at the smaller ones.
        batch_size: Images per attack batch.
        fold_batchnorm: Attack the network with its BatchNorm layers folded into the convolutions before them: the same
            function up to rounding, in fewer operations.
    """

    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    version: str = "standard"
    images: int | None = None
    assume_survivors: bool = False
    batch_size: int = 256
    fold_batchnorm: bool = False

    def __post_init__(self) -> None:
        if not self.eps or not all(check_eps(eps, name="test-eps") > 0 for eps in self.eps):
            raise ValueError(f"--test-eps must be one radius or more, all above 0, got {self.eps}.")
        object.__setattr__(self, "eps", distinct_eps(self.eps))  # in any order it is the same evaluation
        if self.version not in VERSIONS:
            raise ValueError(f"--version must be one of {', '.join(VERSIONS)}, got {self.version!r}.")
        _at_least("images", 1 if self.images is None else self.images, 1)
        _at_least("test-batch-size", self.batch_size, 1)

    def key(self) -> str:
        """A short hash of these settings."""
        return _hash(dataclasses.asdict(self))


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a network, trained by one method with one seed, and evaluated.

    Attributes:
        dataset: ``"digits"``, ``"cifar10"``, ``"cifar100"`` or ``"cub"``.
        arch: A name of :data:`~benchmarks.paper.networks.NETWORKS`.
        method: A name of :data:`~benchmarks.paper.methods.METHODS`.
        seed: Of the weights, the order of the images and the augmentation.
        teacher_arch: The network that salience maps come from (SIP-S and its controls), trained by Madry's method.
        teacher_seed: Its seed.
        split_seed: Of the split into training and held-out images; the same for all seeds of a table.
        training: The protocol.
        evaluation: How it is evaluated.
    """

    dataset: str
    arch: str
    method: str
    seed: int
    teacher_arch: str
    training: Training
    evaluation: Evaluation
    teacher_seed: int = 1000
    split_seed: int = 0

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.dataset}-{self.arch}-{self.method}-seed{self.seed}"

    def teacher(self) -> Cell:
        """The cell that trains this one's teacher."""
        return dataclasses.replace(self, arch=self.teacher_arch, method="madry", seed=self.teacher_seed)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.training.fold_search:
            del plain["training"]["fold_search"]  # which earlier results do not have
        return plain

    def training_key(self, data: str, teacher: str | None) -> str:
        """A short hash of all that the trained network depends on, so that no file is taken for another network's.

        Args:
            data: The data set's :attr:`~benchmarks.paper.data.Splits.content`.
            teacher: Hash of the teacher's weights, if there is one.
        """
        settings = self.as_dict() | {"data": data, "teacher": teacher}
        for name in ("evaluation", "teacher_arch", "teacher_seed"):  # the teacher itself is told by its weights
            del settings[name]
        return _hash(settings)


def _hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"--{name} must be at least {least}, got {value}.")
