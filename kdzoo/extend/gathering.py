"""A batch that several processes share, put together: for losses that remember samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed

__all__ = ["gathered", "shared_as", "sizes"]

_sizes: tuple[int, ...] | None = None


@contextlib.contextmanager
def shared_as(sizes: Sequence[int]) -> Iterator[None]:
    """In here it is known how many rows of a batch each process has."""
    global _sizes
    _sizes = tuple(sizes)
    try:
        yield
    finally:
        _sizes = None


def sizes(own: int) -> tuple[int, ...]:
    """How many rows of a batch each process has; where that is not known, how many this one has.

    Args:
        own: how many that is.
    """
    return _sizes or (own,)


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The rows that all processes have of a batch; in a single process those that are given.

    In kdzoo's own training loop no process waits for its device here. In somebody's own loop the
    processes first tell each other how many rows they have, and then they do. All of them must
    come here equally often. No gradient passes.

    Args:
        tensors: (B, ...) each, with the same rows B of the batch: those of this process.

    Returns:
        Each of them with the rows of all processes, one process after the other.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(tensors)
    own = len(tensors[0])
    counts = _sizes or _told(own, tensors[0].device)
    answers = []
    for tensor in tensors:  # all are of one size while they travel
        padded = torch.cat([tensor, tensor.new_zeros(max(counts) - own, *tensor.shape[1:])])
        parts = [torch.zeros_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        answers.append(torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]))
    return answers


def _told(own: int, device: torch.device) -> list[int]:
    """How many rows each process has."""
    mine = torch.tensor([own], device=device)
    counts = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, mine)
    return [int(count) for count in counts]
