"""Find the undistillable classes while training, and stop teaching them."""

from __future__ import annotations

import kdzoo
from kdzoo_plugins.policies._finding import Bools, FindingParams, FindingPolicy
from kdzoo_plugins.policies._untaught import UntaughtParams

__all__ = ["TLLM"]


class TLLM(FindingPolicy):
    """Teach less, learn more: classes that the teacher makes worse are no longer taught.

    Zhu et al., "Teach Less, Learn More: On the Undistillable Classes in Knowledge Distillation"
    (NeurIPS 2022) watches a teaching curve of each class and removes the teacher's guidance from a
    class once it is found undistillable. The authors' curve, threshold and time of decision are
    not public: this is a reading of their idea, not their rule.

    From ``start_epoch`` on each class is tested after each epoch: is its ``signal``, averaged over
    the last ``window`` epochs, further below the median class's than ``margin``? Where the learning
    rate falls to half or less, and where a stage begins, the window begins anew. A class that is
    significant once is *suspect*; in ``patience`` looks in a row, and it is taught no longer, until
    the run ends.

    What is claimed: of the classes that are found a share of ``false_discoveries`` at most is not
    further behind than ``margin``, on average over draws of the images, if a class's images are
    independent and its accuracies about normal, and classes are as good as independent of each
    other (see :func:`~kdzoo_plugins.policies._signals.read_signal` and
    :class:`~kdzoo_plugins.policies._sequential.SequentialTest`). That is about these two runs. How
    far another seed would take the same class, one run cannot tell. Where that was measured,
    resnet8 on CIFAR-100, it was as far as the error that is reckoned with here.
    """

    name = "tllm"

    class Params(FindingParams, UntaughtParams):
        """What can be set."""

    def chosen(self, found: Bools, curves: kdzoo.TeachingCurves) -> Bools:
        """See :class:`~kdzoo_plugins.policies._finding.FindingPolicy`."""
        return found


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [TLLM]
