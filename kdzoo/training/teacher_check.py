"""Is the teacher even loaded right? It is measured before anybody learns from it."""

from __future__ import annotations

import logging

from torch import nn

from kdzoo.data.images import Split
from kdzoo.errors import CheckpointError
from kdzoo.training.evaluate import evaluate

__all__ = ["measure_teacher", "refuse_worse_teacher"]

log = logging.getLogger("kdzoo")

_WHAT_TO_CHECK = (
    "check that its weights are of this data set, the number and the order of the classes, and the "
    "input normalization that it was trained with (`normalize`); `check: false` lets it pass"
)


def measure_teacher(
    teacher: nn.Module, split: Split, which: str, num_classes: int, name: str
) -> float:
    """The accuracy of a loaded teacher on some images, said aloud.

    Args:
        teacher: images to logits (B, C).
        split: what it is measured on.
        which: the name of these images.
        num_classes: C.
        name: of the teacher, for errors: with the file that it came from.

    Raises:
        CheckpointError: it knows no more than chance, or answers no numbers.
    """
    evaluation = evaluate(teacher, split, num_classes)
    if not evaluation.finite:
        raise CheckpointError(
            f"{name} answers NaN or infinity to {which} images: its weights are damaged, or of "
            "something else than they are loaded into"
        )
    accuracy = evaluation.accuracy
    log.info("teacher: loaded; %.2f %% of the %s images are right", 100 * accuracy, which)
    # Class by class, where one answer to everything is at chance although most images are of it.
    images = evaluation.images[evaluation.images > 0]
    balanced, chance = evaluation.balanced_accuracy, 1 / num_classes
    error = float((chance * (1 - chance) / images).sum() ** 0.5) / len(images)
    if balanced <= chance + 2 * error:
        raise CheckpointError(
            f"{name} gets {100 * balanced:.2f} % of a class's {which} images right, on average "
            f"over classes, and chance is {100 * chance:.2f} %: {_WHAT_TO_CHECK}"
        )
    return accuracy


def refuse_worse_teacher(
    accuracy: float, student: nn.Module, split: Split, which: str, num_classes: int
) -> None:
    """Hold a loaded teacher against a student that has not learnt from it.

    Raises:
        CheckpointError: the student is better, by more than two standard errors.
    """
    students = evaluate(student, split, num_classes).accuracy
    errors = (accuracy * (1 - accuracy) + students * (1 - students)) / len(split)
    if students - accuracy > 2 * errors**0.5:
        raise CheckpointError(
            f"the teacher gets {100 * accuracy:.2f} % of the {which} images right, and the student "
            f"gets {100 * students:.2f} % without it: {_WHAT_TO_CHECK}"
        )
