"""What a result file says of the run that made it: versions, hardware, command; and how it is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sip_plugin.utils import atomic_write

_PACKAGES = (
    "sip-plugin",
    "torch",
    "torchvision",
    "numpy",
    "torchattacks",
    "adversarial-robustness-toolbox",
    "foolbox",
    "pyautoattack",
    "adv-lib",
    "torchattack",
    "cleverhans",
    "secml-torch",
    "scikit-learn",
    "statsmodels",
    "lightning",
)


def run_record(seed: int | None) -> dict[str, Any]:
    """The conditions of this run, as plain JSON values. Paths are cut to their last part.

    ``commit`` is the checkout's, ``-dirty`` if tracked files differ from it, and None where there is no checkout.
    """
    command = ["python", *(Path(part).name if Path(part).is_absolute() else part for part in sys.orig_argv[1:])]
    return {
        "command": " ".join(command),
        "commit": _COMMIT,
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file whole or not at all."""
    write_text(path, json.dumps(result, indent=2) + "\n")


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


_COMMIT = _commit()  # of the files that this process has begun with: they may change while it runs


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
