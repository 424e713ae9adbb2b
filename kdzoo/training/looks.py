"""The numbers of the steps come to the host, and no step waits for that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Looks"]

_Show = Callable[[list[str], int, npt.NDArray[np.float32]], None]


class Looks:
    """Shows what steps have computed: in their order, and each of them once.

    On a processor a look is shown at once. On a GPU its numbers travel while the next steps are
    computed, and it is shown at the next look; the last one when this is closed.

    Args:
        show: what is done with a look: with the names of the numbers, with the first of its
            steps, and with the numbers themselves, (steps, names).
    """

    def __init__(self, show: _Show) -> None:
        self._show = show
        self._travelling: tuple[list[str], int, Tensor, torch.cuda.Event | None] | None = None

    def add(self, names: list[str], first: int, rows: Tensor) -> None:
        """Another look: numbers (steps, names), and the first step that they are of."""
        self.close()
        self._travelling = names, first, *_sent(rows)
        if not _takes_time(rows):
            self.close()

    def close(self) -> None:
        """Show what was not shown yet. After what fails nothing more is shown."""
        if self._travelling is None:
            return
        names, first, values, arrived = self._travelling
        self._travelling = None
        if arrived is not None:
            arrived.synchronize()  # waits for what the device did before, not for its next steps
        self._show(names, first, values.numpy())


def _takes_time(rows: Tensor) -> bool:
    return rows.device.type == "cuda"


def _sent(rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Numbers on their way to the host, and what says that they are there."""
    if rows.device.type != "cuda":
        return rows.cpu(), None
    values = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    values.copy_(rows, non_blocking=True)
    return values, torch.cuda.current_stream(rows.device).record_event()
