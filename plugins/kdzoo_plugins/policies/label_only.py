"""A control: classes that tllm would stop keep the teacher, and hear more of their labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kdzoo
from kdzoo_plugins.policies._finding import Bools, FindingParams, FindingPolicy
from kdzoo_plugins.policies._untaught import LabelParams

__all__ = ["LabelOnly"]


class LabelOnly(FindingPolicy):
    """A control: the classes that ``tllm`` would stop keep the teacher, and only their label terms
    are steered.

    What ``tllm`` gains beyond this it owes to taking the teacher away. No class is *untaught*;
    which ones were found shows in their label weights.
    """

    name = "label-only"
    left = 0.0  # the label terms are measured as those of a class that has lost the teacher
    sets_columns = False

    class Params(FindingParams, LabelParams):
        """What can be set."""

    def chosen(self, found: Bools, curves: kdzoo.TeachingCurves) -> Bools:
        """See :class:`~kdzoo_plugins.policies._finding.FindingPolicy`."""
        return found

    def weights(
        self, untaught: Bools, states: npt.NDArray[np.int64] | None = None
    ) -> kdzoo.ClassWeights:
        """See :class:`~kdzoo_plugins.policies._untaught.UntaughtPolicy`."""
        answer = super().weights(untaught, states)
        assert answer.states is not None
        return kdzoo.ClassWeights(
            teacher=np.ones(len(untaught)),
            label=answer.label,
            states=np.where(untaught, kdzoo.ClassState.TAUGHT, answer.states),
        )


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [LabelOnly]
