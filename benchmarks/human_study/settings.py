"""What a study says and whom it lets in, from one TOML file."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of the file; ``study.toml`` beside this module explains each.

    Raises:
        ValueError: If a value cannot be meant.
    """

    title: str = "Perturbed or not?"
    consent: str = ""
    contact: str = ""
    completion_link: str = ""
    recruitment: str = "prolific"
    ids: str = "hashed"
    seed: int = 0
    scale: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if type(value) is not type(field.default):
                raise ValueError(f"{field.name} must be of type {type(field.default).__name__}, got {value!r}.")
        for name, choices in {"recruitment": ("prolific", "open"), "ids": ("hashed", "plain")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        if self.consent.strip() and not self.contact.strip():
            raise ValueError("A consent text needs a contact.")
        if self.completion_link and not re.fullmatch(r'https://[^\s"<>]+', self.completion_link):
            raise ValueError(
                f"completion_link must be an address that begins with https://, got {self.completion_link!r}."
            )
        if self.scale < 0:
            raise ValueError(f"scale must not be negative, got {self.scale}.")


def read_settings(path: Path) -> Settings:
    """The settings in a TOML file.

    Raises:
        ValueError: If it is not TOML, or has a key or a value that is not known.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return Settings(**_known(found))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _known(found: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(found) - known):
        raise ValueError(f"unknown keys: {', '.join(unknown)}. The known ones: {', '.join(sorted(known))}.")
    return found
