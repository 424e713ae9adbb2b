"""One file, several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

import kdzoo
from kdzoo.extend.registry import registry
from kdzoo.spec.derive import baseline_spec, teacher_spec
from kdzoo.spec.read import read_study
from kdzoo.spec.schema import json_schema


def test_a_grid_of_cells_and_seeds(tiny: dict[str, Any]) -> None:
    sweep = {"losses.kd.temperature": [2, 4], "student.widths": [[4], [8]]}
    specs = read_study({**tiny, "seeds": [3, 5], "sweep": sweep})
    found = [
        (s.stages[0].losses[1].params["temperature"], s.student.params["widths"], s.seed)
        for s in specs
    ]
    assert found == [(t, [w], s) for t in (2, 4) for w in (4, 8) for s in (3, 5)]
    assert {spec.name for spec in specs} == {"tiny"}


def test_each_run_is_an_ordinary_spec(tiny: dict[str, Any]) -> None:
    teacher = {**tiny["teacher"], "seed": 7}
    (spec,) = read_study({**tiny, "teacher": teacher, "seeds": [5]})
    assert spec == kdzoo.read_spec({**tiny, "teacher": teacher, "seed": 5})
    assert read_study(tiny) == (kdzoo.read_spec(tiny),)


def teacher_seed(spec: kdzoo.Spec) -> int:
    teacher = teacher_spec(spec)
    assert teacher is not None
    return teacher.seed


def test_seeds_share_the_teacher_of_the_first(tiny: dict[str, Any]) -> None:
    alone = teacher_spec(kdzoo.read_spec({**tiny, "seed": 3}))
    shared = [teacher_spec(spec) for spec in read_study({**tiny, "seeds": [3, 4]})]
    assert shared == [alone, alone]
    own = {**tiny, "teacher": {**tiny["teacher"], "seed": "own"}, "seeds": [3, 4]}
    first, second = (teacher_spec(spec) for spec in read_study(own))
    assert first == alone
    assert second is not None
    assert second.seed == teacher_seed(kdzoo.read_spec({**tiny, "seed": 4}))
    pinned = {**own, "teacher": {**tiny["teacher"], "seed": 9}}
    assert {teacher_seed(spec) for spec in read_study(pinned)} == {9}
    baselines = [baseline_spec(spec).seed for spec in read_study({**tiny, "seeds": [3, 4]})]
    assert baselines == [3, 4]


def test_cells_are_made_of_whole_entries_and_their_parts(tiny: dict[str, Any]) -> None:
    """What one cell changes inside an entry must not be seen in another."""
    sweep = {"policy": ["all", {"use": "tllm", "start_epoch": 2}], "policy.use": ["tllm"]}
    first, second = read_study({**tiny, "sweep": sweep})
    assert first.stages[0].policy.params["start_epoch"] == 10
    assert second.stages[0].policy.params["start_epoch"] == 2
    again = {"policy": [{"use": "tllm"}], "policy.start_epoch": [1, 2, 3]}
    found = [s.stages[0].policy.params["start_epoch"] for s in read_study({**tiny, "sweep": again})]
    assert found == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 5}, "seeds: must be a list of different whole numbers, as in [0, 1, 2], not 5"),
        ({"seeds": []}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [1, 1]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [-1]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [True]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [1], "seed": 2}, "seed: stands beside `seeds`; remove one of the two"),
        ({"sweep": []}, "sweep: must name keys of the spec"),
        ({"sweep": {"seed": [1]}}, "sweep.seed: cannot be swept over: list them in `seeds`"),
        ({"sweep": {"name": ["a"]}}, "cannot be swept over: runs of one file share it"),
        ({"sweep": {"seeds": [[1]]}}, "cannot be swept over: it stands for several runs itself"),
        ({"sweep": {"student.widths": 4}}, "must be a list of the values to try, not 4"),
        ({"sweep": {"student.widths": [[4], [4]]}}, "has the same value twice"),
        ({"sweep": {"losses.kdd.weight": [1]}}, 'losses has no entry "kdd"; did you mean "kd"?'),
        ({"sweep": {"losses.kd.temprature": [1]}}, 'did you mean "temperature"?'),
        ({"sweep": {"train.optimizer.momentun": [1]}}, 'did you mean "momentum"?'),
    ],
)
def test_mistakes_are_named_with_their_line(
    tmp_path: Path, tiny: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "study.yaml"
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump({**tiny, **change}, stream)
    with pytest.raises(kdzoo.SpecError) as caught:
        read_study(file)
    assert message in str(caught.value)
    name, number, _ = str(caught.value).split(":", 2)
    assert name == "study.yaml"
    above = file.read_text().splitlines()[: int(number)]
    chapter = [line for line in above if line[0] not in " -"][-1]
    assert chapter.partition(":")[0] in change


def test_a_wrong_value_is_named_by_its_own_line(tmp_path: Path, tiny: dict[str, Any]) -> None:
    file = tmp_path / "study.yaml"
    with open(file, "w") as stream:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.dump({**tiny, "sweep": {"losses.kd.temperature": [2, 4, -1]}}, stream)
    with pytest.raises(kdzoo.SpecError) as caught:
        read_study(file)
    _, number, _ = str(caught.value).split(":", 2)
    assert file.read_text().splitlines()[int(number) - 1].strip() == "- -1"


@pytest.mark.parametrize(
    ("swept", "override"),
    [
        ({"policy": ["tllm", "random"]}, "policy=all"),
        ({"policy": ["tllm", "random"]}, "policy.use=random"),
        ({"policy.use": ["all", "random"]}, "policy=all"),
        ({"losses.kd.temperature": [3, 4]}, "losses.kd.temperature=2"),
        ({"losses.kd.weight": [0.5, 0.6]}, "losses.1.weight=0.7"),
        ({"losses.kd.weight": [0.5, 0.6]}, "losses=[ce, {use: kd, weight: 0.7}]"),
        ({"train.optimizer.lr": [0.1, 0.2]}, "train.optimizer={use: sgd, lr: 0.3}"),
    ],
)
def test_an_override_that_the_sweep_would_hide_is_refused(
    tiny: dict[str, Any], swept: dict[str, Any], override: str
) -> None:
    with pytest.raises(kdzoo.SpecError) as caught:
        read_study({**tiny, "sweep": swept}, [override])
    (key,) = swept
    assert str(caught.value).startswith(f"--set {override}: `sweep` sets {key} in each run anew")
    assert len(read_study({**tiny, "sweep": swept}, [override, "sweep=null"])) == 1


def test_an_override_beside_a_sweep_holds_in_all_of_its_runs(tiny: dict[str, Any]) -> None:
    sweep = {"policy.margin": [0.1, 0.2], "losses.kd.temperature": [3, 4]}
    overrides = ["policy=tllm", "losses.kd.weight=0.5", "policy.window=3", "seeds=[1, 2]"]
    specs = read_study({**tiny, "policy": "random", "sweep": sweep}, overrides)
    assert len(specs) == 8
    (stages,) = zip(*(spec.stages for spec in specs), strict=True)
    assert {stage.policy.use for stage in stages} == {"tllm"}
    assert {stage.policy.params["window"] for stage in stages} == {3}
    assert {stage.losses[1].weight for stage in stages} == {0.5}


def test_where_one_run_is_asked_for_several_are_refused(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    file = tmp_path / "study.yaml"
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump({**tiny, "seeds": [0, 1]}, stream)
    with pytest.raises(kdzoo.SpecError, match="seeds: stands for several runs, and one is asked"):
        kdzoo.read_spec(file)
    with pytest.raises(kdzoo.SpecError, match="stands for several runs"):
        kdzoo.run({**tiny, "sweep": {"student.widths": [[4]]}}, runs=tmp_path)
    with pytest.raises(kdzoo.SpecError, match=r"study\.yaml cannot be used:\n.*several runs"):
        kdzoo.read_spec({**tiny, "teacher": {"run": str(file)}})


def test_editors_know_the_keys(tiny: dict[str, Any]) -> None:
    schema = json_schema(registry())
    study = {**tiny, "seeds": [0, 1], "sweep": {"student.widths": [[4], [8]]}}
    jsonschema.validate(study, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**study, "seeds": [0, 0]}, schema)
