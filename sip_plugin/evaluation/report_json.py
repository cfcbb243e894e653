"""Reports as JSON files: one field a line, exact numbers, and errors that say which field of which file is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sip_plugin.evaluation.files import written

if TYPE_CHECKING:
    from sip_plugin.evaluation.report import RobustnessReport

FORMAT = "sip_plugin.RobustnessReport"
VERSION = 1


def dump(report: RobustnessReport, path: str | os.PathLike[str] | None) -> str:
    """A report as JSON text, and in a file if there is a path. An infinite norm is ``null``."""
    fields = {
        "format": FORMAT,
        "version": VERSION,
        # For those who read the file with other tools; reading it as a report makes them anew from the outcomes.
        "clean_accuracy": report.clean_accuracy,
        "robust_accuracy": list(report.robust_accuracy.values()),
        "eps": list(report.eps),
        "norm": report.norm,
        "attacks": list(report.attacks),
        "settings": report.settings,
        "warnings": list(report.warnings),
        "seconds": report.seconds,
        "labels": report.labels.tolist(),
        "outcome": report.outcome.tolist(),
        "broken_by": report.broken_by.tolist(),
        "smallest_norm": [None if math.isinf(norm) else norm for norm in report.smallest_norm.tolist()],
    }
    lines = (f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in fields.items())
    return written("{\n" + ",\n".join(lines) + "\n}\n", path)


def load(cls: type[RobustnessReport], path: str | os.PathLike[str]) -> RobustnessReport:
    """The report in a file.

    Raises:
        ValueError: If there is none in it; the error names the file and the field.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'{path} is no report of RobustnessReport.to_json: "format" must be "{FORMAT}".')
    if fields.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {fields.get('version')!r} of the format, this sip_plugin reads version {VERSION}."
        )
    try:
        return cls(**_arguments(fields))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _arguments(fields: dict[str, Any]) -> dict[str, Any]:
    def value(name: str, kind: type) -> Any:
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing.")
        if not isinstance(fields[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {str(fields[name])[:80]}.")
        return fields[name]

    def integers(name: str) -> torch.Tensor:
        try:
            found = torch.tensor(value(name, list))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} must hold integers, and rows of one length: {error}.") from error
        return found if found.numel() else found.long()  # an empty list is of floats

    norms = value("smallest_norm", list)
    if not all(norm is None or (isinstance(norm, (int, float)) and not isinstance(norm, bool)) for norm in norms):
        raise ValueError("smallest_norm must hold numbers, or null where no perturbation was found.")
    seconds = fields.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(f"seconds must be a number, got {seconds!r}.")
    return {
        "eps": tuple(value("eps", list)),
        "norm": value("norm", str),
        "attacks": tuple(value("attacks", list)),
        "labels": integers("labels"),
        "outcome": integers("outcome"),
        "broken_by": integers("broken_by"),
        "smallest_norm": torch.tensor([math.inf if norm is None else norm for norm in norms], dtype=torch.float64),
        "settings": value("settings", dict),
        "warnings": tuple(value("warnings", list)),
        "seconds": float(seconds),
    }
