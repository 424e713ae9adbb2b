"""How commands print tables."""

from __future__ import annotations

from rich.table import Column, Table

__all__ = ["plain_table"]


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
