"""A test for each class that stays valid although it is looked at after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

__all__ = ["SequentialTest"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class SequentialTest:
    """Which classes are found, look by look, with false discoveries held over classes.

    Each look brings a p value for each class. A class is found once it is significant in
    ``patience`` looks in a row. Epochs show the same images again, so nothing is assumed of how
    looks depend on each other: the level is *spent* over them (Lan & DeMets, "Discrete Sequential
    Boundaries for Clinical Trials", Biometrika 1983), 1 / (j (j + 1)) of it on the j-th block of
    ``patience`` looks, which adds up to 1. That covers every run of ``patience`` looks, since each
    contains the last look of some block. So the largest p value of such a run, times j (j + 1), is
    one that stays valid at whichever look one stops; over the classes the procedure of Benjamini &
    Hochberg (1995) is applied to these. Classes found before count with the values that they were
    found with.

    Args:
        num_classes: C.
        patience: in how many looks in a row.
        rate: the false discovery rate.
    """

    def __init__(self, num_classes: int, patience: int, rate: float) -> None:
        self.patience = patience
        self.rate = rate
        self._looks = 0
        self._row: list[Floats] = []  # the last looks, at most `patience`
        self._found: Floats = np.ones(num_classes)  # the values with which classes were found

    def restart(self) -> None:
        """What was seen so far no longer counts towards a row of looks."""
        self._row = []

    def look(self, p: Floats) -> tuple[Floats, Bools, Bools]:
        """One more look.

        Args:
            p: (C,), one-sided p values; 1 for a class that cannot be judged.

        Returns:
            For each class its value (C,), always valid; whether it is found; and whether it would
            be found if the rest of the row were as this look is.
        """
        self._looks += 1
        self._row = [*self._row, p][-self.patience :]
        blocks = max(self._looks // self.patience, 1)
        price = blocks * (blocks + 1)
        whole = len(self._row) == self.patience
        values = np.minimum(price * np.max(self._row, 0), 1.0) if whole else np.ones_like(p)
        seen = np.minimum(np.minimum(price * p, 1.0), self._found)
        found, expected = (
            scipy.stats.false_discovery_control(p) <= self.rate
            for p in (np.minimum(values, self._found), seen)
        )
        return values, found, expected

    def keep(self, values: Floats, classes: Bools) -> None:
        """These classes (C,) were acted upon, with the values of the look."""
        self._found = np.where(classes, np.minimum(values, self._found), self._found)

    def state_dict(self) -> dict[str, Any]:
        """All that the next look needs."""
        return {
            "looks": self._looks,
            "row": [p.tolist() for p in self._row],
            "found": self._found.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._looks = state["looks"]
        self._row = [np.array(p, dtype=np.float64) for p in state["row"]]
        self._found = np.array(state["found"], dtype=np.float64)
