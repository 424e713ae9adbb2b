"""Records the teaching curves while samples pass, without leaving the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdzoo.distill.answers import RightRows
from kdzoo.distill.similarity import ClassSimilarity
from kdzoo.extend.contracts import Floats, Outputs, TeachingCurves

__all__ = ["ClassCounts", "CurveRecorder"]

_SAMPLES, _STUDENT, _BOTH, _PREDICTED, _ASKED, _TEACHER, _AGREEMENT, _DIVERGENCE = range(8)
_SIMILARITY = 8


class ClassCounts(nn.Module):
    """Counts per class, in float64: exact for counts, and deterministic (a matrix product).

    Args:
        num_classes: C.

    Attributes:
        similarity: collects the features; ``None`` where nobody asks for their similarity.
    """

    sums: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.similarity: ClassSimilarity | None = None
        self.register_buffer("sums", torch.zeros(num_classes, _SIMILARITY, dtype=torch.float64))

    @torch.no_grad()
    def record(
        self,
        targets: Tensor,
        student: Outputs,
        teacher: Outputs | None,
        baseline: Tensor | None,
    ) -> Tensor:
        """Add one batch.

        Args:
            targets: (B,), the classes.
            student: what the student said.
            teacher: what the teacher said; ``None`` if it was not asked.
            baseline: (B,), 1 where the baseline was right, else 0; ``None`` if that is not known.

        Returns:
            (B,), whether the student was right.
        """
        answer = student.logits.argmax(1)
        of_class, answered = (
            functional.one_hot(classes, self.num_classes).double() for classes in (targets, answer)
        )
        right = answer == targets
        columns = [torch.ones_like(targets), right]
        if baseline is not None:
            columns.append(right * baseline)
        self.sums[:, : len(columns)] += of_class.T @ _in_columns(columns)
        self.sums[:, _PREDICTED] += answered.sum(0)
        if teacher is None:
            return right
        teachers_answer = teacher.logits.argmax(1)
        log_student = functional.log_softmax(student.logits.float(), 1)
        log_teacher = functional.log_softmax(teacher.logits.float(), 1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
        agreed = answer == teachers_answer
        columns = [torch.ones_like(targets), teachers_answer == targets, agreed, divergence]
        self.sums[:, _ASKED:] += of_class.T @ _in_columns(columns)
        if self.similarity is not None:
            x, y = student.features["penultimate"], teacher.features["penultimate"]
            self.similarity.record(targets, x, y)
        return right

    def take(self) -> Tensor:
        """(C, 9), what was recorded since the last call, on the CPU."""
        if self.similarity is None:
            similarity = self.sums.new_full((self.num_classes,), math.nan)
        else:
            similarity = self.similarity.take()
        taken = torch.cat([self.sums, similarity[:, None]], 1).cpu()
        self.sums.zero_()
        return taken


def _in_columns(columns: list[Tensor]) -> Tensor:
    return torch.stack([column.double() for column in columns], 1)


class CurveRecorder(nn.Module):
    """The teaching curves, on the training samples as they pass and on the validation images.

    Args:
        num_classes: C.
        baseline: (E, C), the baseline's accuracy in each epoch to come; ``None`` for no baseline.
        features: how wide the features of student and teacher are whose similarity may be asked
            for; ``None`` if it will not be.

    Attributes:
        validation_baseline: (E, C), the baseline's accuracy on the validation images.
    """

    def __init__(
        self, num_classes: int, baseline: Floats | None, features: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.baseline = baseline
        self.validation_baseline: Floats | None = None
        self.features = features
        self.training_samples, self.validation_images = (ClassCounts(num_classes) for _ in range(2))
        self.history: list[dict[str, Tensor]] = []
        self._kept: RightRows | None = None
        self._baselines: RightRows | None = None
        self._baselines_bits: npt.NDArray[np.uint8] = np.zeros((0, 0), dtype=np.uint8)

    def compare_features(self, *, training: bool, validation: bool) -> None:
        """From now on the features are compared on these images, and on no others.

        Args:
            training: on the training samples.
            validation: on the validation images.
        """
        for counts, asked in (
            (self.training_samples, training),
            (self.validation_images, validation),
        ):
            if not asked or self.features is None:
                counts.similarity = None
            elif counts.similarity is None:
                similarity = ClassSimilarity(self.num_classes, *self.features)
                counts.similarity = similarity.to(counts.sums.device)

    def keep_right_rows(self, rows: int) -> None:
        """From now on the history says on which of so many rows the student was right: a run that
        is compared with this one needs it."""
        self._kept = RightRows(rows).to(self.training_samples.sums.device)

    def compare_right_rows(self, rows: int, bits: npt.NDArray[np.uint8]) -> None:
        """From now on samples are compared with what the baseline made of them.

        Args:
            rows: how many rows the training set has.
            bits: (E, rows / 8), on which rows the baseline was right in each epoch to come.
        """
        self._baselines_bits = bits
        self._baselines = RightRows(rows).to(self.training_samples.sums.device)
        self._turn()

    def record(
        self,
        targets: Tensor,
        indices: Tensor | None,
        student: Outputs,
        teacher: Outputs | None,
        *,
        validation: bool,
    ) -> None:
        """Add one batch of training samples, or of validation images.

        Args:
            targets: (B,), the classes.
            indices: (B,), the rows; ``None`` if they are not known.
            student: what the student said.
            teacher: what the teacher said; ``None`` if it was not asked.
            validation: which of the two they are.
        """
        baseline = None
        if indices is not None and self._baselines is not None:
            baseline = self._baselines.now[indices]
        counts = self.validation_images if validation else self.training_samples
        right = counts.record(targets, student, teacher, baseline)
        if indices is not None and self._kept is not None:
            self._kept.record(indices, right)

    @property
    def sums(self) -> list[Tensor]:
        """What was recorded of the epoch so far: sums over samples, which add up over processes."""
        counted = (self.training_samples, self.validation_images)
        similar = [counts.similarity.sums for counts in counted if counts.similarity is not None]
        kept = [] if self._kept is None else [self._kept.now]
        return [*(counts.sums for counts in counted), *similar, *kept]

    def close_epoch(self, policy: Tensor, learning_rate: float, stage: int) -> None:
        """The epoch is over: what was recorded becomes a point of the curves.

        Args:
            policy: (C, 3), what applied to each class: its two weights, and its state.
            learning_rate: the epoch's, NaN if unknown.
            stage: how many epochs came before the epoch's stage.
        """
        point = {
            "training": self.training_samples.take(),
            "validation": self.validation_images.take(),
            "policy": policy.double().cpu(),
            "schedule": torch.tensor([learning_rate, stage], dtype=torch.float64),
        }
        if self._kept is not None:
            point["right"] = self._kept.take()
        self.history.append(point)
        self._turn()

    def _turn(self) -> None:
        """The baseline's answers are those of the epoch that comes next."""
        epoch = len(self.history)
        if self._baselines is not None and epoch < len(self._baselines_bits):
            self._baselines.put(self._baselines_bits[epoch])

    def right_rows(self) -> npt.NDArray[np.uint8]:
        """(E, rows / 8), what was kept of all finished epochs, a bit a row."""
        return np.stack([epoch["right"].numpy() for epoch in self.history])

    def curves(self) -> TeachingCurves:
        """All finished epochs."""
        training = self._curves("training", self.baseline)
        validation = self._curves("validation", self.validation_baseline)
        return replace(training, validation=validation if validation.samples.any() else None)

    def _curves(self, which: str, baseline: Floats | None) -> TeachingCurves:
        sums = self._stacked(which, self.num_classes, 9)
        policy = self._stacked("policy", self.num_classes, 3)
        schedule = self._stacked("schedule", 2)
        samples = sums[:, :, _SAMPLES]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / samples[:, :, None]
            asked = sums / sums[:, :, _ASKED, None]  # NaN where the teacher was not
        return TeachingCurves(
            samples=samples,
            student=means[:, :, _STUDENT],
            teacher=asked[:, :, _TEACHER],
            agreement=asked[:, :, _AGREEMENT],
            divergence=asked[:, :, _DIVERGENCE],
            predicted=sums[:, :, _PREDICTED],
            teacher_weight=policy[:, :, 0],
            label_weight=policy[:, :, 1],
            baseline=None if baseline is None else baseline[: len(sums)],
            both_right=None if self._baselines is None else means[:, :, _BOTH],
            similarity=sums[:, :, _SIMILARITY] if self.features else None,
            state=policy[:, :, 2],
            learning_rate=schedule[:, 0],
            stage=schedule[:, 1],
        )

    def _stacked(self, name: str, *shape: int) -> Floats:
        empty = torch.zeros(0, *shape, dtype=torch.float64)
        points = [epoch[name] for epoch in self.history]
        values: Floats = (torch.stack(points) if points else empty).numpy()
        return values

    def get_extra_state(self) -> dict[str, Any]:
        """The finished epochs, for the state dict: one tensor for each thing that is recorded,
        since many small ones take long to write."""
        names = self.history[0] if self.history else ()
        return {name: torch.stack([epoch[name] for epoch in self.history]) for name in names}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        epochs = zip(*(values.cpu() for values in state.values()), strict=True)
        self.history = [dict(zip(state, epoch, strict=True)) for epoch in epochs]
        self._turn()
