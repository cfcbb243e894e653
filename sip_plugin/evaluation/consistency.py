"""Whether the fields of a report fit together: what an evaluation, or a file, cannot have found is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from sip_plugin.checks import Norm, check_eps
from sip_plugin.evaluation.codes import ASSUMED, CARRIED, MISCLASSIFIED
from sip_plugin.evaluation.radii import eps_labels

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport

_ROUNDING = 1e-3
"""By how much the norm of an adversarial perturbation may exceed ε, relatively: sums of float32 round."""


def legal_fields(report: RobustnessReport) -> dict[str, Any]:
    """A report's fields in the form that they have in a report: tensors of its own on the CPU, tuples, plain JSON values.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If a field has the wrong shape, or values that it cannot have.
    """
    eps, labels = _as_radii(report.eps, report.norm), report.labels
    if not isinstance(labels, Tensor) or labels.dim() != 1 or not len(labels):
        raise ValueError(f"labels must be a torch.Tensor with the classes (N,) of one image or more, got {labels!r}.")
    count = len(labels)
    return {
        "eps": eps,
        "attacks": _as_names(report.attacks, "attacks"),
        "labels": _as_values(labels, "labels", (count,)),
        "outcome": _as_values(report.outcome, "outcome", (len(eps), count)),
        "broken_by": _as_values(report.broken_by, "broken_by", (count,)),
        "smallest_norm": _as_values(report.smallest_norm, "smallest_norm", (count,), real=True),
        "settings": _as_json_values(report.settings),
        "warnings": _as_names(report.warnings, "warnings"),
        "seconds": float(report.seconds),
        "adversarial": _as_adversarial(report.adversarial, eps, count),
    }


def check_consistent(report: RobustnessReport) -> None:
    """Refuse outcomes that contradict each other; every error names the field and the first images concerned.

    Raises:
        ValueError: If they do.
    """
    outcome, attacks = report.outcome, len(report.attacks)
    if not attacks or len(set(report.attacks)) < attacks:
        raise ValueError(f"attacks must be one name or more, each one once, got {report.attacks}.")
    if int(report.labels.min()) < 0:
        raise ValueError(f"labels must be class indices from 0, got {int(report.labels.min())}.")
    if not (math.isfinite(report.seconds) and report.seconds >= 0):
        raise ValueError(f"seconds must be finite and not negative, got {report.seconds}.")
    _refuse(
        ((outcome < CARRIED) | (outcome >= attacks)).any(0),
        f"outcome must be from {CARRIED} to {attacks - 1} ({attacks} attacks)",
    )
    _check_rows(report)
    _check_smallest(report)


def _check_rows(report: RobustnessReport) -> None:
    """The rows of ``outcome`` against each other: balls are nested."""
    outcome = report.outcome
    wrong = outcome == MISCLASSIFIED
    _refuse(wrong.any(0) & ~wrong.all(0), "outcome must be MISCLASSIFIED at every eps or at none")
    broken = (outcome >= 0) | (outcome == CARRIED)
    for row, (smaller, larger) in enumerate(pairwise(report.eps)):
        low, high = eps_labels((smaller, larger))
        _refuse(
            broken[row] & ~broken[row + 1],
            f"outcome says that images are broken at {low} and not at {high}, whose ball holds the same examples",
        )
    assumed = outcome == ASSUMED
    _refuse(assumed[-1], "outcome is ASSUMED at the largest eps, where there is no larger one to survive")
    if not report.assume_survivors:
        _refuse(assumed.any(0), 'outcome is ASSUMED, but settings["assume_survivors"] is not true')


def _check_smallest(report: RobustnessReport) -> None:
    """``broken_by`` and ``smallest_norm`` against ``outcome``."""
    outcome, by, norm, at = report.outcome, report.broken_by, report.smallest_norm, report.broken_at
    broken = (outcome >= 0) | (outcome == CARRIED)
    found = broken.any(0)
    _refuse((by < -1) | (by >= len(report.attacks)), f"broken_by must be from -1 to {len(report.attacks) - 1}")
    _refuse(found != (by >= 0), "broken_by must be an attack where an image is broken, and -1 elsewhere")
    first = outcome.gather(0, broken.int().argmax(0)[None])[0]
    _refuse(
        (first >= 0) & (first != by),
        "broken_by is not the attack that outcome has at the smallest eps that broke the image",
    )
    _refuse(~(norm >= 0), "smallest_norm must not be negative or NaN")
    _refuse(
        (report.outcome[0] == MISCLASSIFIED) & (norm != 0), "smallest_norm must be 0 where the clean image is wrong"
    )
    _refuse(found & (norm > at * (1 + _ROUNDING)), "smallest_norm is larger than the smallest eps that broke the image")
    radii = torch.tensor((0.0, *report.eps), dtype=torch.float64)
    inside = torch.where(at.isinf(), radii[-1], radii[(torch.searchsorted(radii, at) - 1).clamp(min=0)])
    _refuse(
        (at > 0) & (norm < inside * (1 - _ROUNDING)),
        "smallest_norm is smaller than an eps at which outcome says that the image is not broken",
    )


def _refuse(images: Tensor, complaint: str) -> None:
    if images.any():
        indices = images.nonzero().flatten().tolist()
        raise ValueError(f"{complaint}: image(s) {', '.join(map(str, indices[:10]))}{', ...' * (len(indices) > 10)}.")


def _as_radii(eps: Any, norm: Any) -> tuple[float, ...]:
    """The radii as floats; refuse anything but positive ones, ascending.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If there is none, one is not positive, or they do not ascend.
    """
    if norm not in get_args(Norm):
        raise ValueError(f'norm must be "Linf" or "L2", got {norm!r}.')
    if not isinstance(eps, Iterable):
        raise TypeError(f"eps must be a sequence of numbers, got {eps!r}.")
    radii = tuple(check_eps(radius, norm) for radius in eps)
    if not radii or radii[0] == 0:
        raise ValueError(f"eps must hold at least one radius, and only positive ones, got {radii}.")
    for smaller, larger in pairwise(radii):
        if larger <= smaller:
            raise ValueError(f"eps must ascend, each radius once, got {radii}.")
    return radii


def _as_names(names: Any, field: str) -> tuple[str, ...]:
    """A tuple of strings.

    Raises:
        TypeError: If it is anything else, one string included.
    """
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{field} must be a sequence of strings, got {names!r}.")
    return tuple(names)


def _as_values(values: Any, field: str, shape: tuple[int, ...], *, real: bool = False) -> Tensor:
    """A tensor of its own on the CPU, int64 or, for ``real``, float64.

    Raises:
        TypeError: If it is no tensor, or not of integers where those are due.
        ValueError: If its shape is another one.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{field} must be a torch.Tensor of shape {shape}, got {type(values).__name__}.")
    if values.is_complex() or values.dtype == torch.bool or (values.is_floating_point() and not real):
        raise TypeError(f"{field} must be {'floating point' if real else 'integer'}, got {values.dtype}.")
    if values.shape != shape:
        raise ValueError(f"{field} must have the shape {shape}, got {tuple(values.shape)}.")
    return values.detach().to("cpu", torch.float64 if real else torch.int64, copy=True)


def _as_json_values(settings: Any) -> dict[str, Any]:
    """The settings as a JSON file gives them back: tuples become lists.

    Raises:
        TypeError: If they are no mapping with strings for names, or a value has no form in JSON.
        ValueError: If a number is not finite.
    """
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise TypeError(f"settings must be a dict with strings for names, got {settings!r}.")
    try:
        values: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"settings must hold plain JSON values: {error}. Got {settings!r}.") from error
    return values


def _as_adversarial(adversarial: Any, eps: tuple[float, ...], count: int) -> dict[float, Tensor] | None:
    """The adversarial images by ε, in a dict that ``torch.load`` takes with ``weights_only=True``.

    Raises:
        ValueError: If an ε is none of the report's, or there is not one image for each label.
    """
    if adversarial is None:
        return None
    for radius, batch in adversarial.items():
        if radius not in eps:
            raise ValueError(f"adversarial has images at eps = {radius}, but eps is {eps}.")
        if len(batch) != count:
            raise ValueError(f"adversarial must hold {count} images at eps = {radius}, got {len(batch)}.")
    return dict(adversarial)
