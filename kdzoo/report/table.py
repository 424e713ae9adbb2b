"""How commands print tables, counts and lists."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

__all__ = ["counted", "few", "plain_table"]

_FEW = 5


def plain_table(*columns: str, words: int = 1) -> Table:
    """A table without lines. Where it is too wide its cells are folded: none is cut.

    Args:
        columns: what stands above each.
        words: how many columns come first that hold words; those that follow hold numbers, and are
            aligned to the right.
    """
    headers = [
        Column(name, justify="left" if number < words else "right", overflow="fold")
        for number, name in enumerate(columns)
    ]
    return Table(*headers, box=None, pad_edge=False, padding=(0, 3, 0, 0))


def counted(number: int, word: str) -> str:
    """``1 class``, ``2 classes``."""
    plural = "es" if word.endswith("s") else "s"
    return f"{number} {word}{'' if number == 1 else plural}"


def few(items: Sequence[str]) -> str:
    """The first five, and how many others there are."""
    left = len(items) - _FEW
    more = [f"and {counted(left, 'other')}"] if left > 0 else []
    return ", ".join([*items[:_FEW], *more])
