"""report.json: a run's accuracies on the test images, beside its teacher's and its baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from kdzoo.errors import CheckpointError
from kdzoo.training.evaluate import Evaluation

__all__ = ["Report", "Score", "summary_lines", "summary_table"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class Score(_Record):
    """How one network does on the test images.

    Attributes:
        accuracy: the share of all test images that it classifies correctly.
        classes: the same for each class that has test images, by name.
    """

    accuracy: float
    classes: dict[str, float]

    @classmethod
    def of(cls, evaluation: Evaluation, classes: Sequence[str]) -> Score:
        """The score of an evaluation."""
        counts = zip(classes, evaluation.correct.tolist(), evaluation.total.tolist(), strict=True)
        return cls(
            accuracy=evaluation.accuracy,
            classes={name: right / total for name, right, total in counts if total},
        )

    @property
    def worst(self) -> tuple[str, float]:
        """The name and the accuracy of the class that does worst."""
        return min(self.classes.items(), key=lambda item: item[1])


class BestValidation(_Record):
    """The epoch with the best validation accuracy; chosen without a look at the test images.

    Attributes:
        epoch: which one.
        validation: the validation accuracy after it.
        test: the score of the student as it was then.
    """

    epoch: int
    validation: float
    test: Score


class Report(_Record):
    """What came out of a run.

    Attributes:
        name: the run's name.
        epochs: how many epochs were trained.
        parameters: how many parameters the student has.
        student: the student after the last epoch.
        best_validation: the student at its best validation epoch; ``None`` without validation.
        teacher: the teacher; ``None`` where there is none.
        baseline: the same student trained without the teacher; ``None`` where there is none.
        untaught: the classes that the policy no longer taught in the last epoch.
        directories: the directories of the teacher's and of the baseline's runs.
    """

    name: str
    epochs: int
    parameters: int
    student: Score
    best_validation: BestValidation | None = None
    teacher: Score | None = None
    baseline: Score | None = None
    untaught: tuple[str, ...] = ()
    directories: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Report:
        """A finished run's report.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise CheckpointError(
                f"{path}: is damaged; repeat the run with --fresh, or remove its directory"
            ) from error

    def against_baseline(self) -> tuple[int, int, int]:
        """How many classes are above, below and level with the baseline on the test images."""
        if self.baseline is None:
            return 0, 0, 0
        differences = [
            accuracy - self.baseline.classes[name]
            for name, accuracy in self.student.classes.items()
        ]
        above = sum(d > 0 for d in differences)
        below = sum(d < 0 for d in differences)
        return above, below, len(differences) - above - below


def summary_table(report: Report) -> Table:
    """The table that a run ends with."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("worst class", justify="right")
    rows = (("teacher", report.teacher), ("baseline", report.baseline), ("student", report.student))
    for role, score in rows:
        if score is not None:
            name, accuracy = score.worst
            table.add_row(role, f"{100 * score.accuracy:.2f} %", f"{name}: {100 * accuracy:.1f} %")
    return table


def summary_lines(report: Report) -> list[str]:
    """What is said below the table."""
    lines = ["Accuracies are on the test images, after the last epoch."]
    if report.best_validation is not None:
        best = report.best_validation
        lines.append(
            f"Best validation epoch: {best.epoch} ({100 * best.validation:.2f} % there, "
            f"{100 * best.test.accuracy:.2f} % on the test images)."
        )
    if report.baseline is not None:
        above, below, level = report.against_baseline()
        lines.append(
            f"Against the baseline: {above} classes above, {below} below, {level} level. "
            "One seed: no verdict."
        )
    if report.teacher is not None:
        lines.append(f"No longer taught: {', '.join(report.untaught) or 'none'}.")
    return lines
