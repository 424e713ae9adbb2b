"""Records the teaching curves while training samples pass, without leaving the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdzoo.extend.contracts import Floats, TeachingCurves

__all__ = ["CurveRecorder"]

_SAMPLES, _STUDENT, _TEACHER, _AGREEMENT, _DIVERGENCE, _PREDICTED = range(6)
_TEACHER_WEIGHT, _LABEL_WEIGHT = 6, 7


class CurveRecorder(nn.Module):
    """Counts per class, in float64: exact for counts, and deterministic (a matrix product).

    Args:
        num_classes: C.
        has_teacher: without one, everything about a teacher stays NaN.
        baseline: (E, C), the baseline's accuracy in each epoch to come; ``None`` for no baseline.
    """

    sums: Tensor

    def __init__(self, num_classes: int, has_teacher: bool, baseline: Floats | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.has_teacher = has_teacher
        self.baseline = baseline
        self.register_buffer("sums", torch.zeros(num_classes, 6, dtype=torch.float64))
        self.history: list[Tensor] = []

    @torch.no_grad()
    def record(self, targets: Tensor, student: Tensor, teacher: Tensor | None) -> None:
        """Add one batch: ``targets`` (B,), logits (B, C) of the student and of the teacher."""
        answer = student.argmax(1)
        columns = [torch.ones_like(targets), answer == targets]
        if teacher is not None:
            teachers_answer = teacher.argmax(1)
            log_student = functional.log_softmax(student.float(), 1)
            log_teacher = functional.log_softmax(teacher.float(), 1)
            divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
            columns += [teachers_answer == targets, answer == teachers_answer, divergence]
        values = torch.stack([column.double() for column in columns], 1)
        of_class, answered = (
            functional.one_hot(classes, self.num_classes).double() for classes in (targets, answer)
        )
        self.sums[:, : len(columns)] += of_class.T @ values
        self.sums[:, _PREDICTED] += answered.sum(0)

    def close_epoch(self, teacher_weights: Tensor, label_weights: Tensor) -> None:
        """The epoch is over: what was recorded becomes a point of the curves.

        Args:
            teacher_weights: (C,), the class weights that applied to the teacher's terms.
            label_weights: (C,), those that applied to the label terms.
        """
        weights = torch.stack([teacher_weights, label_weights], 1).double()
        self.history.append(torch.cat([self.sums, weights], 1).cpu())
        self.sums.zero_()

    def curves(self) -> TeachingCurves:
        """All finished epochs."""
        epochs = len(self.history)
        empty = torch.zeros(0, self.num_classes, 8, dtype=torch.float64)
        sums = (torch.stack(self.history) if epochs else empty).numpy()
        samples = sums[:, :, _SAMPLES]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / samples[:, :, None]
        if not self.has_teacher:
            means[:, :, _TEACHER : _DIVERGENCE + 1] = np.nan
        return TeachingCurves(
            samples=samples,
            student=means[:, :, _STUDENT],
            teacher=means[:, :, _TEACHER],
            agreement=means[:, :, _AGREEMENT],
            divergence=means[:, :, _DIVERGENCE],
            predicted=sums[:, :, _PREDICTED],
            teacher_weight=sums[:, :, _TEACHER_WEIGHT],
            label_weight=sums[:, :, _LABEL_WEIGHT],
            baseline=None if self.baseline is None else self.baseline[:epochs],
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The finished epochs, for the state dict."""
        return {"history": list(self.history)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        self.history = [sums.cpu() for sums in state["history"]]
