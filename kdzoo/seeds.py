"""Random streams: one for each role, so that no role's draws can shift another's."""

from __future__ import annotations

import hashlib

__all__ = ["stream"]


def stream(seed: int, *role: str | int) -> int:
    """The seed of one role's own stream, in [0, 2**63).

    ``stream(0, "student")`` and ``stream(0, "order", 3)`` are unrelated numbers; the same
    arguments always give the same one, on every machine.
    """
    text = "/".join(str(part) for part in (seed, *role))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
