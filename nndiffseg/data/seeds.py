"""Seeds that are pure functions of names and numbers."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A 32-bit seed from any printable parts, stable across processes and Python versions."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")
