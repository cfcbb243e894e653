"""Under which conditions a report was made, and in what two reports differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sip_plugin.evaluation.radii import eps_labels, same_eps

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport

NORMS = {"Linf": "L∞", "L2": "L2"}


class Difference(NamedTuple):
    """What is different about a report.

    Attributes:
        remark: What it has that another report has not.
        serious: Whether figures are not comparable any more without a word about it.
        never: Whether they are not comparable at all.
    """

    remark: str
    serious: bool = True
    never: bool = False


def attack_of(report: RobustnessReport) -> str:
    """What attacked, from the settings: ``autoattack standard (pyautoattack 0.2.0)``; without them, which attacks ran.

    The setting ``attack`` is a name, with a ``version`` beside it, or a mapping from names to settings of each.
    """
    attack = report.settings.get("attack")
    if attack is None:
        return " + ".join(report.attacks)
    if not isinstance(attack, dict):
        attack = {str(attack): report.settings}
    return " + ".join(_with_version(name, own if isinstance(own, dict) else {}) for name, own in attack.items())


def _with_version(name: str, settings: dict[str, Any]) -> str:
    version, package = settings.get("version"), settings.get("package")
    return name + (f" {version}" if version is not None else "") + (f" ({package})" if package is not None else "")


def conditions_of(report: RobustnessReport) -> str:
    """Number of images, norm and attack."""
    return f"{len(report)} image{'s' * (len(report) > 1)}, {NORMS[report.norm]}, {attack_of(report)}"


def survivors_of(report: RobustnessReport) -> str:
    """What was done with the survivors of larger radii, as a sentence."""
    if report.assume_survivors:
        return (
            "Survivors were assumed: an image that survived the attack at a larger ε was not attacked at the smaller ones "
            "(assume_survivors=True)."
        )
    return "Survivors were not assumed: each was attacked at the smaller ε too (assume_survivors=False)."


def is_unchecked(report: RobustnessReport) -> bool:
    """Whether the settings say that nobody looked for signs of overestimated robustness."""
    return report.settings.get("sanity_checks", True) is False


UNCHECKED = "not checked for signs of overestimated robustness (sanity_checks=False)"


def differences(report: RobustnessReport, other: RobustnessReport) -> Iterator[Difference]:
    """In what the conditions of a report differ from another's."""
    if report.norm != other.norm:
        yield Difference(f"the norm {NORMS[report.norm]} instead of {NORMS[other.norm]}", never=True)
    if len(report) != len(other):
        yield Difference(f"{len(report)} images instead of {len(other)}")
    elif not torch.equal(report.labels, other.labels):
        row = int((report.labels != other.labels).nonzero()[0])
        yield Difference(f"other images (image {row} is of class {report.labels[row]} instead of {other.labels[row]})")
    elif None not in (data := [each.settings.get("data") for each in (report, other)]) and data[0] != data[1]:
        yield Difference("other images (of the same classes, but with another fingerprint)")
    if len(report.eps) != len(other.eps) or not all(map(same_eps, report.eps, other.eps)):
        yield Difference(f"ε = {', '.join(eps_labels(report.eps))} instead of {', '.join(eps_labels(other.eps))}")
    if (attack_of(report), report.attacks) != (attack_of(other), other.attacks):
        yield Difference(f"the attack {_in_full(report)} instead of {_in_full(other)}")
    if report.assume_survivors != other.assume_survivors:
        yield Difference(
            f"assume_survivors={report.assume_survivors} instead of {other.assume_survivors}", serious=False
        )


def _in_full(report: RobustnessReport) -> str:
    return f"{attack_of(report)} ({', '.join(report.attacks)})"
