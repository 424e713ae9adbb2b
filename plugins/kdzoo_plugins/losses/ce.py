"""Cross entropy with the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

import kdzoo
from kdzoo_plugins.losses._precision import at_least_single

__all__ = ["CrossEntropy"]


class CrossEntropy(kdzoo.Loss):
    """Cross entropy of the student with the labels.

    ``-log softmax(z_s)[y]``, with the student's logits z_s and the label y.
    """

    name = "ce"
    guidance = "label"
    invariances = frozenset({"shift", "duplication", "permutation"})

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        logits = at_least_single(student.logits)
        return functional.cross_entropy(logits, batch.targets, reduction="none")


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [CrossEntropy]
