"""What is said of a component: by the command line, and by an example that a spec can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from ruamel.yaml import YAML
from torch import nn

import kdzoo
from kdzoo.extend.describe import example, model_layers, params_of
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


class Unbuilt(kdzoo.ModelSource):
    """Knows its layers once it is built."""

    name = "unbuilt"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))
        return self.module

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(head=str(len(self.module) - 1))


class Headless(Unbuilt):
    """Names its stages alone."""

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("0",))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            registry().find("model", "resnet20"),
            "Network stages: 0 is `relu`, 1 is `layer1`, 2 is `layer2`, 3 is `layer3`; "
            "`penultimate` is `pool`, `head` is `fc`.",
        ),
        (Headless, "Network stages: 0 is `0`."),
        (registry().find("model", "torchvision"), "Which layers it has depends on its params."),
        (Unbuilt, "Which layers it has is known once it is built."),
    ],
)
def test_the_layers_of_a_model(source: type[kdzoo.ModelSource], words: str) -> None:
    assert model_layers(source) == words


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
    model = kdzoo_command("plugins", "show", "resnet20")
    assert "\nNetwork stages: 0 is relu, 1 is layer1, " in model.stdout
    unknown = kdzoo_command("plugins", "show", "dk")
    assert unknown.returncode == 1
    assert unknown.stderr == 'kdzoo: there is no component "dk"; did you mean "dkd"?\n'
    other = kdzoo_command("plugins", "show", "loss.tllm")
    assert other.stderr == 'kdzoo: there is no component "loss.tllm"; there is policy.tllm\n'
