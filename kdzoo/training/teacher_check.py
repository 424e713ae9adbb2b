"""Is the teacher even loaded right? It is measured before anybody learns from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from kdzoo.data.images import Split
from kdzoo.errors import CheckpointError
from kdzoo.training.evaluate import Ints, evaluate
from kdzoo.words import few

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
    classes: Sequence[str],
    name: str,
    *,
    check: bool = True,
) -> float:
    """The accuracy of a loaded teacher on some images, said aloud.

    Args:
        teacher: images to logits (B, C).
        split: what it is measured on.
        which: the name of these images.
        classes: the C class names.
        name: of the teacher, for errors: with the file that it came from.
        check: whether it may be refused.

    Raises:
        CheckpointError: it knows no more than chance, or answers no numbers.
    """
    evaluation = evaluate(teacher, split, len(classes))
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
    balanced, chance = evaluation.balanced_accuracy, 1 / len(classes)
    error = float((chance * (1 - chance) / images).sum() ** 0.5) / len(images)
    if balanced <= chance + 2 * error:
        raise CheckpointError(
            f"{name} gets {100 * balanced:.2f} % of a class's {which} images right, on average "
            f"over classes, and chance is {100 * chance:.2f} %: {WHAT_TO_CHECK}{_OR_PASS}"
        )
    if exchanged := _exchanged(evaluation.confusion):
        said = few([f'"{classes[label]}" for "{classes[other]}"' for label, other in exchanged])
        log.warning(
            "teacher: it takes most images of some classes for others, in a ring (%s): are its "
            "classes in another order?",
            said,
        )
    return accuracy


def _exchanged(confusion: Ints) -> list[tuple[int, int]]:
    """Classes, and which class most of their images are taken for, where these lead round in a
    ring: also a weak teacher has classes that attract others, but of these it knows its own."""
    mostly = confusion.argmax(1)
    wrong = (2 * confusion.max(1) > confusion.sum(1)) & (mostly != np.arange(len(mostly)))

    def in_ring(label: int) -> bool:
        other = mostly[label]
        for _ in range(len(mostly)):
            if other == label or not wrong[other]:
                break
            other = mostly[other]
        return bool(other == label)

    return [(label, int(mostly[label])) for label in np.flatnonzero(wrong) if in_ring(label)]


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
