"""Cross entropy with the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

import kdzoo

__all__ = ["CrossEntropy"]


class CrossEntropy(kdzoo.Loss):
    """Cross entropy of the student with the labels: -log softmax(s)[target]."""

    name = "ce"
    guidance = "label"

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        return functional.cross_entropy(student.logits, batch.targets, reduction="none")


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [CrossEntropy]
