"""Find the undistillable classes while training, and stop teaching them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import kdzoo
from kdzoo_plugins.policies._untaught import UntaughtParams, UntaughtWeights

__all__ = ["TLLM", "class_gap"]

Floats = npt.NDArray[np.float64]


def class_gap(curves: kdzoo.TeachingCurves, window: int) -> Floats:
    """How much worse or better each class does than the teacher's presence explains.

    With a baseline: the student's accuracy on the class minus the baseline's at the same epoch.
    Without one: the residual of the student's accuracy regressed (least squares) on the teacher's
    accuracy over the classes. Either is averaged over the last ``window`` epochs; then the median
    over classes is subtracted, so that a student that is ahead or behind as a whole shows nothing.

    Args:
        curves: at least one epoch, C classes.
        window: how many epochs to average over, fewer where there are fewer.

    Returns:
        (C,); below zero where the class falls behind. A class without samples has 0.
    """
    if curves.baseline is not None:
        gap = _recent_mean(curves.student - curves.baseline, window)
    else:
        student = _recent_mean(curves.student, window)
        gap = _residual(student, _recent_mean(curves.teacher, window))
    known = np.isfinite(gap)
    if not known.any():
        return np.zeros_like(gap)
    return np.where(known, gap - np.median(gap[known]), 0.0)


class TLLM(kdzoo.ClassPolicy):
    """Teach less, learn more: classes that the teacher makes worse are no longer taught.

    Zhu et al., "Teach Less, Learn More: On the Undistillable Classes in Knowledge Distillation"
    (NeurIPS 2022) watches a teaching curve of each class and removes the teacher's guidance from a
    class once it is found undistillable. The authors' curve, threshold and time of decision are
    not public: this is a reading of their idea, not their rule. See :func:`class_gap` for the
    signal. From ``start_epoch`` on it is checked after each epoch; a class below ``-margin`` in
    ``patience`` checks in a row is taught no longer, until the run ends.
    """

    name = "tllm"

    class Params(UntaughtParams):
        """What can be set."""

        start_epoch: int = kdzoo.Field(
            10, ge=1, description="The first check comes after this epoch of the run."
        )
        margin: Annotated[float, kdzoo.Range(low=0.01, high=0.2, log=True)] = kdzoo.Field(
            0.05, ge=0, lt=1, description="How far below zero the class's gap must be (0 to 1)."
        )
        patience: Annotated[int, kdzoo.Range(low=1, high=5)] = kdzoo.Field(
            3, ge=1, description="In how many checks in a row, before teaching stops."
        )
        window: int = kdzoo.Field(
            5, ge=1, description="Over how many epochs the curves are averaged."
        )
        max_fraction: float = kdzoo.Field(
            0.2,
            ge=0,
            le=1,
            description="At most this share of the classes is not taught, rounded down, but at "
            "least one class; 0 for none.",
        )

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        self._weights = UntaughtWeights(self.params, setting)
        self._strikes: npt.NDArray[np.int64] = np.zeros(len(setting.classes), dtype=np.int64)
        self._stopped: npt.NDArray[np.bool_] = np.zeros(len(setting.classes), dtype=np.bool_)

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        self._weights.steer(curves, self._stopped)
        if len(curves.student) >= self.params.start_epoch:
            self._check(class_gap(curves, self.params.window))
        return self._weights(self._stopped)

    def _check(self, gap: Floats) -> None:
        self._strikes = np.where(gap < -self.params.margin, self._strikes + 1, 0)
        fraction = self.params.max_fraction
        cap = max(math.floor(fraction * len(gap) + 1e-9), 1) if fraction else 0
        room = cap - int(self._stopped.sum())
        ripe = np.flatnonzero((self._strikes >= self.params.patience) & ~self._stopped)
        worst_first = ripe[np.argsort(gap[ripe], kind="stable")]
        self._stopped[worst_first[: max(room, 0)]] = True

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.ClassPolicy.state_dict`."""
        return {
            "strikes": self._strikes.tolist(),
            "stopped": self._stopped.tolist(),
            **self._weights.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`kdzoo.ClassPolicy.load_state_dict`."""
        self._strikes = np.array(state["strikes"], dtype=np.int64)
        self._stopped = np.array(state["stopped"], dtype=bool)
        self._weights.load_state_dict(state)


def _recent_mean(curve: Floats, window: int) -> Floats:
    recent = curve[-window:]
    known = np.isfinite(recent)
    count = known.sum(0)
    total = np.where(known, recent, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _residual(y: Floats, x: Floats) -> Floats:
    """What least squares over the classes leaves of y after a straight line in x."""
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return np.full_like(y, np.nan)
    x = x - x[known].mean()
    spread = float((x[known] ** 2).sum())
    slope = float((x[known] * y[known]).sum()) / spread if spread > 0 else 0.0
    return y - slope * x


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [TLLM]
