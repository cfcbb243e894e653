"""Settings of results against each other."""

from __future__ import annotations

from typing import Any


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Where two results' settings differ, one line for each."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted({*ours, *theirs})
            for line in differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if ours == theirs else [f"{name}: {ours} against {theirs}"]
