"""Counts and lists in messages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "few"]

_FEW = 5


def counted(number: int, word: str) -> str:
    """``1 class``, ``2 classes``."""
    plural = "es" if word.endswith("s") else "s"
    return f"{number} {word}{'' if number == 1 else plural}"


def few(items: Sequence[str]) -> str:
    """The first five, and how many others there are."""
    left = len(items) - _FEW
    more = [f"and {counted(left, 'other')}"] if left > 0 else []
    return ", ".join([*items[:_FEW], *more])
