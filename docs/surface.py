"""Lists what kdzoo promises to plugins and programs: its public names, with their signatures.

``python docs/surface.py`` writes the list to surface.txt beside it. That is done by hand, when a
change is meant; a test fails where the list is not what it would be.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kdzoo
import kdzoo.testing
from kdzoo.extend.describe import signature
from kdzoo.extend.hookspecs import HOOKS, Hooks

FILE = Path(__file__).with_name("surface.txt")
_SHOWN = ("__init__", "__call__")


def surface() -> str:
    """The whole list."""
    lines = [f"hook {name}{_signature(getattr(Hooks, name))}" for name in HOOKS]
    for module in (kdzoo, kdzoo.testing):
        for name in sorted(module.__all__):
            lines += ["", *_described(module, name)]
    return "\n".join([*lines, ""])


def _described(module: ModuleType, name: str) -> Iterator[str]:
    full, value = f"{module.__name__}.{name}", getattr(module, name)
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"class {full}({bases})"
        members = {name: said for owner in _ours(value) for name, said in _members(owner)}
        for member, said in sorted(members.items()):
            yield f"    {member}{said}"
    elif inspect.isfunction(value) and value.__module__.startswith("kdzoo."):
        yield f"{full}{_signature(value)}"
    elif isinstance(value, int):
        yield f"{full} = {value}"
    else:  # somebody else's, who says what it takes
        home = value if inspect.isfunction(value) else type(value)
        yield f"{full}: {home.__name__} of {home.__module__.partition('.')[0]}"


def _ours(cls: type) -> list[type]:
    """The class and its bases, as far as they are kdzoo's; the bases first."""
    return [owner for owner in cls.__mro__[::-1] if owner.__module__.startswith("kdzoo.")]


def _members(owner: type) -> Iterator[tuple[str, str]]:
    """The names of what is public in a class itself, and what follows them in the list."""
    for name, annotation in vars(owner).get("__annotations__", {}).items():
        if not name.startswith("_"):
            yield name, f": {annotation}".replace("'", '"')
    annotated = {name for base in owner.__mro__ for name in vars(base).get("__annotations__", ())}
    for name, value in vars(owner).items():
        made = name == "__init__" and hasattr(owner, "__pydantic_fields__")  # from the fields
        if name in annotated or made or (name.startswith("_") and name not in _SHOWN):
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(value, property):
            yield name, f"{_signature(value.fget)} (a property)"
        elif inspect.isfunction(function):
            required = getattr(function, "__isabstractmethod__", False)
            yield name, _signature(function) + " (required)" * required
        elif not inspect.isclass(value):
            yield name, f": {type(value).__name__}"


def _signature(function: Any) -> str:
    return str(signature(function))


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
    print(f"wrote {FILE}")
