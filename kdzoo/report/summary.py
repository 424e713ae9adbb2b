"""report.json: how a run's student does on the test images, beside teacher and baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table

from kdzoo.errors import CheckpointError
from kdzoo.report.evidence import expected_harm, mcnemar, paired_error, paired_interval
from kdzoo.report.table import plain_table
from kdzoo.training.correction import Correction
from kdzoo.training.evaluate import Evaluation, Ints, confusion_of
from kdzoo.training.teacher_check import WHAT_TO_CHECK, is_worse
from kdzoo.words import counted, few

__all__ = [
    "BestValidation",
    "Comparison",
    "Confusion",
    "Offsets",
    "Record",
    "Report",
    "Score",
    "Share",
    "added_confusions",
    "notes",
    "summary_lines",
    "summary_table",
    "teacher_note",
    "tenth_of",
    "weights_note",
]

_CONFUSIONS = 30


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Record(BaseModel):
    """What is written as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    def as_json(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(indent=1).encode()


class Offsets(Record):
    """What corrects a network's logits: ``scale * logit + offset``, fitted to validation images.

    Attributes:
        scale: of all logits.
        offsets: each class's, by name.
    """

    scale: float
    offsets: dict[str, float]

    @classmethod
    def of(cls, correction: Correction, classes: Sequence[str]) -> Offsets:
        """The record of a correction."""
        values = map(_rounded, correction.offsets.tolist())
        return cls(
            scale=_rounded(correction.scale), offsets=dict(zip(classes, values, strict=True))
        )


class Score(Record):
    """How one network does on the test images. Shares have six digits: more than a test set tells.

    Attributes:
        accuracy: the share of all test images that it classifies correctly.
        balanced_accuracy: the mean of the classes' accuracies.
        worst_class: the class that does worst.
        worst_tenth: the mean accuracy of the tenth of the classes, rounded up, that do worst.
        top5: the share of the images whose class is among the five highest logits; ``None`` with
            five classes or fewer.
        calibration_error: see :attr:`kdzoo.training.evaluate.Evaluation.calibration_error`;
            ``None`` where a logit is NaN or infinite.
        corrected_accuracy: the accuracy after logit offsets that were fitted on the validation
            images; ``None`` without these.
        classes: the accuracy of each class that has test images, by name: its recall.
        precision: how much of what is answered with a class is of it; without the classes that are
            never answered.
        predicted_share: how much of all answers each class is.
        corrected: the accuracy of each class after the offsets; empty without validation images.
        correction: the offsets, as ``load_student(..., corrected=True)`` applies them.
    """

    accuracy: Share
    balanced_accuracy: Share
    worst_class: str
    worst_tenth: Share
    top5: Share | None
    calibration_error: Share | None
    corrected_accuracy: Share | None
    classes: dict[str, Share]
    precision: dict[str, Share]
    predicted_share: dict[str, Share]
    corrected: dict[str, Share]
    correction: Offsets | None

    @classmethod
    def of(cls, evaluation: Evaluation, classes: Sequence[str]) -> Score:
        """The score of an evaluation."""
        confusion = evaluation.confusion
        recall = _shares(confusion.diagonal(), confusion.sum(1), classes)
        answered = confusion.sum(0)
        after, correction = evaluation.corrected_confusion, evaluation.correction
        lowest = sorted(recall.values())[: tenth_of(len(recall))]
        return cls(
            accuracy=_rounded(evaluation.accuracy),
            balanced_accuracy=_rounded(evaluation.balanced_accuracy),
            worst_class=min(recall, key=lambda name: recall[name]),
            worst_tenth=_rounded(np.mean(lowest)),
            top5=None if evaluation.top5 is None else _rounded(evaluation.top5),
            calibration_error=_rounded(evaluation.calibration_error) if evaluation.finite else None,
            corrected_accuracy=None if after is None else _rounded(after.trace() / after.sum()),
            classes=recall,
            precision=_shares(confusion.diagonal(), answered, classes),
            predicted_share=_shares(answered, np.full_like(answered, answered.sum()), classes),
            corrected={} if after is None else _shares(after.diagonal(), after.sum(1), classes),
            correction=None if correction is None else Offsets.of(correction, classes),
        )


class Confusion(Record):
    """One class answered for another, more often than the baseline does.

    Attributes:
        of: the images' class.
        answered: the class that is answered.
        student: how many of the class's test images the student answers so.
        baseline: how many of them the baseline does.
    """

    of: str
    answered: str
    student: int
    baseline: int


class Comparison(Record):
    """The student beside its baseline, on the same test images.

    Attributes:
        differences: the student's accuracy less the baseline's, for each class that has test
            images.
        intervals: what :func:`kdzoo.report.evidence.paired_interval` says of each: about these two
            networks, not about another seed.
        corrected_differences: the difference after each network's logit offsets: what is left of
            it when no class is answered too often or too seldom. Empty without validation images.
        confusions: the pairs of classes that the student confuses more often than the baseline,
            those with most added images first, up to thirty.
        harm: see :func:`kdzoo.report.evidence.expected_harm`; of these two networks.
        mcnemar: the p value of :func:`kdzoo.report.evidence.mcnemar`.
    """

    differences: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    corrected_differences: dict[str, float]
    confusions: tuple[Confusion, ...]
    harm: float
    mcnemar: float

    @classmethod
    def of(
        cls,
        student: tuple[Score, Ints],
        baseline: tuple[Score, Ints],
        targets: Ints,
        names: Sequence[str],
    ) -> Comparison:
        """Compare two networks.

        Args:
            student: the student's score, and its answers (N,).
            baseline: the baseline's.
            targets: (N,), the classes of the images.
            names: the C class names.
        """
        (score, answers), (other_score, others) = student, baseline
        right, others_right = answers == targets, others == targets
        gained, lost, images = (
            np.bincount(targets[rows], minlength=len(names)).astype(np.float64)
            for rows in (right & ~others_right, others_right & ~right, np.full_like(right, True))
        )
        known = np.flatnonzero(images)
        paired = gained[known], lost[known], images[known]
        low, high = paired_interval(*paired)
        return cls(
            differences=_less(score.classes, other_score.classes),
            intervals={
                names[c]: (_rounded(low[i]), _rounded(high[i])) for i, c in enumerate(known)
            },
            corrected_differences=_less(score.corrected, other_score.corrected),
            confusions=added_confusions(
                confusion_of(targets, answers, len(names)),
                confusion_of(targets, others, len(names)),
                names,
            ),
            harm=_rounded(
                expected_harm((paired[0] - paired[1]) / paired[2], paired_error(*paired))
            ),
            mcnemar=mcnemar(others_right, right),
        )


class BestValidation(Record):
    """The epoch with the best validation accuracy; chosen without a look at the test images.

    Attributes:
        epoch: which one.
        validation: the validation accuracy after it.
        test: the accuracy on the test images of the student as it was then.
    """

    epoch: int
    validation: float
    test: float


class Report(Record):
    """What came out of a run.

    Attributes:
        name: the run's name.
        epochs: how many epochs were trained.
        parameters: how many parameters the student has.
        teacher_parameters: how many the teacher has; ``None`` where there is none.
        data: a hash of all images and their labels.
        images: how many test images each class has, by name.
        student: the student after the last epoch.
        best_validation: the student at its best validation epoch; ``None`` without validation.
        teacher: the teacher; ``None`` where there is none.
        baseline: the same student trained without the teacher; ``None`` where there is none.
        comparison: the student beside the baseline; ``None`` where there is none.
        agreement: on how many test images student and teacher give the same answer; ``None``
            without a teacher.
        untaught: the classes that were *untaught* in the last epoch, whatever that left to them.
        teacher_weights: how much of the teacher's terms a class got in the last epoch, by name, of
            the classes where it is not 1.
        label_weights: the policy's factor on a class's label terms in the last epoch, by name, of
            the classes where it is not 1.
        directories: the directories of the teacher's and of the baseline's runs.
    """

    name: str
    epochs: int
    parameters: int
    teacher_parameters: int | None = None
    data: str
    images: dict[str, Annotated[int, Field(ge=1)]]
    student: Score
    best_validation: BestValidation | None = None
    teacher: Score | None = None
    baseline: Score | None = None
    comparison: Comparison | None = None
    agreement: float | None = None
    untaught: tuple[str, ...] = ()
    teacher_weights: dict[str, float] = {}
    label_weights: dict[str, float] = {}
    directories: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Report:
        """A finished run's report.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: is not there; the run is not finished") from error
        except (OSError, ValidationError) as error:
            raise CheckpointError(
                f"{path}: is damaged; remove it, and `kdzoo run` writes it again"
            ) from error

    @property
    def no_longer_taught(self) -> list[str]:
        """The classes that got nothing of the teacher's terms in the last epoch."""
        return [name for name, weight in self.teacher_weights.items() if weight == 0]

    @property
    def scores(self) -> dict[str, Score]:
        """The scores of ``teacher``, ``baseline`` and ``student``, in this order, of those that
        there are."""
        found = {"teacher": self.teacher, "baseline": self.baseline, "student": self.student}
        return {role: score for role, score in found.items() if score is not None}

    def against_baseline(self) -> tuple[int, int, int]:
        """How many classes are above, below and level with the baseline on the test images."""
        differences = self.comparison.differences.values() if self.comparison else ()
        above = sum(d > 0 for d in differences)
        below = sum(d < 0 for d in differences)
        return above, below, len(differences) - above - below


def summary_table(report: Report) -> Table:
    """The table that a run ends with."""
    table = plain_table("", "accuracy", "worst class")
    for role, score in report.scores.items():
        name = score.worst_class
        worst = f"{name}: {100 * score.classes[name]:.1f} %"
        table.add_row(role, f"{100 * score.accuracy:.2f} %", worst)
    return table


def summary_lines(report: Report) -> list[str]:
    """What is said below the table."""
    return ["Accuracies are on the test images, after the last epoch.", *notes(report)]


def notes(report: Report) -> list[str]:
    """What the table does not say, one sentence each."""
    lines = []
    if (note := teacher_note(report)) is not None:
        lines.append(note)
    if report.best_validation is not None:
        best = report.best_validation
        lines.append(
            f"Best validation epoch: {best.epoch} ({100 * best.validation:.2f} % there, "
            f"{100 * best.test:.2f} % on the test images)."
        )
    if report.agreement is not None:
        lines.append(
            f"Student and teacher give the same answer to {100 * report.agreement:.1f} % of the "
            "test images."
        )
    if report.comparison is not None:
        above, below, level = report.against_baseline()
        lines += [
            f"Against the baseline: {counted(above, 'class')} above, {below} below, {level} level. "
            "One seed: no verdict.",
            f"Expected harm: {100 * report.comparison.harm:.1f} points of accuracy, summed over "
            "classes.",
        ]
    if report.teacher is not None:
        lines.append(f"No longer taught: {', '.join(report.no_longer_taught) or 'none'}.")
    if lesser := {name: weight for name, weight in report.teacher_weights.items() if weight}:
        lines.append(weights_note("Teacher", lesser))
    if report.label_weights:
        lines.append(weights_note("Label", report.label_weights))
    student = report.student
    if untested := [name for name in student.predicted_share if name not in student.classes]:
        lines.append(f"Without test images, so that nothing is said of them: {few(untested)}.")
    return lines


def weights_note(
    whose: str, weights: Mapping[str, float], where: Mapping[str, str] | None = None
) -> str:
    """Which classes a policy gave more, or less, of some terms, the heaviest first; and in which
    runs, where that is to be said."""
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    said = [f"{name} ({weight:.3g}{(where or {}).get(name, '')})" for name, weight in ordered]
    return f"{whose} weights other than 1: {few(said)}."


def teacher_note(report: Report) -> str | None:
    """What to check where a teacher with loaded weights came out worse than the student; ``None``
    where it did not. Not every such teacher could be compared with anything before."""
    if report.teacher is None or "teacher" in report.directories:
        return None
    teacher, student = report.teacher.accuracy, report.student.accuracy
    if not is_worse(teacher, student, sum(report.images.values())):
        return None
    return (
        f"The loaded teacher is worse than the student: {100 * teacher:.2f} % of the test images "
        f"against {100 * student:.2f} %. If that is not meant, {WHAT_TO_CHECK}."
    )


def tenth_of(classes: int) -> int:
    """How many a tenth of the classes are: rounded up."""
    return math.ceil(classes / 10)


def _rounded(share: float | np.floating) -> float:
    return round(float(share), 6)


def _shares(part: Ints, whole: Ints, names: Sequence[str]) -> dict[str, float]:
    """By name, without those of which there is nothing."""
    return {
        name: _rounded(part[number] / whole[number])
        for number, name in enumerate(names)
        if whole[number]
    }


def added_confusions(counts: Ints, others: Ints, names: Sequence[str]) -> tuple[Confusion, ...]:
    """The pairs of classes that a student confuses more often than its baseline, those with most
    added images first, up to thirty.

    Args:
        counts: (C, C), how many images of each class (row) the student answers with each (column).
        others: (C, C), the same of the baseline.
        names: the C class names.
    """
    added = counts - others
    np.fill_diagonal(added, 0)
    order = np.argsort(-added, axis=None, kind="stable")[:_CONFUSIONS]
    return tuple(
        Confusion(
            of=names[row],
            answered=names[column],
            student=counts[row, column],
            baseline=others[row, column],
        )
        for row, column in (divmod(int(cell), len(names)) for cell in order)
        if added[row, column] > 0
    )


def _less(these: Mapping[str, float], those: Mapping[str, float]) -> dict[str, float]:
    return {name: _rounded(value - those[name]) for name, value in these.items() if name in those}
