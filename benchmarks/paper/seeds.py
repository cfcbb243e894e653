"""Seeds that follow from other numbers."""

from __future__ import annotations

import hashlib


def derived(*parts: int) -> int:
    """A seed of 32 bits from several numbers: of a larger one torch's CPU generator takes the lower 32 bits alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[2:6], "big")
