"""What a class gets that is no longer taught: shared by the policies that stop teaching classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import kdzoo

__all__ = ["UntaughtParams", "UntaughtWeights"]

_STEEPNESS = 5.0  # answered 1 % too seldom, a class's factor rises by 5 % an epoch
_LEAST, _MOST = 0.01, 10.0  # of what gives the label terms their weight in the baseline


class UntaughtParams(kdzoo.Params):
    """What can be set about classes that are no longer taught."""

    teacher_weight: float = kdzoo.Field(
        0.0, ge=0, description="What untaught classes get of the teacher's terms."
    )
    balance: bool = kdzoo.Field(
        True,
        description="Adjust the factor on their label terms after each epoch, so that each is "
        "answered as often as it comes.",
    )
    label_weight: float | None = kdzoo.Field(
        None,
        ge=0,
        description="The factor on their label terms; with `balance` the one that it begins with. "
        "None: 1 with `balance`, else as much as the baseline gives them, where label terms weigh "
        "1.",
    )


class UntaughtWeights:
    """The class weights under which some classes are not taught.

    A class that loses the teacher's terms is left with label terms that were meant to be a small
    part of its loss: it starves, and is answered too seldom. With all of its weight on them it is
    pulled harder than its neighbours, which still follow soft targets, and takes their images.
    Where between the two it keeps its share depends on the data. So the factor is steered by that
    share: after each epoch it is multiplied by (samples of the class / samples answered with the
    class)^5, on the training images as they passed.

    Args:
        params: what these classes get instead.
        setting: what the policy decides about.

    Raises:
        SpecError: there is no teacher, or nothing else to learn from.
    """

    def __init__(self, params: UntaughtParams, setting: kdzoo.PolicySetting) -> None:
        self._params = params
        self._whole = setting.label_factor(params.teacher_weight)
        first = params.label_weight
        if first is None:
            first = 1.0 if params.balance else self._whole
        self._factors: npt.NDArray[np.float64] = np.full(len(setting.classes), first)

    def __call__(self, untaught: npt.NDArray[np.bool_]) -> kdzoo.ClassWeights:
        """The weights where ``untaught`` (C,) says which classes are not taught."""
        return kdzoo.ClassWeights(
            teacher=np.where(untaught, self._params.teacher_weight, 1.0),
            label=np.where(untaught, self._factors, 1.0),
        )

    def steer(self, curves: kdzoo.TeachingCurves, untaught: npt.NDArray[np.bool_]) -> None:
        """After an epoch in which the classes in ``untaught`` (C,) were not taught."""
        if not self._params.balance:
            return
        samples, answered = curves.samples[-1], curves.predicted[-1]
        known = untaught & (samples > 0)
        share = np.where(known, np.maximum(answered, 1.0) / np.maximum(samples, 1.0), 1.0)
        factors = self._factors * share**-_STEEPNESS
        bounded = np.clip(factors, _LEAST * self._whole, _MOST * self._whole)
        self._factors = np.where(known, bounded, self._factors)

    def state_dict(self) -> dict[str, Any]:
        """The factors as they are now, for the policy's own state."""
        return {"factors": self._factors.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._factors = np.array(state["factors"], dtype=np.float64)
