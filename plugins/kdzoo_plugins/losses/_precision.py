"""Losses are computed in single precision at least, whatever the networks run in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single", "at_temperature", "refuse_unlike"]


def at_least_single(values: Tensor) -> Tensor:
    """Half precision and bfloat16 become float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) over T, in single precision at least.

    Raises:
        ValueError: T is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be above 0")
    return at_least_single(logits) / temperature


def refuse_unlike(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError where two tensors have not one shape: torch would stretch the smaller."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; "
            "they must have one shape"
        )
