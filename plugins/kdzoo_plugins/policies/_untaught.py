"""What a class gets that is no longer taught: shared by the policies that stop teaching classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kdzoo

__all__ = ["UntaughtParams", "weights_without"]


class UntaughtParams(kdzoo.Params):
    """What can be set about classes that are no longer taught."""

    teacher_weight: float = kdzoo.Field(
        0.0, ge=0, description="What untaught classes get of the teacher's terms."
    )
    label_weight: float | None = kdzoo.Field(
        None,
        ge=0,
        description="The factor on their label terms. None: as much as keeps their whole weight, "
        "(teacher's + label terms' weight) / label terms' weight.",
    )


def weights_without(
    untaught: npt.NDArray[np.bool_], params: UntaughtParams, whole: float
) -> kdzoo.ClassWeights:
    """The class weights under which some classes are not taught.

    Args:
        untaught: (C,), which classes.
        params: what they get instead.
        whole: the factor that keeps their whole weight, ``PolicySetting.whole_label_factor``.
    """
    label = whole if params.label_weight is None else params.label_weight
    return kdzoo.ClassWeights(
        teacher=np.where(untaught, params.teacher_weight, 1.0),
        label=np.where(untaught, label, 1.0),
    )
