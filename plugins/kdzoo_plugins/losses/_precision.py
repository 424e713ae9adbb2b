"""What losses on logits share: their precision, and the columns that a class policy takes out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import kdzoo

__all__ = [
    "at_least_single",
    "at_temperature",
    "refuse_other_logits",
    "refuse_unlike",
    "with_columns",
]

_GONE = -1e4  # beside other logits a probability of 0, and finite: there is no NaN in a difference


def at_least_single(values: Tensor) -> Tensor:
    """Half precision and bfloat16 become float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) over T, in single precision at least.

    Raises:
        ValueError: T is not finite and above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is {temperature}; it must be finite and above 0")
    return at_least_single(logits) / temperature


def with_columns(logits: Tensor, batch: kdzoo.Batch, temperature: float) -> Tensor:
    """Logits (B, C) whose softmax at a temperature has each class's probability times its
    ``batch.columns``, renormalized; a sample's own class is left whole."""
    if batch.columns is None:
        return logits
    values = at_least_single(logits)
    moved = batch.columns.to(values.dtype).log().clamp_min(_GONE) * temperature
    own = torch.nn.functional.one_hot(batch.targets, values.shape[1]).bool()
    return values + torch.where(own, 0.0, moved)


def refuse_unlike(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError where two tensors have not one shape: torch would stretch the smaller."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; "
            "they must have one shape"
        )


def refuse_other_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError where two tensors are not both (B, C)."""
    refuse_unlike(student, teacher)
    if student.ndim != 2:
        raise ValueError(f"the logits are {tuple(student.shape)}; they must be (B, C)")
