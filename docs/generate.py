"""Writes into the pages what the code says already: hooks, contracts, the spec's keys, components,
commands.

A page has a pair of comments, ``<!-- generated: contract Loss -->`` and ``<!-- /generated -->``;
between them stands what this program writes. The pages are kept as written, so that they can be
read without being built, and a change of a contract shows in a diff. ``python docs/generate.py``
renews them; a test fails where one is not what it would be.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plots import bars
from pydantic import BaseModel
from typer.main import get_command

import kdzoo
from kdzoo import errors
from kdzoo.cli import app
from kdzoo.extend.component import Component
from kdzoo.extend.describe import (
    loss_defaults,
    model_layers,
    prose,
    shown_value,
    signature,
    type_words,
)
from kdzoo.extend.hookspecs import HOOKS, Hooks
from kdzoo.extend.registry import registry
from kdzoo.spec import models
from kdzoo.spec.expand import STUDY_KEYS
from kdzoo.spec.tuning import Tune

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
_BLOCK = re.compile(
    r"(<!-- generated: (\w+)(?: ([\w ]+))? -->\n).*?(<!-- /generated -->)", re.DOTALL
)
# What the columns of ratios and shares say; `benchmarks/` names them.
_RATIOS = (" / ", "of the first", "of importing", "of the limit", "of it waiting")
_SECTIONS = ("Args", "Attributes", "Raises", "Returns")
_Schema = dict[str, Any]


def renewed(page: str) -> str:
    """A page's text with everything generated in it as the code is now."""

    def block(found: re.Match[str]) -> str:
        start, what, name, end = found.groups()
        return f"{start}\n{_WRITERS[what](name).strip()}\n\n{end}"

    return _BLOCK.sub(block, page)


def hook(name: str) -> str:
    """A hook's exact signature, as a plugin writes it."""
    (base,) = (base for hook, base in HOOKS.items() if hook == name)
    answer = str(inspect.signature(getattr(Hooks, name)).return_annotation)
    assert answer == f"list[type[{base.__name__}]]"
    return (
        f"```python\n@kdzoo.hookimpl\ndef {name}() -> list[type[kdzoo.{base.__name__}]]: ...\n```"
    )


def contract(name: str) -> str:
    """A public class: what it is, its attributes, its methods with their signatures."""
    cls = getattr(kdzoo, name)
    parts = [f"### `kdzoo.{name}`", _prose(cls)]
    if issubclass(cls, Component):
        parts.append(_reserved(cls))
    made = "__init__" in vars(cls) and not issubclass(cls, Component)
    if made:
        parts.insert(1, f"```python\n{name}{_signature(cls)}\n```")
    elif attributes := list(_attributes(cls)):
        parts.append("```python\n" + "\n".join(attributes) + "\n```")
    for method, value in vars(cls).items():
        if method.startswith("_"):
            continue
        if isinstance(value, property):
            answer = signature(value.fget).return_annotation
            parts += [f"#### `{method}`", f"```python\n{method}: {answer}\n```", _prose(value)]
        if not inspect.isroutine(value):
            continue
        function = value.__func__ if isinstance(value, classmethod) else value
        abstract = getattr(function, "__isabstractmethod__", False)
        parts += [
            f"#### `{method}`" + (" (required)" if abstract else ""),
            f"```python\ndef {method}{_signature(function)}\n```",
            _prose(function),
        ]
    return "\n\n".join(parts)


def api(names: str) -> str:
    """Public classes and functions, one after the other."""
    parts: list[str] = []
    for name in names.split():
        value = getattr(kdzoo, name)
        if inspect.isclass(value):
            parts.append(contract(name))
        else:
            parts.append(f"### `kdzoo.{name}`\n\n```python\n{name}{_signature(value)}\n```")
            parts.append(_prose(value))
    return "\n\n".join(parts)


def exceptions(_: None) -> str:
    """What kdzoo raises on purpose."""
    rows = ["| exception | is a | when |", "|---|---|---|"]
    for name in errors.__all__:
        if inspect.isclass(cls := getattr(errors, name)):
            rows.append(f"| `{name}` | `{cls.__base__.__name__}` | {prose(cls)} |")
    return "\n".join(rows)


def commands(_: None) -> str:
    """All commands, with what their help says."""
    return "\n\n".join(_command("kdzoo", get_command(app)))


def _command(path: str, command: Any) -> Iterator[str]:
    places = [parameter for parameter in command.params if parameter.opts[0][0] != "-"]
    words = [_place(place) if place.required else f"[{_place(place)}]" for place in places]
    yield f"### `{' '.join([path, *words])}`"
    yield command.help
    rows = ["| | |", "|---|---|"]
    for parameter in command.params:
        said = _place(parameter)
        if parameter not in places:
            said = ", ".join(parameter.opts) + (f" {said}" if not parameter.is_flag else "")
        default = parameter.default
        more = "" if default in (None, False, ()) else f" By default {default}."
        if getattr(parameter, "multiple", False):
            more += " It may be repeated."
        rows.append(f"| `{said}` | {parameter.help}{more} |")
    yield "\n".join(rows)
    for name, part in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", part)


def _place(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def spec(_: None) -> str:
    """All keys of a spec, a table for each class of entry."""
    study = _table({"properties": STUDY_KEYS}, {})
    parts = [
        "### Several runs",
        "Beside the keys of one run, in a file that stands for several.",
        study,
    ]
    for title, model in _SPEC_MODELS.items():
        schema = model.model_json_schema()
        parts += [f"### {title}", _prose(model), _table(schema, schema.get("$defs", {}))]
    return "\n\n".join(parts)


def components(kind: str) -> str:
    """What is bundled of a kind: what it is, what it does by default, its parameters."""
    parts: list[str] = []
    for name in registry().names(kind):
        cls = registry().find(kind, name)
        if not cls.__module__.startswith("kdzoo_plugins."):
            continue  # installed here, but not ours
        parts += [f"### `{name}`", _prose(cls)]
        if issubclass(cls, kdzoo.Loss):
            parts.append(loss_defaults(cls))
        schema = cls.Params.model_json_schema()
        if issubclass(cls, kdzoo.ModelSource):
            parts.append(model_layers(cls))
        if issubclass(cls, kdzoo.ClassPolicy) and name != "tllm":
            same = _taken_out(schema, registry().find(kind, "tllm").Params.model_json_schema())
            if same:
                parts.append(f"As [`tllm`](#tllm): {', '.join(f'`{key}`' for key in same)}.")
        if schema["properties"]:
            parts.append(_table(schema, schema.get("$defs", {})))
        parts.append(f"In `{cls.__module__}`.")
    return "\n\n".join(parts)


def _taken_out(schema: _Schema, other: _Schema) -> list[str]:
    """The params that two components have in common, which are left out of the first schema."""
    known = other["properties"]
    same = [key for key, field in schema["properties"].items() if known.get(key) == field]
    for key in same:
        del schema["properties"][key]
    return same


def result(name: str) -> str:
    """What a benchmark has measured: its tables, and pictures of their ratios."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    parts = []
    for number, table in enumerate(record["tables"]):
        title = table["title"]
        parts.append(f"*{title}*")
        if (column := _drawn(table)) is not None:
            parts.append(f"![{title}: {table['columns'][column]}](plots/{name}-{number}.svg)")
        lines = [["", *table["columns"]], ["---"] * (len(table["columns"]) + 1)]
        lines += [[label, *(cell["shown"] for cell in cells)] for label, cells in table["rows"]]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    about = record["machine"]
    said = [about["processor"], f"{about['cores']} cores", about["instructions"], about["more"]]
    versions = f"torch {about['versions']['torch']}"
    parts.append(
        f"`{record['command']}` ({', '.join(filter(None, said))}, {versions}), kept in "
        f"`benchmarks/results/{name}.json`."
    )
    return "\n\n".join(parts)


def plots(name: str) -> dict[str, str]:
    """The pictures of a benchmark, by file name."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    drawn = {}
    for number, table in enumerate(record["tables"]):
        if (column := _drawn(table)) is not None:
            rows = [(label, cells[column]) for label, cells in table["rows"]]
            drawn[f"{name}-{number}.svg"] = bars(
                f"{table['title']}: {table['columns'][column]}",
                [(label, cell["shown"], cell["values"]) for label, cell in rows if cell["values"]],
            )
    return drawn


def _drawn(table: dict[str, Any]) -> int | None:
    """Of a table's columns of ratios or shares the one that most rows have, if several have it.

    A table of the parts of each row's whole has none: its rows are read across.
    """
    measured = {
        number: sum(bool(cells[number]["values"]) for _, cells in table["rows"])
        for number, column in enumerate(table["columns"])
        if any(word in column for word in _RATIOS)
    }
    fullest = max(measured, key=measured.__getitem__, default=None)
    return fullest if fullest is not None and measured[fullest] > 1 else None


_SPEC_MODELS: dict[str, type[BaseModel]] = {
    "A run": models.Spec,
    "`stages`": models.Stage,
    "`train`": models.Train,
    "`data`": models.DataEntry,
    "`student`": models.ModelEntry,
    "`teacher`": models.TeacherEntry,
    "`losses`": models.LossEntry,
    "`layers` of a loss": models.LayersEntry,
    "`normalize` of a model": models.NormalizeEntry,
    "`tune`": Tune,
}
_WRITERS: dict[str, Callable[[Any], str]] = {
    "hook": hook,
    "contract": contract,
    "api": api,
    "exceptions": exceptions,
    "commands": commands,
    "spec": spec,
    "components": components,
    "result": result,
}


def _attributes(cls: type) -> Iterator[str]:
    """What a subclass may set, with the values that it has otherwise."""
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        value = vars(cls).get(name, inspect.Signature.empty)
        if isinstance(value, frozenset):
            value = f"frozenset({{{', '.join(map(repr, sorted(value)))}}})"
        elif value is not inspect.Signature.empty:
            value = repr(value)
        line = f"{name}: {annotation}" + (f" = {value}" if isinstance(value, str) else "")
        yield line.replace("'", '"')


def _reserved(cls: type[Component]) -> str:
    """What the classes of all kinds have."""
    keys = ", ".join(f"`{key}`" for key in ("use", *sorted(cls.engine_keys)))
    return (
        "Its class has a `name`, by which a spec names it, and may have a nested class "
        "`Params(kdzoo.Params)` of what can be set, which an instance has as `self.params`. No "
        f"param may have the name of a key of the spec: {keys}."
    )


def _signature(function: Callable[..., Any]) -> str:
    said = signature(function)
    if inspect.isclass(function):  # what its __init__ returns says nothing
        said = said.replace(return_annotation=inspect.Signature.empty)
    lines: list[str] = []
    for part in said.parameters.values():
        if part.kind is part.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(str(part))
    answer = said.return_annotation
    arrow = "" if answer is inspect.Signature.empty else f" -> {answer}"
    one = f"({', '.join(lines)}){arrow}"
    return one if len(one) < 84 else "(\n    " + ",\n    ".join(lines) + f",\n){arrow}"


def _prose(documented: Any) -> str:
    """A docstring as Markdown: its sections become lists, its roles plain code."""
    blocks = [_section(block) for block in prose(documented).split("\n\n")]
    return "\n\n".join(blocks)


def _section(block: str) -> str:
    title, _, rest = block.partition("\n")
    if title.removesuffix(":") not in _SECTIONS:
        return block
    items: list[str] = []
    for line in inspect.cleandoc("\n" + rest).splitlines():
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif title == "Returns:":
            items = [" ".join([*items, line])]
        else:
            name, _, meaning = line.partition(": ")
            items.append(f"`{name}`: {meaning}")
    return f"*{title.removesuffix(':')}*\n\n" + "\n".join(f"- {item}" for item in items)


def _table(schema: _Schema, definitions: _Schema) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        needed = key in schema.get("required", ())
        cells = [f"`{key}`", type_words(field, definitions), _default(field, needed)]
        description = field.get("description") or definitions[_name(field)]["description"]
        rows.append("| " + " | ".join([*cells, description.replace("|", r"\|")]) + " |")
    return "\n".join(rows)


def _default(field: _Schema, needed: bool) -> str:
    if needed:
        return "required"
    if "by default" in field.get("description", ""):  # it depends on something, and that is said
        return ""
    value = field.get("default")
    if value in (None, ""):
        return ""
    if isinstance(value, dict | list):
        return f"`{shown_value(value)}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace('"', "")


def _name(field: _Schema) -> str:
    return str(field.get("$ref", "")).rpartition("/")[2]


def files() -> Iterator[tuple[Path, str]]:
    """All that this program writes: each file, and what should stand in it."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        yield path, renewed(text)
        for name in re.findall(r"<!-- generated: result (\S+) -->", text):
            for file, picture in plots(name).items():
                yield DOCS / "plots" / file, picture


if __name__ == "__main__":
    (DOCS / "plots").mkdir(exist_ok=True)
    for path, text in files():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"renewed {path.relative_to(DOCS.parent)}")
