"""Knowledge distillation: soft targets."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn import functional

import kdzoo
from kdzoo_plugins.losses._precision import at_temperature, refuse_other_logits, with_columns

__all__ = ["KD", "kd_loss"]


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)), summed over classes.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; the
    factor T^2 keeps the size of the gradient when T changes.

    In float32 rounding moves the value by up to about 5e-7 T^2 (0.005 at T = 100, and at T = 1e6
    more than the value itself), and the gradient by about 6e-8 T of its length; float64 has room.

    Args:
        student_logits: (B, C), finite.
        teacher_logits: (B, C), finite.
        temperature: T, finite and above 0.

    Returns:
        (B,), one value per sample; their mean is the published loss.

    Raises:
        ValueError: the logits are not (B, C) both, or T is not finite and above 0.
    """
    refuse_other_logits(student_logits, teacher_logits)
    log_student = functional.log_softmax(at_temperature(student_logits, temperature), dim=1)
    log_teacher = functional.log_softmax(at_temperature(teacher_logits, temperature), dim=1)
    # In log space throughout: a probability that underflows contributes 0, not NaN.
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return temperature**2 * divergence


class KD(kdzoo.Loss):
    """Soft targets: the softened probabilities of the student shall be the teacher's.

    ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, with the logits z_s and z_t of student and
    teacher; T is ``temperature``.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. On
    CIFAR-100 the literature weights it 0.9, beside 0.1 of cross entropy, at T = 4.
    """

    name = "kd"
    default_weight = 0.9
    default_label_weight = 0.1
    takes_columns = True
    invariances = frozenset({"identity", "shift", "duplication", "permutation"})

    class Params(kdzoo.Params):
        """What can be set."""

        temperature: Annotated[float, kdzoo.Range(low=1, high=10)] = kdzoo.Field(
            4.0, gt=0, description="T: divides both networks' logits before the softmax."
        )

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        temperature = self.params.temperature
        wanted = with_columns(teacher.logits, batch, temperature)
        return kd_loss(with_columns(student.logits, batch, temperature), wanted, temperature)


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [KD]
