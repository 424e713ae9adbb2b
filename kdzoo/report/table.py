"""How commands print tables."""

from __future__ import annotations

from rich.table import Column, Table

__all__ = ["plain_table"]


def plain_table(*columns: str, words: int = 1) -> Table:
    """A table without lines.

    Args:
        columns: what stands above each.
        words: how many columns come first that hold words; those that follow hold numbers, and are
            aligned to the right.
    """
    headers = [
        Column(name, justify="left" if number < words else "right")
        for number, name in enumerate(columns)
    ]
    return Table(*headers, box=None, pad_edge=False, padding=(0, 3, 0, 0))
