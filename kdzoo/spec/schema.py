"""The JSON Schema of a spec, with the params of every installed component, for editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdzoo.extend.ranges import CHOICES, RANGE
from kdzoo.extend.registry import Registry
from kdzoo.spec.expand import STUDY_KEYS
from kdzoo.spec.models import KINDS, Spec
from kdzoo.spec.shorthand import STAGE_KEYS
from kdzoo.spec.torch_entries import optimizer_names, schedule_names
from kdzoo.spec.tuning import Tune

__all__ = ["json_schema"]


def json_schema(plugins: Registry) -> dict[str, Any]:
    """The schema that describes every spec which these plugins understand (draft 2020-12)."""
    schema = Spec.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema["$defs"]

    for model, kind in KINDS.items():
        if model.__name__ in definitions:
            definitions[model.__name__] = _entry(
                definitions[model.__name__], kind, plugins, definitions
            )
    stage = definitions["Stage"]
    train = definitions["Train"]["properties"]
    train["optimizer"] = _torch_entry(train["optimizer"], optimizer_names())
    train["schedule"] = _torch_entry(train["schedule"], [*schedule_names(), None])
    # The keys of a single stage may stand at the top instead of `stages`.
    schema["properties"] |= {key: stage["properties"][key] for key in STAGE_KEYS}
    schema["properties"] |= STUDY_KEYS
    tune = Tune.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= tune.pop("$defs")
    definitions["Range"] = RANGE.json_schema()
    definitions["Choices"] = CHOICES.json_schema()
    properties = tune["properties"]
    domains = [{"$ref": "#/$defs/Range"}, {"$ref": "#/$defs/Choices"}]
    properties["space"]["anyOf"] = [
        {"const": "default"},
        {"type": "object", "additionalProperties": {"anyOf": domains}, "minProperties": 1},
    ]
    for key in ("sampler", "pruner"):
        entry = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/SearchEntry"}]}
        properties[key] = {"description": properties[key]["description"], **entry}
    objective = properties["objective"]
    properties["objective"] = {
        "description": objective["description"],
        "anyOf": [objective["items"], {"type": "array", "items": objective["items"]}],
    }
    file = {"type": "string", "description": "A file that holds the chapter."}
    schema["properties"]["tune"] = {"description": tune["description"], "anyOf": [tune, file]}
    schema["required"] = [key for key in schema["required"] if key != "stages"]
    schema["oneOf"] = [{"required": ["stages"]}, {"required": ["train"]}]
    schema["title"] = "kdzoo spec"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _entry(
    schema: dict[str, Any], kind: str, plugins: Registry, definitions: dict[str, Any]
) -> dict[str, Any]:
    """What may stand where a component is named: its name, or a mapping with its params."""
    own = {key: value for key, value in schema["properties"].items() if key != "use"}
    if "layers" in own:
        own["layers"]["anyOf"][0]["minItems"] = 1
        # A single pair may stand for a list of one.
        own["layers"]["anyOf"].insert(0, {"$ref": "#/$defs/LayersEntry"})
    names = plugins.names(kind)
    choices: list[dict[str, Any]] = []
    for name in names:
        component = plugins.find(kind, name)
        params = component.Params.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
        for model, definition in params.pop("$defs", {}).items():
            definitions[f"{kind}.{name}.{model}"] = definition
        published = {
            key: {**own[key], "default": getattr(component, f"default_{key}")}
            for key in ("weight", "warmup_epochs")
            if key in own and (key != "weight" or component.guidance == "teacher")
        }
        taken = {
            key: value
            for key, value in own.items()
            if key not in ("layers", "adapter") or getattr(component, f"default_{key}")
        }
        choices.append(
            {
                "type": "object",
                "title": f'{kind} "{name}"',
                "description": params.get("description", ""),
                "properties": {
                    "use": {"const": name},
                    **taken,
                    **published,
                    **params.get("properties", {}),
                },
                "required": ["use", *params.get("required", [])],
                "additionalProperties": False,
            }
        )
    if kind == "model" and "run" in own:
        choices.append(
            {
                "type": "object",
                "title": "out of another spec",
                "properties": {key: own[key] for key in ("run", "epoch")},
                "required": ["run"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": [{"enum": names}, *choices]}


def _torch_entry(schema: dict[str, Any], names: Sequence[str | None]) -> dict[str, Any]:
    described: dict[str, Any] = {
        key: schema[key] for key in ("description", "default") if key in schema
    }
    entry: dict[str, Any] = {
        "type": "object",
        "properties": {"use": {"enum": [name for name in names if name]}},
        "required": ["use"],
    }
    return {**described, "anyOf": [{"enum": names}, entry]}
