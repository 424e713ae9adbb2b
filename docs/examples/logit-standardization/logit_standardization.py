"""Soft targets of standardized logits."""

from __future__ import annotations

from typing import Annotated

import kdzoo
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LogitStandardization", "logit_standardization_loss"]


def logit_standardization_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T)), one value per sample, (B,).

    Z takes each row's mean off and divides by its standard deviation over the C classes. 1e-7 is
    added to the variance, so that equal logits stay finite.
    """
    log_s, log_t = (
        functional.log_softmax(functional.layer_norm(z, z.shape[1:], eps=1e-7) / temperature, 1)
        for z in (student, teacher)
    )
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1)


class LogitStandardization(kdzoo.Loss):
    """Soft targets of logits with mean 0 and standard deviation 1, for both networks.

    Sun et al., "Logit Standardization in Knowledge Distillation" (CVPR 2024): the student has to
    learn how the teacher's logits relate to each other, and not how large they are. There it
    weighs 9 beside 0.1 of cross entropy on CIFAR-100, at T = 2.
    """

    name = "logit-standardization"
    default_weight = 9.0
    default_label_weight = 0.1
    invariances = frozenset({"identity", "shift", "duplication", "permutation"})

    class Params(kdzoo.Params):
        """What can be set."""

        temperature: Annotated[float, kdzoo.Range(low=1, high=6)] = kdzoo.Field(
            2.0, gt=0, description="T: divides the standardized logits before the softmax."
        )

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        dtype = torch.promote_types(student.logits.dtype, torch.float32)
        logits = student.logits.to(dtype), teacher.logits.to(dtype)
        return logit_standardization_loss(*logits, self.params.temperature)


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """What this plugin adds."""
    return [LogitStandardization]
