"""A YAML mapping that remembers where each key stands, so that errors can name the line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kdzoo.errors import SpecError, did_you_mean

__all__ = ["Document", "KeyPath"]

KeyPath = tuple[str | int, ...]

_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


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
        except OSError as error:
            raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
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
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SpecError(f'--set {assignment}: write KEY=VALUE, as in "train.epochs=5"')
        origin = f"--set {assignment}"
        parts = key.split(".")
        parent: Any = self.data
        path: list[str | int] = []
        for index, part in enumerate(parts):
            step = self._step(parent, part, origin, path)
            path.append(step)
            if index == len(parts) - 1:
                parent[step] = _scalar(text, origin)
            else:
                child = parent.get(step) if isinstance(parent, dict) else parent[step]
                if child is None:
                    child = {}
                elif isinstance(child, str):
                    child = {"use": child}
                parent[step] = child
                parent = child
        self._origins[tuple(path)] = origin

    def error(self, path: KeyPath, message: str) -> str:
        """One line: where, which key, what is wrong with it."""
        for end in range(len(path), -1, -1):
            origin = self._origins.get(path[:end])
            if origin is not None:
                break
        else:
            origin = self.name
        keys = self._readable(path)
        return f"{origin}: {keys}: {message}" if keys else f"{origin}: {message}"

    def _step(self, parent: Any, part: str, origin: str, path: list[str | int]) -> str | int:
        if isinstance(parent, dict):
            return part
        if isinstance(parent, list):
            names = [_entry_name(entry) for entry in parent]
            if part in names:
                index = names.index(part)
                if isinstance(parent[index], str):
                    parent[index] = {"use": part}
                return index
            here = ".".join(str(p) for p in path)
            raise SpecError(
                f'{origin}: {here} has no entry "{part}"'
                f"{did_you_mean(part, [n for n in names if n])}"
            )
        here = ".".join(str(p) for p in path)
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
        parents = (*parents, id(node))
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
        # A date stays the text it is; any other tag (!!python/object) is refused.
        if str(node.tag) not in _SCALARS:
            if str(node.tag) != "tag:yaml.org,2002:timestamp":
                raise SpecError(f"{line}: the tag {node.tag} has no meaning in a spec")
            return node.value
        return yaml.constructor.construct_object(node, deep=True)


def _scalar(text: str, origin: str) -> Any:
    document = Document(origin, Path(), {})
    document._parse(f"value: {text}" if text.strip() else "value: ''")
    return document.data["value"]


def _entry_name(entry: Any) -> str | None:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, dict):
        return entry.get("id") or entry.get("use")
    return None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_copied(item) for item in value]
    return value
