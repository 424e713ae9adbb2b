"""What is said of a component: by the command line, and by an example that a spec can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from ruamel.yaml import YAML

import kdzoo
from kdzoo.extend.describe import example, params_of
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.registry import registry

ALL = [(base.kind, name) for base in HOOKS.values() for name in registry().names(base.kind)]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=lambda part: str(part))
def test_each_example_can_stand_in_a_spec(kind: str, name: str, tiny: dict[str, Any]) -> None:
    component = registry().find(kind, name)
    text = example(component)
    required = [param.key for param in params_of(component) if param.default == "required"]
    assert ("..." in text) == bool(required)
    said = YAML(typ="safe", pure=True).load(text.replace("...", "made-up"))
    spec = kdzoo.read_spec({**tiny, "policy": "all", **said})
    assert f'"use":"{name}"' in spec.model_dump_json()


def test_a_component_is_shown(kdzoo_command: Callable[..., Any]) -> None:
    shown = kdzoo_command("plugins", "show", "dkd")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "loss dkd",
        "(CVPR 2022), equation 7",
        "weight 1 beside 1 of labels; rising over 20 epochs",
        "beta (number, at least 0; default 8.0; tuned from 0.5 to 16 (log))",
        "losses: [ce, {use: dkd, alpha: 1.0, beta: 8.0, temperature: 4.0}]",
        "kdzoo_plugins.losses.dkd",
    ):
        assert words in shown.stdout
    by_plugin = kdzoo_command("plugins", "show", "losses.dkd")
    assert by_plugin.stdout == shown.stdout
    (said,) = json.loads(kdzoo_command("plugins", "show", "loss.dkd", "--json").stdout)
    assert [param["key"] for param in said["params"]] == ["alpha", "beta", "temperature"]
    unknown = kdzoo_command("plugins", "show", "dk")
    assert unknown.returncode == 1
    assert unknown.stderr == 'kdzoo: there is no component "dk"; did you mean "dkd"?\n'
