"""What a component is, in words: for the command line and for the documentation."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdzoo.extend.bases import Loss, ModelSource
from kdzoo.extend.component import Component
from kdzoo.extend.ranges import Choices, Range

__all__ = [
    "PLACES",
    "ParamWords",
    "example",
    "loss_defaults",
    "model_layers",
    "params_of",
    "prose",
    "shown_value",
    "signature",
    "type_words",
]

Schema = Mapping[str, Any]

PLACES = {
    "adapter": "losses: [ce, {{use: fitnet, adapter: {}}}]",
    "dataset": "data: {}",
    "loss": "losses: [ce, {}]",
    "model": "student: {}",
    "observer": "observers: [{}]",
    "policy": "policy: {}",
}
"""How a spec names a component of each kind."""


@dataclass(frozen=True)
class ParamWords:
    """One of a component's params.

    Attributes:
        key: its name.
        type: what it may be, with its bounds.
        default: what it is otherwise; ``required``, or empty where nothing is the default.
        tuned: the range that ``space: default`` takes; empty where there is none.
        meaning: its description.
    """

    key: str
    type: str
    default: str
    tuned: str
    meaning: str


def params_of(component: type[Component]) -> list[ParamWords]:
    """All params of a component."""
    schema = component.Params.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = []
    for key, field in schema["properties"].items():
        info = component.Params.model_fields[key]
        tuned = [_tuned(d) for d in info.metadata if isinstance(d, Range | Choices)]
        rows.append(
            ParamWords(
                key,
                type_words(field, definitions).replace("`", ""),
                "required" if info.is_required() else shown_value(field.get("default")),
                "".join(tuned),
                info.description or "",
            )
        )
    return rows


def loss_defaults(loss: type[Loss]) -> str:
    """What a loss was published with."""
    said = [f"follows the {loss.guidance}"]
    if loss.guidance == "teacher":
        said.append(
            f"weight {loss.default_weight:g} beside {loss.default_label_weight:g} of labels"
        )
    if loss.default_warmup_epochs:
        said.append(f"rising over {loss.default_warmup_epochs} epochs")
    pairs = [f"{pair.student} / {pair.teacher}" for pair in loss.default_layers]
    said.append(f"layers (student / teacher) {', '.join(pairs)}" if pairs else "reads the logits")
    if loss.default_adapter:
        said.append(f"adapter `{loss.default_adapter}`")
    if loss.needs_indices:
        said.append("remembers samples")
    return f"By default: {'; '.join(said)}."


def model_layers(source: type[ModelSource]) -> str:
    """What the layers are that a model names, with its params at their defaults."""
    if any(field.is_required() for field in source.Params.model_fields.values()):
        return "Which layers it has depends on its params."
    try:
        layers = source().layers()
    except Exception:  # valid for what build returned alone, and nothing was built
        return "Which layers it has is known once it is built."
    stages = [f"{number} is `{path}`" for number, path in enumerate(layers.stages)]
    outer = [("penultimate", layers.penultimate), ("head", layers.head)]
    named = ", ".join(f"`{name}` is `{path}`" for name, path in outer if path)
    return f"Network stages: {', '.join(stages) or 'none'}{named and f'; {named}'}."


def example(component: type[Component]) -> str:
    """How a spec uses it, with all its params at their defaults; ``...`` is to be filled in."""
    said = [f"use: {component.name}"]
    for key, info in component.Params.model_fields.items():
        if info.is_required():
            listed = "tuple" in str(info.annotation)
            said.append(f"{key}: [...]" if listed else f"{key}: ...")
        elif (value := info.get_default(call_default_factory=True)) is not None:
            said.append(f"{key}: {json.dumps(value, default=str, ensure_ascii=False)}")
    alone = issubclass(component, Loss) and component.guidance == "label"
    place = "losses: [{}]" if alone else PLACES[component.kind]
    return place.format("{" + ", ".join(said) + "}")


def prose(documented: Any) -> str:
    """A docstring without its indentation and its marks."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(documented.__doc__ or ""))
    return text.replace("``", "`")


def shown_value(value: Any) -> str:
    """A default as a spec may write it: a component that says no more than its name is its name."""
    if value in (None, ""):
        return ""
    if isinstance(value, list):
        return f"[{', '.join(shown_value(item) for item in value)}]"
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item is not None}
        if "use" in said and (said.get("id") == said["use"] or list(said) == ["use"]):
            return str(said["use"])
        return "{" + ", ".join(f"{key}: {shown_value(item)}" for key, item in said.items()) + "}"
    return str(value) if isinstance(value, str) else json.dumps(value)


def signature(function: Any) -> inspect.Signature:
    """A function's signature that is printed as its source says it: no annotation in quotes."""
    found = inspect.signature(function)
    parts = [
        part.replace(annotation=_Source.of(part.annotation), default=_Source.of(part.default, repr))
        for part in found.parameters.values()
    ]
    return found.replace(parameters=parts, return_annotation=_Source.of(found.return_annotation))


@dataclass(frozen=True)
class _Source:
    text: str

    @classmethod
    def of(cls, value: Any, words: Callable[[Any], str] = str) -> Any:
        """A default, by ``repr``, or an annotation that was never evaluated, which is a string."""
        if value is inspect.Signature.empty or (words is str and not isinstance(value, str)):
            return value
        return cls(words(value).replace("'", '"').replace("<factory>", "{}"))

    def __repr__(self) -> str:
        return self.text


def type_words(field: Schema, definitions: Schema) -> str:
    """A field's type in words, with its bounds."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    return " or ".join(_one_type(choice, definitions) for choice in choices)


def _one_type(field: Schema, definitions: Schema) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2].removesuffix("Entry").lower() + " entry"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type")
    if kind == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {type_words(items, definitions)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
    }
    return ", ".join([words.get(str(kind), "mapping"), *_bounds(field)])


def _bounds(field: Schema) -> Iterator[str]:
    for key, sign in (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ):
        if key in field:
            yield f"{sign} {field[key]:g}"


def _tuned(domain: Range | Choices) -> str:
    if isinstance(domain, Choices):
        return ", ".join(map(str, domain.choices))
    how = " (log)" if domain.log else f" in steps of {domain.step:g}" if domain.step else ""
    return f"{domain.low:g} to {domain.high:g}{how}"
