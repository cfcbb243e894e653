"""What an evaluation found: the smallest norm at which each attack broke each image, and the figures that follow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sip_plugin.checks import Norm
from sip_plugin.evaluation.eps import NORMS, EpsDict, eps_labels
from sip_plugin.evaluation.plots import Curve, draw
from sip_plugin.evaluation.statistics import note_on_extremes, standard_error, wilson_interval
from sip_plugin.evaluation.tables import Table, Tabular, per_cent, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

_UNCHECKED = "not checked for signs of overestimated robustness (sanity_checks=False)."
_FORMAT = {"format": "sip_plugin.RobustnessReport", "version": 2}


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

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def assume_survivors(self) -> bool:
        """Whether an image that survived a larger ε was taken to survive the smaller ones unattacked."""
        return bool(self.settings.get("assume_survivors"))

    @property
    def smallest_norm(self) -> Tensor:
        """The norm of the smallest adversarial perturbation found of each image, an upper bound, float64 ``(N,)``.

        0 where the clean image is wrong, infinite where none was found.
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
        """The robust accuracy at each ε, the share of images that no attack broke. The number to report."""
        return EpsDict({eps: _share(correct) for eps, correct in self.correct.items()})

    @property
    def accuracy(self) -> EpsDict[float]:
        """The robust accuracy at each ε, and the clean accuracy at 0."""
        return EpsDict({0.0: self.clean_accuracy, **self.robust_accuracy})

    @property
    def standard_error(self) -> EpsDict[float]:
        """The binomial standard error of :attr:`accuracy`, from the number of images."""
        return EpsDict({eps: standard_error(share, len(self)) for eps, share in self.accuracy.items()})

    @property
    def per_class(self) -> dict[int, ClassAccuracy]:
        """The accuracies on the images of each class that has any."""
        found = {}
        for label in self.labels.unique().tolist():
            rows = self.labels == label
            robust = EpsDict({eps: _share(correct[rows]) for eps, correct in self.correct.items()})
            found[label] = ClassAccuracy(int(rows.sum()), _share(self.correct_clean[rows]), robust)
        return found

    @property
    def _carried(self) -> EpsDict[Tensor]:
        """Which images are broken at each ε before its attacks; with ``assume_survivors`` the largest ε comes first."""
        carried = EpsDict(dict.fromkeys(self.eps, ~self.correct_clean))
        if not self.assume_survivors:
            once = self.norms[[name == "fab-t" for name in self.attacks]]  # run for each image once, at the smallest ε
            for smaller, eps in pairwise(self.eps):
                carried[eps] = (self.smallest_norm <= smaller) | (once <= eps).any(0)
        return carried

    @property
    def after_carrying(self) -> EpsDict[float]:
        """The accuracy left at each ε before its attacks, without the images that an example from a smaller ε breaks."""
        return EpsDict({eps: _share(~carried) for eps, carried in self._carried.items()})

    @property
    def after_attack(self) -> EpsDict[dict[str, float]]:
        """The accuracy left at each ε by the examples of that attack and of all before it, as AutoAttack logs it.

        Cumulative, so not the robust accuracy under that attack alone, which would be higher.
        """
        left = dict(zip(self.attacks, self.norms.cummin(0).values, strict=True))
        found: EpsDict[dict[str, float]] = EpsDict()
        for eps, carried in self._carried.items():
            found[eps] = {name: _share((norms > eps) & ~carried) for name, norms in left.items()}
        return found

    @property
    def broken_at(self) -> Tensor:
        """The smallest ε that broke each image, float64 ``(N,)``; 0 if wrong on the clean image, infinite if none did."""
        radii = torch.tensor((0.0, *self.eps, torch.inf), dtype=torch.float64)
        return radii[torch.searchsorted(radii, self.smallest_norm)]

    @property
    def broken_by_names(self) -> tuple[str | None, ...]:
        """The name of the attack that broke each image at its smallest ε; None where none did."""
        at = self.broken_at
        first = zip((self.norms <= at).int().argmax(0).tolist(), at.tolist(), strict=True)
        return tuple(self.attacks[attack] if 0 < eps < math.inf else None for attack, eps in first)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report without the adversarial images, as JSON text; written to ``path`` if given, whole or not at all."""
        as_they_are = ("eps", "norm", "attacks", "settings", "warnings", "seconds")
        fields = _FORMAT | {
            # For those who read the file with other tools; reading it as a report makes them anew from the norms.
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": list(self.robust_accuracy.values()),
            **{name: getattr(self, name) for name in as_they_are},
            "labels": self.labels.tolist(),
            "assumed": self.assumed.int().tolist(),
            "norms": [[None if math.isinf(norm) else norm for norm in row] for row in self.norms.tolist()],
        }
        dump = partial(json.dumps, allow_nan=False, separators=(",", ":"))
        lines = (f'  "{name}": {dump(value)}' for name, value in fields.items())
        return write_text("{\n" + ",\n".join(lines) + "\n}\n", path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """The report that :meth:`to_json` wrote, exactly; a ValueError if the file is none, or of another format."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            if any(fields.get(name) != value for name, value in _FORMAT.items()):
                raise ValueError("it is no report of format 2 (sip_plugin 0.1 wrote 1)")
            norms = [[math.inf if norm is None else norm for norm in row] for row in fields["norms"]]
            read: dict[str, Any] = {name: tuple(fields[name]) for name in ("eps", "attacks", "warnings")}
            read |= {name: fields[name] for name in ("norm", "settings", "seconds")}
            read |= {"labels": torch.tensor(fields["labels"]), "norms": torch.tensor(norms, dtype=torch.float64)}
            read["assumed"] = torch.tensor(fields["assumed"], dtype=torch.bool)
            if read["norms"].shape != (len(read["attacks"]), len(read["labels"])):
                raise ValueError("its norms are not one for each attack and image")
            return cls(**read)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read as a report: {error}. Evaluate the network again.") from error

    def to_frame(self) -> Any:
        """A tidy :class:`pandas.DataFrame` of the accuracies and their standard errors by ε (0: clean); needs pandas."""
        columns = {"eps": self.accuracy.keys(), "accuracy": self.accuracy.values()}
        return import_module("pandas").DataFrame(columns | {"standard_error": self.standard_error.values()})

    def table(self, digits: int = 1) -> Table:
        """The accuracies in per cent: robust accuracy ± standard error, and what was left after each attack."""
        rows = []
        for label, (eps, share) in zip(("clean", *eps_labels(self.eps)), self.accuracy.items(), strict=True):
            left = [self.after_carrying[eps], *self.after_attack[eps].values()] if eps else []
            cells = [per_cent(share, digits) for share in left] or [""] * (len(self.attacks) + 1)
            error = per_cent(self.standard_error[eps], digits)
            rows.append(("", [label, f"{per_cent(share, digits)} ± {error}", *cells]))
        return Table(
            title=f"Accuracy in per cent: {self.conditions}.",
            header=("ε", "Robust accuracy", "after carrying", *(f"after {name}" for name in self.attacks)),
            rows=rows,
            notes=(
                "Robust accuracy: the number to report, the worst case over the attacks image by image; ± the binomial "
                "standard error.",
                *note_on_extremes(self.accuracy.values(), len(self)),
                "after ...: accuracy left by the examples carried from another ε, then by each attack in turn, on the "
                "images that were left. Cumulative, so not the robust accuracy under that attack alone.",
                self.survivors,
                *([f"Seed {self.settings['seed']}."] if "seed" in self.settings else []),
                *(f"Warning: {warning}" for warning in self.cautions),
            ),
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Accuracy against ε (the clean accuracy at 0), with a band: Wilson's 95 % interval for the number of images.

        Returns the figure, which is not registered with ``matplotlib.pyplot``; saved to ``path``, whose suffix says in which
        format, whole or not at all. An ImportError if matplotlib is not installed.
        """
        bounds = {eps: wilson_interval(share, len(self)) for eps, share in self.accuracy.items()}
        notes = [*short_notes(self, [self]), f"Band: 95 % interval (Wilson) for {len(self)} images."]
        panel = [Curve("", self.accuracy, bounds)]
        return draw({"": panel}, eps=self.eps, norm=self.norm, what="Accuracy (%)", notes=notes, path=path)

    @property
    def attack_setting(self) -> str:
        """What attacked, such as ``autoattack standard (pyautoattack 0.2.0)``, from the settings; without, what ran."""
        found = []
        for name, own in self.settings.get("attack", dict.fromkeys(self.attacks)).items():
            version, package = (own.get(key) if isinstance(own, dict) else None for key in ("version", "package"))
            found.append(name + (f" {version}" if version else "") + (f" ({package})" if package else ""))
        return " + ".join(found)

    @property
    def conditions(self) -> str:
        """Number of images, norm and attack."""
        return f"{len(self)} image{'s' * (len(self) > 1)}, {NORMS[self.norm]}, {self.attack_setting}"

    @property
    def survivors(self) -> str:
        """What was done with the survivors of larger radii, as a sentence."""
        if not self.assume_survivors:
            return "Survivors were not assumed: each was attacked at the smaller ε too (assume_survivors=False)."
        attacked = "an image that survived the attack at a larger ε was not attacked at the smaller ones"
        return f"Survivors were assumed: {attacked} (assume_survivors=True)."

    @property
    def cautions(self) -> tuple[str, ...]:
        """The warnings, and that nobody looked for signs of overestimated robustness if so."""
        return (_UNCHECKED,) * (not self.settings.get("sanity_checks", True)) + self.warnings

    def __repr__(self) -> str:
        shares = zip(("clean", *eps_labels(self.eps)), self.accuracy.values(), strict=True)
        accuracy = ", ".join(f"{at}: {share:.4g}" for at, share in shares)
        return f"{type(self).__name__}({len(self)} images, {self.norm}, accuracy={{{accuracy}}})"


def differences(report: Report, other: Report) -> list[str]:
    """In what the conditions of a report differ from another's, so that figures are not comparable."""
    mine, theirs = (
        {
            "the norm ": NORMS[each.norm],
            "": f"{len(each)} images",
            "ε = ": ", ".join(eps_labels(each.eps)),
            "the attack ": f"{each.attack_setting} ({', '.join(each.attacks)})",
        }
        for each in (report, other)
    )
    found = [f"{what}{mine[what]} instead of {theirs[what]}" for what in mine if mine[what] != theirs[what]]
    prints = {each.settings.get("data") for each in (report, other)} - {None}
    if len(report) == len(other) and (len(prints) > 1 or not torch.equal(report.labels, other.labels)):
        found.append("other images (of other classes, or with another fingerprint)")
    return found


def short_notes(first: Report, reports: Sequence[Report]) -> list[str]:
    """What tables say above and beneath, in short: the conditions of the first report, and warnings of all."""
    found = [f"{first.conditions}{', survivors of larger ε assumed' * first.assume_survivors}."]
    warned = len({warning for report in reports for warning in report.cautions})
    return found + [f"{warned} warning{'s' * (warned > 1)}: print the report."] * (warned > 0)


def _share(images: Tensor) -> float:
    return int(images.sum()) / len(images)
