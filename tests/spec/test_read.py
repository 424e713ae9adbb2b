"""Specs: what is read is what was meant, and what is wrong is named with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch

import kdzoo
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry
from kdzoo.spec.read import dump_spec
from kdzoo.spec.schema import json_schema

STARTER = registry().find(DataSource.kind, "digits").starters["digits"]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "digits.yaml"
    file.write_text(text)
    return file


def problem(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(kdzoo.SpecError) as caught:
        kdzoo.read_spec(write(tmp_path, text), overrides)
    return str(caught.value)


def test_the_starter_is_read_with_every_default_filled_in(tmp_path: Path) -> None:
    spec = kdzoo.read_spec(write(tmp_path, STARTER))
    (stage,) = spec.stages
    assert [entry.id for entry in stage.losses] == ["ce", "kd"]
    assert stage.losses[1].params == {"temperature": 4.0}
    assert stage.policy.params["window"] == 5
    assert spec.student.params == {"width": 4, "depth": 3}
    assert spec.epochs == 30


def test_what_is_dumped_is_read_back_equal(tmp_path: Path, tiny: dict) -> None:
    sources = (write(tmp_path, STARTER), tiny, {**tiny, "stop_epoch": 3})
    for source in (*sources, {**tiny, "teacher": "sample-knowing"}):
        spec = kdzoo.read_spec(source)
        assert kdzoo.read_spec(write(tmp_path, dump_spec(spec))) == spec
        assert kdzoo.read_spec(spec) == spec


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "temperature: 4",
            "temprature: 4",
            'losses.kd.temprature: unknown parameter of loss "kd"; did you mean "temperature"?',
        ),
        (
            "temperature: 4",
            "temperature: hot",
            "losses.kd.temperature: must be a number, not 'hot'",
        ),
        (
            "temperature: 4",
            "temperature: -1",
            "losses.kd.temperature: must be greater than 0, not -1",
        ),
        ("temperature: 4", "temperature: .nan", "must be a finite number"),
        ("weight: 0.9", "weigth: 0.9", 'losses.kd.weigth: unknown parameter of loss "kd"; did you'),
        ("use: kd,", "use: kdd,", 'losses.kdd: unknown loss "kdd"; did you mean "kd"?'),
        ("epochs: 30", "epochs: true", "train.epochs: must be a whole number, not True"),
        ("epochs: 30", "epochs: '30'", "train.epochs: must be a whole number, not '30'"),
        ("epochs: 30", "epochs: 0", "train.epochs: must be greater than or equal to 1"),
        ("batch_size: 64", "batchsize: 64", 'unknown key; did you mean "batch_size"?'),
        ("baseline: true", "baselin: true", 'baselin: unknown key; did you mean "baseline"?'),
        ("baseline: true", "baseline: 1", "baseline: must be true or false, not 1"),
        ("data: digits", "data: digit", 'data: unknown dataset "digit"; did you mean "digits"?'),
        ("use: sgd", "use: sdg", 'train.optimizer: unknown optimizer "sdg"; did you mean "sgd"?'),
        ("lr: 0.05", "learning: 0.05", 'unknown argument "learning" of optimizer sgd'),
        ("lr: 0.05", "lr: -1.0", "train.optimizer: optimizer sgd does not take these arguments"),
        ("use: multistep", "use: cosine", 'did you mean "cosineannealing"?'),
        ("milestones: [15, 25]", "gamma: 0.1", "schedule multistep does not take these arguments"),
        ("milestones: [15, 25]", "milestones: [3], gamma: -1", "a learning rate of -0.05 in epoch"),
        ("use: multistep, milestones: [15, 25]", "use: step, step_size: 0", "after epoch 1"),
        ("lr: 0.05", "lr: true", 'argument "lr" of optimizer sgd must be a number, not True'),
        ("lr: 0.05", "lr: '0.05'", "must be a number, not '0.05'"),
        ("[15, 25]", "[15.5, 25]", "must be a list of whole numbers from 1 on, not [15.5, 25]"),
        ("[15, 25]", "['15', 25]", "must be a list of whole numbers from 1 on, not ['15', 25]"),
        ("[15, 25]", "[-1, 25]", "must be a list of whole numbers from 1 on, not [-1, 25]"),
        ("[15, 25]", "15", "must be a list of whole numbers from 1 on, not 15"),
        (
            "use: multistep, milestones: [15, 25]",
            "use: step, step_size: 2.5",
            'argument "step_size" of schedule step must be a whole number, not 2.5',
        ),
        ("lr: 0.05", "lr: 0.05, differentiable: true", "optimizer sgd cannot work with these"),
        ("lr: 0.05", "lr: .nan", "optimizer sgd gives NaN or infinity"),
        ("seed: 0", "seed: !!int foo", "'foo' cannot be read"),
        ("{use: ce, weight: 0.1}", "{use: ce, id: total}", "`total` is the sum of all"),
        ("use: tllm", "use: tlm", 'policy: unknown policy "tlm"; did you mean "tllm"?'),
        ("start_epoch: 10", "start_epoch: 10, start_epoch: 6", "stands here for the second time"),
        ("width: 4}", "width: 0}", "student.width: must be greater than or equal to 1"),
        (
            "name: digits-tllm",
            "name: a/b",
            "name: may have letters, digits, dashes and underscores, not 'a/b'",
        ),
        ("name: digits-tllm", "nam: x", "name: is missing"),
        ("{use: ce, weight: 0.1}", "{weight: 0.1}", "use: is missing"),
        ("{use: ce, weight: 0.1}", "{}", "use: is missing"),
        ("{use: ce, weight: 0.1}", "{ce: {weight: 0.1}}", "use: is missing; write {use: ce, ...}"),
        ("train: {epochs: 20}}", "}", "or trained weights of its library"),
        ("train: {epochs: 20}}", "checkpoint: no.pt}", "no.pt is not there, or is no file"),
        (
            "{use: small-cnn, width: 64, train: {epochs: 20}}",
            "{use: small-cnn, checkpoint: no.pt, seed: 1}",
            "teacher: is not trained here (no `train`); remove `seed`",
        ),
        (
            "{use: small-cnn, width: 64, train: {epochs: 20}}",
            "{use: sample-knowing, losses: [ce], seed: own}",
            "teacher: is not trained here (no `train`); remove `losses`, `seed`",
        ),
        ("{use: kd, weight: 0.9", "{use: ce, weight: 0.9", 'another loss has the id "ce"'),
        ("temperature: 4", "layers: {student: 1, teacher: 1}", "compares logits, not layers"),
        ("temperature: 4", "adapter: sample-linear", 'loss "kd" takes no adapter'),
        ("epochs: 30", "epochs: 30.5", "train.epochs: must be a whole number, "),
        (
            "  - {use: ce, weight: 0.1}",
            "  - [ce]",
            "losses.0: must be a mapping of keys, not ['ce']",
        ),
        (
            "data: digits",
            "data: {use: torchvision, dataset: MNIST, options: {transform: null}}",
            "data.options.transform: must be text or a whole number or a number or true or false, ",
        ),
        ("policy: {use: tllm, start_epoch: 10}", "learn: all", "learn: must be a list, not 'all'"),
        (
            "policy: {use: tllm, start_epoch: 10}",
            "policy: {use: fixed, classes: [8]}",
            "policy.classes.0: must be text, not 8; put it in quotes",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = STARTER.replace(old, new, 1)
    assert text != STARTER
    said = problem(tmp_path, text)
    assert message in said
    line = next(i for i, row in enumerate(text.splitlines(), 1) if new in row)
    assert any(
        row.startswith(f"digits.yaml:{line}: ") or "name: is missing" in row
        for row in said.splitlines()
    ), said


def test_a_library_that_is_missing_is_no_wrong_argument(
    tiny: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: torch.optim.Optimizer) -> None:
        raise ModuleNotFoundError("No module named 'sympy'")

    monkeypatch.setattr(torch.optim.SGD, "step", step)  # as where torch's dependencies are gone
    with pytest.raises(kdzoo.RunError, match="torch cannot import what it needs: No module named"):
        kdzoo.read_spec(tiny)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = STARTER.replace("temperature", "temprature").replace("use: tllm", "use: tlm")
    assert len(problem(tmp_path, text).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "digits.yaml:1: is not YAML"),
        ("- a\n- b", "digits.yaml: is no spec"),
        ("", "digits.yaml: is no spec"),
        ("name: x\ndata: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org"),
        ("name: x\ndata: &a [*a]", "refers to itself"),
        ("name: x\ndata: !!python/tuple {use: digits}", "the tag tag:yaml.org"),
        ("name: " + "[" * 3000, "nested too deeply"),
        ("name: " + "[" * 50 + "]" * 50, "nested too deeply"),
        ('name: "\\ud800"', "cannot be read"),
        ("? [a, b]\n: c", "a key must be a plain word"),
    ],
)
def test_what_is_no_spec_is_said_to_be_none(tmp_path: Path, text: str, message: str) -> None:
    assert message in problem(tmp_path, text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(kdzoo.SpecError, match=r"no\.yaml: cannot be read: No such file"):
        kdzoo.read_spec(tmp_path / "no.yaml")
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(kdzoo.SpecError, match="not UTF-8"):
        kdzoo.read_spec(tmp_path / "picture.yaml")
    with pytest.raises(kdzoo.SpecError, match="cannot be read: Is a directory"):
        kdzoo.read_spec(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, STARTER)
    overrides = [
        "train.epochs=5",
        "losses.kd.temperature=2",
        "data.validation=0.2",
        "policy=all",
        "observers=[jsonl]",
        "train.schedule.milestones=[3]",
    ]
    spec = kdzoo.read_spec(file, overrides)
    assert spec.epochs == 5
    assert spec.stages[0].losses[1].params["temperature"] == 2.0
    assert (spec.data.use, spec.data.validation) == ("digits", 0.2)
    assert spec.stages[0].policy.use == "all"
    assert [entry.use for entry in spec.observers] == ["jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write KEY=VALUE"),
        ("losses.dkd.alpha=1", 'losses has no entry "dkd"; did you mean "kd"?'),
        ("losses.kd.temprature=2", "--set losses.kd.temprature=2: losses.kd.temprature: unknown"),
        ("seed.x=2", "--set seed.x=2: seed is 0, which has no keys"),
        ("train.epochs=many", "--set train.epochs=many: train.epochs: must be a whole number"),
        ("train.epochs=[", "--set train.epochs=[:1: is not YAML"),
        ("losses=[{use: ce, wieght: 1}]", "--set losses=[{use: ce, wieght: 1}]: losses.ce.wieght"),
        ("trian.epochs=3", '--set trian.epochs=3: trian: unknown key; did you mean "train"?'),
        ("seed=1\nname: x", "is more than one value"),
        ("observers=[jsonl, jsonl]", '"jsonl" stands here for the second time'),
        ("losses=[{use: ce, weight: 0}]", "all weights are 0"),
        ("learn=[studnet]", 'unknown part; did you mean "student"?'),
        ("data.crop=-1", "--set data.crop=-1: data.crop: must be greater"),
        ("teacher.train.optimizer=lbfgs", "teacher.train.optimizer: unknown optimizer"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    assert message in problem(tmp_path, STARTER, override)


def test_a_single_pair_of_layers_is_set_as_it_is_written(tiny: dict) -> None:
    hint = {"use": "sample-feature", "layers": {"student": 1, "teacher": 1}}
    spec = kdzoo.read_spec(
        {**tiny, "losses": ["ce", hint]}, ["losses.sample-feature.layers.teacher=2"]
    )
    (pair,) = spec.stages[0].losses[1].layers
    assert (pair.student, pair.teacher) == (1, 2)
    several = {**hint, "layers": [hint["layers"]] * 2}
    with pytest.raises(kdzoo.SpecError, match=r'losses\.sample-feature\.layers has no entry "teac'):
        kdzoo.read_spec(
            {**tiny, "losses": ["ce", several]}, ["losses.sample-feature.layers.teacher=2"]
        )


def test_entries_of_a_list_may_be_named_by_number(tmp_path: Path) -> None:
    spec = kdzoo.read_spec(write(tmp_path, STARTER), ["losses.1.temperature=2"])
    assert spec.stages[0].losses[1].params["temperature"] == 2.0


def test_null_among_params_and_a_teacher_of_another_spec_read_back(
    tmp_path: Path, tiny: dict
) -> None:
    (tmp_path / "other.yaml").write_text(STARTER)
    tiny["teacher"] = {"run": str(tmp_path / "other.yaml"), "epoch": 3}
    tiny["data"]["maybe"] = None
    spec = kdzoo.read_spec(tiny)
    assert spec.data.params["maybe"] is None
    assert kdzoo.read_spec(write(tmp_path, dump_spec(spec))) == spec


def test_a_teacher_guided_loss_needs_a_teacher(tiny: dict) -> None:
    del tiny["teacher"]
    with pytest.raises(kdzoo.SpecError) as caught:
        kdzoo.read_spec(tiny)
    alone = "a spec without a teacher has none; add `teacher`, or remove the loss"
    assert f'losses.kd: loss "kd" follows a teacher, and {alone}' in str(caught.value)
    assert "baseline: a run without a teacher is its own baseline" in str(caught.value)
    with pytest.raises(kdzoo.SpecError, match=r"policy: .* add `teacher`, or use `policy: all`"):
        kdzoo.read_spec({**tiny, "losses": ["ce"], "policy": "tllm", "baseline": False})


def test_what_each_stages_policy_needs_must_be_there(tiny: dict) -> None:
    stage = {key: tiny.pop(key) for key in ("train", "losses")}
    tiny.pop("policy")
    shown = {"use": "tllm", "source": "validation"}
    tiny["stages"] = [{**stage, "policy": "tllm"}, stage, {**stage, "policy": shown}]
    missing = {"baseline": False, "data": {**tiny["data"], "validation": 0}}
    with pytest.raises(kdzoo.SpecError) as caught:
        kdzoo.read_spec({**tiny, **missing})
    first, third, images = str(caught.value).splitlines()
    for said, number in ((first, 0), (third, 2)):
        assert f'stages.{number}.policy: policy "tllm" compares with a baseline run, and' in said
    assert 'stages.2.policy: policy "tllm" looks at validation images, and there are' in images
    kdzoo.read_spec(tiny)


def test_specs_that_refer_to_each_other_are_refused(tmp_path: Path) -> None:
    text = STARTER.replace("{use: small-cnn, width: 64, train: {epochs: 20}}", "{run: OTHER}")
    (tmp_path / "a.yaml").write_text(text.replace("OTHER", "b.yaml"))
    (tmp_path / "b.yaml").write_text(text.replace("OTHER", "a.yaml"))
    with pytest.raises(kdzoo.SpecError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        kdzoo.read_spec(tmp_path / "a.yaml")


def test_the_keys_of_several_stages_stand_in_stages(tiny: dict) -> None:
    train, losses = tiny.pop("train"), tiny.pop("losses")
    tiny.pop("policy")
    tiny["stages"] = [{"train": train, "losses": losses}, {"train": train, "losses": ["ce"]}]
    assert kdzoo.read_spec(tiny).epochs == 8
    tiny["stages"][1]["losses"] = ["cee"]
    with pytest.raises(kdzoo.SpecError, match=r'stages\.1\.losses\.cee: unknown loss "cee"'):
        kdzoo.read_spec(tiny)
    tiny["stages"][1]["losses"], tiny["train"] = ["ce"], train
    with pytest.raises(kdzoo.SpecError, match="train: stands beside `stages`"):
        kdzoo.read_spec(tiny)


def test_the_schema_accepts_what_is_right_and_refuses_what_is_wrong(
    kdzoo_command: Callable,
) -> None:
    from ruamel.yaml import YAML

    printed = kdzoo_command("schema")
    assert printed.returncode == 0
    schema = json.loads(printed.stdout)
    assert schema == json.loads(json.dumps(json_schema(registry())))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    starter = YAML(typ="safe", pure=True).load(STARTER)
    validator.validate(starter)
    for change in (
        {"policy": "tlm"},
        {"policy": {"use": "tllm", "pacience": 2}},
        {"losses": [{"use": "kd", "temprature": 3}]},
        {"teacher": {"run": "a.yaml", "width": 3}},
        {"train": {"epochs": 3, "optimizer": "sdg"}},
        {"student": {"use": "mlp", "widths": "8"}},
        {"nam": "x"},
        {"losses": [{"use": "kd", "adapter": "sample-linear"}]},
        {"losses": [{"use": "kd", "layers": {"student": 1, "teacher": 1}}]},
        {"losses": [{"use": "sample-feature", "layers": []}]},
    ):
        assert not validator.is_valid({**starter, **change}), change
    for change in (
        {"policy": "all"},
        {"teacher": {"run": "a.yaml", "epoch": 3}},
        {"losses": ["ce", {"use": "sample-feature", "layers": {"student": 0, "teacher": "x.y"}}]},
        {"train": {"epochs": 3, "optimizer": "adamw", "schedule": None}},
    ):
        validator.validate({**starter, **change})
