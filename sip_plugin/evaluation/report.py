"""What an evaluation found: the smallest norm at which each attack broke each image, and the figures that follow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sip_plugin.checks import Norm
from sip_plugin.evaluation.eps import EpsDict, eps_labels, eps_unit, same_eps
from sip_plugin.evaluation.plots import curve, draw
from sip_plugin.evaluation.statistics import standard_error, wilson_interval
from sip_plugin.evaluation.tables import Table, Tabular, per_cent, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

NORMS = {"Linf": "L∞", "L2": "L2"}
UNCHECKED = "not checked for signs of overestimated robustness (sanity_checks=False)"
_FORMAT, _VERSION = "sip_plugin.RobustnessReport", 2


class ClassAccuracy(NamedTuple):
    """Accuracies on the images of one class: how many there are, and the shares that are right."""

    images: int
    clean: float
    robust: EpsDict[float]


@dataclass(frozen=True, eq=False, repr=False)
class Report(Tabular):
    """What follows from one evaluation; see :class:`~sip_plugin.evaluation.RobustnessReport`."""

    eps: tuple[float, ...]
    norm: Norm
    attacks: tuple[str, ...]
    labels: Tensor
    norms: Tensor
    assumed: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    adversarial: dict[float, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.norms.shape != (len(self.attacks), len(self.labels)) or not len(self.labels):
            raise ValueError(
                f"norms must have a row for each of the {len(self.attacks)} attacks and a column for each of the "
                f"{len(self.labels)} images, one or more, got shape {tuple(self.norms.shape)}."
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def assume_survivors(self) -> bool:
        """Whether an image that survived a larger ε was taken to survive the smaller ones unattacked."""
        return bool(self.settings.get("assume_survivors", False))

    @property
    def smallest_norm(self) -> Tensor:
        """The norm of the smallest adversarial perturbation found of each image, float64 ``(N,)``.

        0 where the clean image is wrong, infinite where none was found. An upper bound: most attacks look for any
        perturbation within ε, not for the smallest.
        """
        return self.norms.amin(0)

    @property
    def correct_clean(self) -> Tensor:
        """Which clean images are right, bool ``(N,)``."""
        return self.smallest_norm > 0

    @property
    def correct(self) -> EpsDict[Tensor]:
        """Which images are right whatever the attacks did at that ε, bool ``(N,)``."""
        return EpsDict({eps: self.smallest_norm > eps for eps in self.eps})

    @property
    def clean_accuracy(self) -> float:
        """The share of clean images that are right."""
        return _share(self.correct_clean)

    @property
    def robust_accuracy(self) -> EpsDict[float]:
        """The robust accuracy at each ε: the share of images that no attack broke. The number to report."""
        return EpsDict({eps: _share(correct) for eps, correct in self.correct.items()})

    @property
    def accuracy(self) -> EpsDict[float]:
        """The robust accuracy at each ε, and the clean accuracy at 0."""
        return EpsDict({0.0: self.clean_accuracy, **self.robust_accuracy})

    @property
    def clean_standard_error(self) -> float:
        """The binomial standard error of :attr:`clean_accuracy`, from the number of images."""
        return standard_error(self.clean_accuracy, len(self))

    @property
    def robust_standard_error(self) -> EpsDict[float]:
        """The binomial standard error of :attr:`robust_accuracy`, from the number of images."""
        return EpsDict({eps: standard_error(share, len(self)) for eps, share in self.robust_accuracy.items()})

    @property
    def per_class(self) -> dict[int, ClassAccuracy]:
        """The accuracies on the images of each class that has any."""
        return {
            label: ClassAccuracy(
                int(rows.sum()),
                _share(self.correct_clean[rows]),
                EpsDict({eps: _share(correct[rows]) for eps, correct in self.correct.items()}),
            )
            for label in self.labels.unique().tolist()
            for rows in [self.labels == label]
        }

    @property
    def _carried(self) -> EpsDict[Tensor]:
        """Which images are broken at each ε before its attacks; with ``assume_survivors`` the largest ε comes first."""
        carried = EpsDict(dict.fromkeys(self.eps, ~self.correct_clean))
        if not self.assume_survivors:
            # The targeted FAB runs once for each image, at the smallest ε.
            once = self.norms[[name == "fab-t" for name in self.attacks]]
            for smaller, eps in pairwise(self.eps):
                carried[eps] = (self.smallest_norm <= smaller) | (once <= eps).any(0)
        return carried

    @property
    def after_carrying(self) -> EpsDict[float]:
        """The accuracy left at each ε before its attacks: without the images that an example from a smaller ε breaks."""
        return EpsDict({eps: _share(~carried) for eps, carried in self._carried.items()})

    @property
    def after_attack(self) -> EpsDict[dict[str, float]]:
        """The accuracy left at each ε by the examples of that attack and of all before it, as AutoAttack logs it.

        Cumulative: each attack saw only the images that :attr:`after_carrying` and the attacks before it left. It is not
        the robust accuracy under that attack alone, which would be higher.
        """
        left = list(zip(self.attacks, self.norms.cummin(0).values, strict=True))
        return EpsDict(
            {
                eps: {name: _share((row > eps) & ~carried) for name, row in left}
                for eps, carried in self._carried.items()
            }
        )

    @property
    def broken_at(self) -> Tensor:
        """The smallest ε that broke each image, float64 ``(N,)``: 0 if wrong on the clean image, infinite if none did."""
        radii = torch.tensor((0.0, *self.eps, torch.inf), dtype=torch.float64)
        return radii[torch.searchsorted(radii, self.smallest_norm)]

    @property
    def broken_by_names(self) -> tuple[str | None, ...]:
        """The name of the attack that broke each image at its smallest ε; None where none did."""
        at = self.broken_at
        first = (self.norms <= at).int().argmax(0)
        return tuple(
            self.attacks[attack] if 0 < eps < math.inf else None
            for attack, eps in zip(first.tolist(), at.tolist(), strict=True)
        )

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole report but for the adversarial images, as JSON text; written to a file if ``path`` is given.

        The file appears whole or not at all. ``torch.save(report.adversarial, path)`` saves the adversarial images.
        """
        fields = {
            "format": _FORMAT,
            "version": _VERSION,
            # For those who read the file with other tools; reading it as a report makes them anew from the norms.
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": list(self.robust_accuracy.values()),
            "eps": self.eps,
            "norm": self.norm,
            "attacks": self.attacks,
            "settings": self.settings,
            "warnings": self.warnings,
            "seconds": self.seconds,
            "labels": self.labels.tolist(),
            "assumed": self.assumed.int().tolist(),
            "norms": [[None if math.isinf(norm) else norm for norm in row] for row in self.norms.tolist()],
        }
        lines = (
            f'  "{name}": {json.dumps(value, allow_nan=False, separators=(",", ":"))}' for name, value in fields.items()
        )
        return write_text("{\n" + ",\n".join(lines) + "\n}\n", path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """The report that :meth:`to_json` wrote; every field equals the one it had, but for the adversarial images.

        Raises:
            ValueError: If the file is none of a report, or of one in another format.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no UTF-8
            fields = None
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise ValueError(f"{path} is no report of RobustnessReport.to_json.")
        if fields["version"] != _VERSION:
            raise ValueError(
                f"{path} is a report of format {fields['version']} (sip_plugin 0.1 wrote format 1), and this version reads "
                f"format {_VERSION}: evaluate the network again, or read the file with the version that wrote it."
            )
        norms = [[math.inf if norm is None else norm for norm in row] for row in fields["norms"]]
        return cls(
            eps=tuple(fields["eps"]),
            norm=fields["norm"],
            attacks=tuple(fields["attacks"]),
            labels=torch.tensor(fields["labels"]),
            norms=torch.tensor(norms, dtype=torch.float64),
            assumed=torch.tensor(fields["assumed"], dtype=torch.bool),
            settings=fields["settings"],
            warnings=tuple(fields["warnings"]),
            seconds=fields["seconds"],
        )

    def records(self) -> list[dict[str, Any]]:
        """See :meth:`to_frame`."""
        errors = [self.clean_standard_error, *self.robust_standard_error.values()]
        rows = zip(self.accuracy.items(), errors, strict=True)
        return [{"eps": eps, "accuracy": share, "standard_error": error} for (eps, share), error in rows]

    def table(self, digits: int = 1) -> Table:
        """The accuracies in per cent: robust accuracy ± standard error, and what was left after each attack."""
        errors = [self.clean_standard_error, *self.robust_standard_error.values()]
        left = [[""] * (len(self.attacks) + 1)]
        for carried, by_attack in zip(self.after_carrying.values(), self.after_attack.values(), strict=True):
            left.append([per_cent(share, digits) for share in (carried, *by_attack.values())])
        shares = zip(("clean", *eps_labels(self.eps)), self.accuracy.values(), errors, left, strict=True)
        return Table(
            title=f"Accuracy in per cent: {self.conditions}.",
            header=("ε", "Robust accuracy", "after carrying", *(f"after {name}" for name in self.attacks)),
            rows=[
                (label, f"{per_cent(share, digits)} ± {per_cent(error, digits)}", *after)
                for label, share, error, after in shares
            ],
            notes=(
                "Robust accuracy: the number to report, the worst case over the attacks image by image; ± the binomial "
                "standard error.",
                "after ...: accuracy left by the examples carried from another ε, then by each attack in turn, on the "
                "images that were left. Cumulative, so not the robust accuracy under that attack alone.",
                self.survivors,
                *([f"Seed {self.settings['seed']}."] if "seed" in self.settings else []),
                *([] if self.checked else [f"Warning: {UNCHECKED}."]),
                *(f"Warning: {warning}" for warning in self.warnings),
            ),
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Accuracy against ε (the clean accuracy at 0), with a band: Wilson's 95 % interval for the number of images.

        Args:
            path: Where to save the picture, whole or not at all; the suffix says in which format.

        Returns:
            The figure. It is not registered with ``matplotlib.pyplot``.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        shares = self.accuracy
        bounds = EpsDict({eps: wilson_interval(share, len(self)) for eps, share in shares.items()})
        notes = [*short_notes(self, [self]), f"Band: 95 % interval (Wilson) for {len(self)} images."]
        labels = (eps_axis(shares, self.norm), "Accuracy (%)")
        return draw({"": [curve("", shares, bounds, eps_unit(shares))]}, labels=labels, notes=notes, path=path)

    @property
    def attack_setting(self) -> str:
        """What attacked, from the settings: ``autoattack standard (pyautoattack 0.2.0)``; without them, which attacks ran.

        The setting ``attack`` is a name, with a ``version`` beside it, or a mapping from names to settings of each.
        """
        attack = self.settings.get("attack")
        if attack is None:
            return " + ".join(self.attacks)
        named = attack if isinstance(attack, dict) else {str(attack): self.settings}
        return " + ".join(_with_version(name, own if isinstance(own, dict) else {}) for name, own in named.items())

    @property
    def conditions(self) -> str:
        """Number of images, norm and attack."""
        return f"{len(self)} image{'s' * (len(self) > 1)}, {NORMS[self.norm]}, {self.attack_setting}"

    @property
    def survivors(self) -> str:
        """What was done with the survivors of larger radii, as a sentence."""
        if self.assume_survivors:
            return (
                "Survivors were assumed: an image that survived the attack at a larger ε was not attacked at the smaller "
                "ones (assume_survivors=True)."
            )
        return "Survivors were not assumed: each was attacked at the smaller ε too (assume_survivors=False)."

    @property
    def checked(self) -> bool:
        """Whether the evaluation looked for signs of overestimated robustness."""
        return self.settings.get("sanity_checks", True) is not False

    def __repr__(self) -> str:
        shares = zip(eps_labels(self.eps), self.robust_accuracy.values(), strict=True)
        robust = ", ".join(f"{at}: {share:.4g}" for at, share in shares)
        return (
            f"{type(self).__name__}({len(self)} images, {self.norm}, clean_accuracy={self.clean_accuracy:.4g}, "
            f"robust_accuracy={{{robust}}})"
        )


class Difference(NamedTuple):
    """What a report has that another one has not, and whether figures are not comparable for it, or not at all."""

    remark: str
    serious: bool = True
    always_refused: bool = False


def differences(report: Report, other: Report) -> Iterator[Difference]:
    """In what the conditions of a report differ from another's."""
    if report.norm != other.norm:
        yield Difference(f"the norm {NORMS[report.norm]} instead of {NORMS[other.norm]}", always_refused=True)
    if len(report) != len(other):
        yield Difference(f"{len(report)} images instead of {len(other)}")
    elif not torch.equal(report.labels, other.labels):
        row = int((report.labels != other.labels).nonzero()[0])
        yield Difference(f"other images (image {row} is of class {report.labels[row]} instead of {other.labels[row]})")
    elif None not in (data := [each.settings.get("data") for each in (report, other)]) and data[0] != data[1]:
        yield Difference("other images (of the same classes, but with another fingerprint)")
    if len(report.eps) != len(other.eps) or not all(map(same_eps, report.eps, other.eps)):
        yield Difference(f"ε = {', '.join(eps_labels(report.eps))} instead of {', '.join(eps_labels(other.eps))}")
    mine, theirs = (f"{each.attack_setting} ({', '.join(each.attacks)})" for each in (report, other))
    if mine != theirs:
        yield Difference(f"the attack {mine} instead of {theirs}")
    if report.assume_survivors != other.assume_survivors:
        remark = f"assume_survivors={report.assume_survivors} instead of {other.assume_survivors}"
        yield Difference(remark, serious=False)


def eps_axis(eps: Iterable[float], norm: str) -> str:
    """What the axis of ε is called."""
    return f"ε{'' if eps_unit(eps) == 1 else ' in units of 1/255'} ({NORMS[norm]}); 0: clean images"


def short_notes(first: Report, reports: Sequence[Report]) -> list[str]:
    """What tables say above and beneath, in short: the conditions of the first report, and warnings of all."""
    found = [f"{first.conditions}{', survivors of larger ε assumed' if first.assume_survivors else ''}."]
    if not all(report.checked for report in reports):
        found.append(f"{UNCHECKED}.")
    if warned := len({warning for report in reports for warning in report.warnings}):
        found.append(f"{warned} warning{'s' * (warned > 1)}: print the report.")
    return found


def _with_version(name: str, settings: dict[str, Any]) -> str:
    version, package = settings.get("version"), settings.get("package")
    return name + (f" {version}" if version is not None else "") + (f" ({package})" if package is not None else "")


def _share(images: Tensor) -> float:
    return int(images.sum()) / len(images)
