"""What the arguments of another library's classes must be, as far as plain annotations say it."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["expected"]


def expected(value: Any, parameter: inspect.Parameter) -> str | None:
    """What an argument must be, in words, if a value out of a spec is something else.

    Where an annotation says more than plain types, nothing is known, and nothing is refused.
    """
    annotation = inspect.formatannotation(parameter.annotation).strip("'")
    parts = {part.strip() for part in annotation.split("|")} - {"Tensor", "torch.Tensor"}
    if not parts <= _WORDS.keys() or any(_fits(value, part) for part in parts):
        return None
    return " or ".join(_WORDS[part] for part in _WORDS if part in parts)


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "Iterable[int]": "a list of whole numbers from 1 on",  # epochs: torch takes any, in silence
    "None": "null",
}


def _fits(value: Any, part: str) -> bool:
    if part == "Iterable[int]":
        listed = isinstance(value, list | tuple)
        return listed and all(_fits(item, "int") and item >= 1 for item in value)
    if isinstance(value, bool):
        return part == "bool"
    types: dict[str, Any] = {"int": int, "float": int | float, "str": str, "None": type(None)}
    return part in types and isinstance(value, types[part])
