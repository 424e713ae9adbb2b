"""What torchrun tells the processes that it starts."""

from __future__ import annotations

import os

__all__ = ["rank_and_count"]

_SET = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_count() -> tuple[int, int]:
    """This process's number, and how many there are; (0, 1) for one that nobody started so."""
    if not all(name in os.environ for name in _SET):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
