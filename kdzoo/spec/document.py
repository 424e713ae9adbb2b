"""A YAML mapping that remembers where each key stands, so that errors can name the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kdzoo.errors import SpecError, did_you_mean

__all__ = ["Document", "KeyPath"]

KeyPath = tuple[str | int, ...]

_DEPTH = 20
_OVERRIDE = "--set "
_DATE = "tag:yaml.org,2002:timestamp"  # stays the text it is
_PLAIN = {
    _DATE,
    *(f"tag:yaml.org,2002:{n}" for n in ("map", "seq", "null", "bool", "int", "float", "str")),
}


class Document:
    """Plain data (dicts, lists, scalars) and the origin of each of its keys.

    Attributes:
        name: what errors call the document: the file's name, or "spec".
        directory: what relative paths in it are relative to.
        data: the mapping at the top.
    """

    def __init__(self, name: str, directory: Path, data: dict[str, Any]) -> None:
        self.name = name
        self.directory = directory
        self.data = data
        self._origins: dict[KeyPath, str] = {}

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a YAML 1.2 file. Nothing in it is imported or evaluated."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SpecError(f"{path}: cannot be read: {reason}") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{path}: is not UTF-8 text, so it is no YAML file") from error
        document = cls(path.name, path.parent, {})
        document._parse(text)
        return document

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Document:
        """A document made in Python."""
        return cls("spec", Path.cwd(), _copied(dict(data)))

    def set(self, assignment: str) -> None:
        """Apply one ``key.path=value``; the value is read as YAML.

        A list's entries are named by their ``id``, or else by what they ``use``.
        """
        origin = f"{_OVERRIDE}{assignment}"
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SpecError(f'{origin}: write KEY=VALUE, as in "train.epochs=5"')
        self.put(key, _scalar(text, origin), origin)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set what ``key.path`` names; errors about it will say ``origin``."""
        parts = key.split(".")
        parent: Any = self.data
        path: list[str | int] = []
        for index, part in enumerate(parts):
            parent, step = self._step(parent, part, origin, path)
            if index == len(parts) - 1:
                parent[step] = _copied(value)
            else:
                child = parent.get(step) if isinstance(parent, dict) else parent[step]
                parent[step] = child = {} if child is None else child
                parent = child
        # The line of what was replaced, and of all that was in it, says nothing any more.
        kept = {k: o for k, o in self._origins.items() if k[: len(path)] != tuple(path)}
        self._origins = kept
        for end in range(1, len(path) + 1):
            self._origins.setdefault(tuple(path[:end]), origin)

    def graft(self, key: str, other: Document) -> None:
        """Put another document's content at a key; errors about it will name its lines."""
        self.data[key] = _copied(other.data)
        self._origins |= {(key, *path): origin for path, origin in other._origins.items()}

    def copy(self) -> Document:
        """Another document with the same content."""
        other = Document(self.name, self.directory, _copied(self.data))
        other._origins = dict(self._origins)
        return other

    def origin(self, path: KeyPath) -> str:
        """Where a key stands, or else the nearest key around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self._origins:
                return self._origins[path[:end]]
        return self.name

    def overridden(self, key: str) -> str | None:
        """The override that has set what ``key.path`` names, all of it or a part; ``None`` where
        it is not there, or stands as it stood in the file."""
        here: Any = self.data
        path: list[str | int] = []
        for part in key.split("."):
            try:
                here, step = self._step(here, part, "", path)
                here = here[step]
            except (SpecError, KeyError):
                return None
        inside = [o for p, o in self._origins.items() if p[: len(path)] == tuple(path)]
        said = (o for o in (self.origin(tuple(path)), *inside) if o.startswith(_OVERRIDE))
        return next(said, None)

    def error(self, path: KeyPath, message: str, key: str | None = None) -> str:
        """One line: where, which key, what is wrong with it.

        Args:
            path: the path of what is wrong.
            message: what is wrong.
            key: point to the line of this key in it.
        """
        origin = self.origin(path if key is None else (*path, key))
        keys = self._readable(path)
        return f"{origin}: {keys}: {message}" if keys else f"{origin}: {message}"

    def _step(
        self, parent: Any, part: str, origin: str, path: list[str | int]
    ) -> tuple[Any, str | int]:
        """Where a part of a key is looked up, and what it is there; ``path`` grows by it."""
        if _only_nameless(parent) and not part.isdecimal():
            path.append(0)  # a list of one that was written without the list
            (parent,) = parent
        if isinstance(parent, dict):
            path.append(part)
            return parent, part
        if isinstance(parent, list):
            names = [_entry_name(entry) for entry in parent]
            number = names.index(part) if part in names else None
            if number is None and part.isdecimal() and int(part) < len(parent):
                number = int(part)
            if number is not None:
                path.append(number)
                return parent, number
            here = self._readable(tuple(path))
            raise SpecError(
                f'{origin}: {here} has no entry "{part}"'
                f"{did_you_mean(part, [n for n in names if n])}"
            )
        here = self._readable(tuple(path))
        raise SpecError(f"{origin}: {here} is {parent!r}, which has no keys")

    def _readable(self, path: KeyPath) -> str:
        words: list[str] = []
        here: Any = self.data
        for part in path:
            try:
                here = here[part]
            except (KeyError, IndexError, TypeError):
                here = None
            words.append(str((isinstance(part, int) and _entry_name(here)) or part))
        return ".".join(words)

    def _parse(self, text: str) -> None:
        yaml = YAML(typ="safe", pure=True)
        try:
            node = yaml.compose(text)
        except RecursionError:
            raise SpecError(f"{self.name}: is nested too deeply") from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise SpecError(f"{self.name}{line}: is not YAML: {error.problem}") from error
        except YAMLError as error:
            raise SpecError(f"{self.name}: is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(node, MappingNode):
            raise SpecError(
                f"{self.name}: is no spec; a spec is a mapping of keys (name, data, ...)"
            )
        self.data = self._plain(yaml, node, (), ())

    def _plain(self, yaml: YAML, node: Node, path: KeyPath, parents: tuple[int, ...]) -> Any:
        line = f"{self.name}:{node.start_mark.line + 1}"
        self._origins.setdefault(path, line)
        if id(node) in parents:
            raise SpecError(f"{line}: refers to itself")
        if len(parents) > _DEPTH:
            raise SpecError(f"{line}: is nested too deeply")
        parents = (*parents, id(node))
        if str(node.tag) not in _PLAIN:
            raise SpecError(f"{line}: the tag {node.tag} has no meaning in a spec")
        if isinstance(node, MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = f"{self.name}:{key_node.start_mark.line + 1}"
                key = key_node.value
                if not isinstance(key_node, ScalarNode):
                    raise SpecError(f"{line}: a key must be a plain word")
                if key in mapping:
                    raise SpecError(f'{line}: the key "{key}" stands here for the second time')
                here = (*path, key)
                self._origins[here] = line
                mapping[key] = self._plain(yaml, value_node, here, parents)
            return mapping
        if isinstance(node, SequenceNode):
            return [
                self._plain(yaml, item, (*path, i), parents) for i, item in enumerate(node.value)
            ]
        if str(node.tag) == _DATE:
            return node.value
        try:
            value = yaml.constructor.construct_object(node, deep=True)
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, TypeError) as error:
            raise SpecError(f"{line}: {node.value[:40]!r} cannot be read: {error}") from error
        return value


def _scalar(text: str, origin: str) -> Any:
    document = Document(origin, Path(), {})
    document._parse(f"value: {text}" if text.strip() else "value: ''")
    if len(document.data) > 1:
        raise SpecError(f"{origin}: is more than one value")
    return document.data["value"]


def _only_nameless(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and _entry_name(value[0]) is None
    )


def _entry_name(entry: Any) -> str | None:
    if isinstance(entry, dict):
        name = entry.get("id") or entry.get("use")
        return name if isinstance(name, str) else None
    return None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_copied(item) for item in value]
    return value
