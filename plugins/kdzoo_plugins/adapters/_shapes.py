"""What the adapters ask of shapes, and how they say no."""

from __future__ import annotations

from typing import NoReturn

import kdzoo

__all__ = ["Shape", "misfit", "need_maps"]

Shape = tuple[int, ...]


def need_maps(student: Shape, teacher: Shape) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Both shapes as (channels, height, width).

    Raises:
        SpecError: one is not of a map.
    """
    if len(student) != 3 or len(teacher) != 3:
        misfit(
            student, teacher, 'works on maps (channels, height, width); use "linear" or "tokens"'
        )
    return (student[0], student[1], student[2]), (teacher[0], teacher[1], teacher[2])


def misfit(student: Shape, teacher: Shape, reason: str) -> NoReturn:
    """Refuse a pair of shapes."""
    raise kdzoo.SpecError(f"cannot bring {student} into the shape {teacher}: it {reason}")
