"""Is the teacher even loaded right? It is measured before anybody learns from it."""

from __future__ import annotations

import logging
import math

from torch import nn

from kdzoo.data.images import Split
from kdzoo.errors import CheckpointError
from kdzoo.training.evaluate import evaluate

__all__ = ["WHAT_TO_CHECK", "is_worse", "measure_teacher", "refuse_worse_teacher"]

log = logging.getLogger("kdzoo")

WHAT_TO_CHECK = (
    "check that its weights are of this data set, the number and the order of the classes, and the "
    "input normalization that it was trained with (`normalize`)"
)
_OR_PASS = "; `check: false` lets it pass"


def measure_teacher(
    teacher: nn.Module,
    split: Split,
    which: str,
    num_classes: int,
    name: str,
    *,
    check: bool = True,
) -> float:
    """The accuracy of a loaded teacher on some images, said aloud.

    Args:
        teacher: images to logits (B, C).
        split: what it is measured on.
        which: the name of these images.
        num_classes: C.
        name: of the teacher, for errors: with the file that it came from.
        check: whether it may be refused.

    Raises:
        CheckpointError: it knows no more than chance, or answers no numbers.
    """
    evaluation = evaluate(teacher, split, num_classes)
    if check and not evaluation.finite:
        raise CheckpointError(
            f"{name} answers NaN or infinity to {which} images: its weights are damaged, or of "
            "something else than they are loaded into"
        )
    accuracy = evaluation.accuracy
    log.info(
        "teacher: loaded; %.2f %% of %d %s images are right", 100 * accuracy, len(split), which
    )
    if not check:
        return accuracy
    # Class by class, where one answer to everything is at chance although most images are of it.
    images = evaluation.images[evaluation.images > 0]
    balanced, chance = evaluation.balanced_accuracy, 1 / num_classes
    error = float((chance * (1 - chance) / images).sum() ** 0.5) / len(images)
    if balanced <= chance + 2 * error:
        raise CheckpointError(
            f"{name} gets {100 * balanced:.2f} % of a class's {which} images right, on average "
            f"over classes, and chance is {100 * chance:.2f} %: {WHAT_TO_CHECK}{_OR_PASS}"
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
    if is_worse(accuracy, students, len(split)):
        raise CheckpointError(
            f"the teacher gets {100 * accuracy:.2f} % of the {which} images right, and the student "
            f"gets {100 * students:.2f} % without it: {WHAT_TO_CHECK}{_OR_PASS}"
        )


def is_worse(teacher: float, student: float, images: int) -> bool:
    """Whether a teacher's accuracy is below a student's by more than two standard errors."""
    variance = (teacher * (1 - teacher) + student * (1 - student)) / images
    return student - teacher > 2 * math.sqrt(variance)
