"""What a class gets that is no longer taught: shared by the policies that stop teaching classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kdzoo

__all__ = ["UntaughtParams", "UntaughtWeights"]


class UntaughtParams(kdzoo.Params):
    """What can be set about classes that are no longer taught."""

    teacher_weight: float = kdzoo.Field(
        0.0, ge=0, description="What untaught classes get of the teacher's terms."
    )
    label_weight: float | None = kdzoo.Field(
        None,
        ge=0,
        description="The factor on their label terms. None: as much as the baseline gives them, "
        "where label terms weigh 1.",
    )


class UntaughtWeights:
    """The class weights under which some classes are not taught.

    Args:
        params: what these classes get instead.
        setting: what the policy decides about.

    Raises:
        SpecError: there is no teacher, or nothing else to learn from.
    """

    def __init__(self, params: UntaughtParams, setting: kdzoo.PolicySetting) -> None:
        self.teacher = params.teacher_weight
        whole = setting.label_factor(params.teacher_weight)
        self.label = whole if params.label_weight is None else params.label_weight

    def __call__(self, untaught: npt.NDArray[np.bool_]) -> kdzoo.ClassWeights:
        """The weights where ``untaught`` (C,) says which classes are not taught."""
        return kdzoo.ClassWeights(
            teacher=np.where(untaught, self.teacher, 1.0),
            label=np.where(untaught, self.label, 1.0),
        )
