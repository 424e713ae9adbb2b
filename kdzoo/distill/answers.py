"""Which images a network is right on, so that two runs can be compared image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["RightRows"]


class RightRows(nn.Module):
    """On which rows of the training set a network is right, in one epoch.

    Args:
        rows: how many there are.
    """

    now: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("now", torch.zeros(rows, dtype=torch.uint8), persistent=False)

    @torch.no_grad()
    def record(self, indices: Tensor, right: Tensor) -> None:
        """Add one batch: the rows ``indices`` (B,), and whether it is right on each, (B,)."""
        self.now[indices] = right.to(self.now.dtype)

    def take(self) -> Tensor:
        """What was recorded since the last call, a bit a row: (rows / 8,), on the CPU."""
        bits = torch.from_numpy(np.packbits(self.now.cpu().numpy()))
        self.now.zero_()
        return bits

    def put(self, bits: npt.NDArray[np.uint8]) -> None:
        """Let this be the epoch of which :meth:`take` gave these bits."""
        values = np.unpackbits(bits, count=len(self.now))
        self.now.copy_(torch.from_numpy(values))
