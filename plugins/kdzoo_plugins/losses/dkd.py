"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

import kdzoo
from kdzoo_plugins.losses._precision import at_temperature, refuse_other_logits, with_columns

__all__ = ["DKD", "dkd_loss"]


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), without warm-up.

    Zhao, Cui, Song, Qiu & Liang, "Decoupled Knowledge Distillation" (CVPR 2022), equation 7. TCKD
    is the KL divergence between (p_target, 1 - p_target) of teacher and student, NCKD that between
    their softmaxes over the other C - 1 classes, both at temperature T.

    In float32 rounding moves the value by up to about 5e-7 (alpha + beta) T^2 (0.05 at T = 100 with
    the published weights, and at T = 1e6 more than the value itself), and the gradient by about
    6e-8 T of its length; float64 has room.

    Args:
        student_logits: (B, C), finite, of two classes at least.
        teacher_logits: (B, C), finite.
        targets: (B,), int64 classes.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.
        temperature: T, finite and above 0.

    Returns:
        (B,), one value per sample; their mean is the published loss.

    Raises:
        ValueError: the logits are not (B, C) both, of two classes at least; the targets are not
            int64 (B,); or T is not finite and above 0.
        RuntimeError: a target is not in [0, C), as torch itself says it; on a GPU, where nothing
            waits for the targets, as an error of CUDA and maybe later.
    """
    refuse_other_logits(student_logits, teacher_logits)
    batch, classes = student_logits.shape
    if classes < 2:
        raise ValueError(f"the logits are {(batch, classes)}; two classes at least are needed")
    if targets.dtype != torch.int64 or targets.shape != (batch,):
        raise ValueError(
            f"the targets are {targets.dtype} of shape {tuple(targets.shape)}; they must be int64 "
            f"({batch},), one class per sample"
        )
    # In log space throughout. In single precision 1 - p_target is 0 once the gap of the logits
    # passes 17 T, and so are the other classes' probabilities once it passes 104 T: the loss
    # becomes infinite or NaN.
    student = _decoupled(at_temperature(student_logits, temperature), targets)
    teacher = _decoupled(at_temperature(teacher_logits, temperature), targets)
    tckd, nckd = (
        (wanted.exp() * (wanted - got)).sum(1) for wanted, got in zip(teacher, student, strict=True)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


def _decoupled(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities: (B, 2) of target and rest, (B, C - 1) of the rest among themselves."""
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, column + (column >= targets[:, None]))
    target = logits.gather(1, targets[:, None])
    both = torch.cat([target, others.logsumexp(1, keepdim=True)], 1)
    return functional.log_softmax(both, dim=1), functional.log_softmax(others, dim=1)


class DKD(kdzoo.Loss):
    """Decoupled soft targets: the target class (TCKD) and the others among themselves (NCKD).

    ``T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``, with the probability p of the label's
    class in ``softmax(z / T)``, ``b = (p, 1 - p)``, and q the softmax of z / T over the other C - 1
    classes; s is the student, t the teacher, z the logits.

    Zhao, Cui, Song, Qiu & Liang, "Decoupled Knowledge Distillation" (CVPR 2022), equation 7. On
    CIFAR-100 alpha is 1 and beta 8; 2 for resnet56 -> resnet20 and resnet110 -> resnet32; 6 for
    vgg13 -> vgg8, vgg13 -> MobileNetV2, wrn_40_2 -> wrn_16_2 and wrn_40_2 -> wrn_40_1. The weight
    rises over the first 20 epochs, beside the whole cross entropy.
    """

    name = "dkd"
    default_warmup_epochs = 20
    takes_columns = True
    invariances = frozenset({"identity", "shift", "duplication", "permutation"})

    class Params(kdzoo.Params):
        """What can be set."""

        alpha: Annotated[float, kdzoo.Range(low=0.5, high=4)] = kdzoo.Field(
            1.0, ge=0, description="The weight of TCKD."
        )
        beta: Annotated[float, kdzoo.Range(low=0.5, high=16, log=True)] = kdzoo.Field(
            8.0, ge=0, description="The weight of NCKD."
        )
        temperature: Annotated[float, kdzoo.Range(low=1, high=10)] = kdzoo.Field(
            4.0, gt=0, description="T: divides both networks' logits before the softmax."
        )

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        temperature = self.params.temperature
        return dkd_loss(
            with_columns(student.logits, batch, temperature),
            with_columns(teacher.logits, batch, temperature),
            batch.targets,
            self.params.alpha,
            self.params.beta,
            temperature,
        )


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [DKD]
