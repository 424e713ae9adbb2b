"""Label terms that do not forget rare classes."""

from __future__ import annotations

import kdzoo
import numpy as np
import numpy.typing as npt

__all__ = ["ClassBalanced", "class_balanced_weights"]

Floats = npt.NDArray[np.float64]


def class_balanced_weights(samples: Floats, beta: float) -> Floats:
    """(1 - beta) / (1 - beta^n) for classes of n samples each, scaled to a mean of 1.

    A class without samples gets 1, and does not count for the mean.
    """
    known = samples > 0
    weights = (1 - beta) / (1 - beta ** np.maximum(samples, 1.0))
    mean = weights[known].mean() if known.any() else 1.0
    return np.where(known, weights / mean, 1.0)


class ClassBalanced(kdzoo.ClassPolicy):
    """The rarer a class among the training images, the more its labels weigh; for unequal classes.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (CVPR 2019), equation 6.
    The classes are counted in the first epoch, in which all weigh the same.
    """

    name = "class-balanced"

    class Params(kdzoo.Params):
        """What can be set."""

        beta: float = kdzoo.Field(
            0.999, ge=0, lt=1, description="0 for equal weights, near 1 for 1 / n."
        )
        teacher: bool = kdzoo.Field(
            False, description="Whether the teacher's terms are weighted in the same way."
        )

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        label = class_balanced_weights(curves.samples[-1], self.params.beta)
        teacher = label.copy() if self.params.teacher else np.ones_like(label)
        return kdzoo.ClassWeights(teacher=teacher, label=label)


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """What this plugin adds."""
    return [ClassBalanced]
