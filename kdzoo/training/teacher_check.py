"""Is the teacher even loaded right? It is measured before anybody learns from it."""

from __future__ import annotations

import logging

import torch
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


def measure_teacher(teacher: nn.Module, split: Split, which: str, num_classes: int) -> float:
    """The accuracy of a loaded teacher on some images, said aloud.

    Args:
        teacher: images to logits (B, C).
        split: what it is measured on.
        which: the name of these images.
        num_classes: C.

    Raises:
        CheckpointError: it knows no more than chance, or answers no numbers.
    """
    accuracy = evaluate(teacher, split, num_classes).accuracy
    log.info("teacher: loaded; %.2f %% of the %s images are right", 100 * accuracy, which)
    chance = 1 / num_classes
    if accuracy <= chance + 2 * (chance * (1 - chance) / len(split)) ** 0.5:
        if not _finite(teacher, split):
            raise CheckpointError(
                f"the teacher answers NaN or infinity to {which} images: its weights are damaged, "
                "or of something else than they are loaded into"
            )
        raise CheckpointError(
            f"the teacher gets {100 * accuracy:.2f} % of the {which} images right, and chance "
            f"is {100 * chance:.2f} %: {_WHAT_TO_CHECK}"
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


@torch.no_grad()
def _finite(teacher: nn.Module, split: Split) -> bool:
    return all(bool(teacher(view.inputs).isfinite().all()) for view in split.plain())
