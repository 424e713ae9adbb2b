"""What a study ends with: one setting, on the images that chose it and on those that test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from kdzoo.report.summary import Report
from kdzoo.tuning.trials import number, on_front
from kdzoo.words import counted

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """The best trial's setting, measured twice.

    Attributes:
        trial: the number of the best trial.
        why: what makes it the best one, in words.
        again: whether its setting was trained again, on all training images, before it was tested.
        validation: what the trial reached on the validation images, by objective.
        test: the same on the test images, and the accuracy there; means over the seeds.
    """

    trial: int
    why: str
    again: bool
    validation: dict[str, float]
    test: dict[str, float]

    @classmethod
    def of(
        cls, study: Study, best: FrozenTrial, reports: Sequence[Report], *, again: bool
    ) -> Outcome:
        """The outcome of a study.

        Args:
            study: Optuna's.
            best: its best trial.
            reports: of the runs with its setting, one for each seed.
            again: see :attr:`again`.
        """
        objective: list[str] = study.user_attrs["objective"]
        tested = [_tested(report) for report in reports]
        names = dict.fromkeys(["accuracy", *objective])
        why = "the best one"
        if len(objective) > 1:
            front = counted(len(on_front(study)), "trial")
            why = f"the best in {objective[0]} of the {front} on the Pareto front"
        return cls(
            trial=best.number,
            why=why,
            again=again,
            validation=dict(zip(objective, best.values, strict=True)),
            test={name: float(np.mean([values[name] for values in tested])) for name in names},
        )

    @property
    def said(self) -> str:
        """Which trial's setting was tested, and whether it was trained again."""
        did = (
            "was trained again on all training images, and only then tested"
            if self.again
            else "was tested as it is; its policy reads validation images, so there are no others "
            "to train with"
        )
        return f"Trial {self.trial}, {self.why}, {did}"

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """What was measured, on the validation images, and on the test images: as it is shown."""
        return [
            (
                name,
                number(name, self.validation[name]) if name in self.validation else "",
                number(name, value),
            )
            for name, value in self.test.items()
        ]


def _tested(report: Report) -> dict[str, float]:
    """A run's test in the words of the objectives."""
    student = report.student
    values = {
        "accuracy": student.accuracy,
        "worst_class": student.classes[student.worst_class],
        "worst_tenth": student.worst_tenth,
    }
    if report.comparison is not None:
        values["harm"] = report.comparison.harm
        values["hurt_classes"] = float(report.against_baseline()[1])
    return values
