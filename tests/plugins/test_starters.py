"""Every spec that `kdzoo init` writes is a good one, and says what the literature does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import kdzoo
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry
from kdzoo.spec.read import dump_spec

PAIRS = registry().find(DataSource.kind, "torchvision").starters
DIGITS = registry().find(DataSource.kind, "digits").starters


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    return file


BETAS = {  # of DKD, as published for each pair (Zhao et al., 2022)
    "cifar100-resnet56-resnet20": 2,
    "cifar100-resnet110-resnet32": 2,
    "cifar100-resnet32x4-resnet8x4": 8,
    "cifar100-wrn_40_2-wrn_16_2": 6,
    "cifar100-wrn_40_2-wrn_40_1": 6,
    "cifar100-vgg13-vgg8": 6,
    "cifar100-resnet32x4-ShuffleV1": 8,
    "cifar100-wrn_40_2-ShuffleV1": 8,
    "cifar100-vgg13-MobileNetV2": 6,
    "cifar100-ResNet50-MobileNetV2": 8,
    "cifar100-resnet32x4-ShuffleV2": 8,
}


def test_the_eleven_pairs() -> None:
    assert PAIRS.keys() == BETAS.keys()


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_has_the_published_recipe(tmp_path: Path, name: str) -> None:
    spec = kdzoo.read_spec(written(tmp_path, PAIRS[name]))
    assert spec.name == name
    assert spec.teacher is not None
    assert name == f"cifar100-{spec.teacher.use}-{spec.student.use}"
    small = spec.student.use.startswith(("Shuffle", "MobileNet"))
    rate_of_student = 0.01 if small else 0.05
    for train, rate in ((spec.teacher.train, 0.05), (spec.stages[0].train, rate_of_student)):
        assert train is not None
        assert (train.epochs, train.batch_size) == (240, 64)
        sgd = {"lr": rate, "momentum": 0.9, "weight_decay": 5e-4}
        assert (train.optimizer.use, train.optimizer.params) == ("sgd", sgd)
        assert train.schedule is not None
        assert train.schedule.params == {"milestones": [150, 180, 210], "gamma": 0.1}
    assert spec.data.validation == 0
    assert spec.data.params["dataset"] == "CIFAR100"
    assert {entry.id: entry.weight for entry in spec.stages[0].losses} == {"ce": 0.1, "kd": 0.9}


@pytest.mark.parametrize("name", PAIRS)
def test_the_other_methods_named_in_a_pair(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, PAIRS[name])
    settings = re.findall(r"--set '(.*)'", PAIRS[name])
    found: dict[str, Any] = {}
    for setting in settings:
        (stage,) = kdzoo.read_spec(file, [setting]).stages
        label, method = stage.losses
        assert (label.use, label.weight) == ("ce", 1.0)
        found[method.use] = method
    assert list(found) == ["dkd", "fitnet", "crd"]
    assert (found["dkd"].warmup_epochs, found["dkd"].weight) == (20, 1.0)
    assert found["dkd"].params == {"alpha": 1.0, "beta": BETAS[name], "temperature": 4.0}
    assert (found["fitnet"].weight, found["crd"].weight) == (100.0, 0.8)


@pytest.mark.parametrize("name", PAIRS)
def test_published_weights_as_a_pair_says_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "ckpt_epoch_240.pth").touch()
    (loaded,) = re.findall(r"^#   (teacher: .*checkpoint.*)$", PAIRS[name], re.MULTILINE)
    chapter = re.compile(r"^teacher:\n(  .*\n)+", re.MULTILINE)
    text, times = chapter.subn(f"{loaded}\n", PAIRS[name])
    assert times == 1
    spec = kdzoo.read_spec(written(tmp_path, text))
    assert spec.teacher is not None
    assert spec.teacher.checkpoint == str(tmp_path / "ckpt_epoch_240.pth")
    assert f"-{spec.teacher.use}-" in name


@pytest.mark.parametrize("method", ["fitnet", "crd"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_layers_of_each_pair_fit(name: str, method: str) -> None:
    """The hint's regressor for the two feature maps, and the embeddings, can be built."""
    import torch

    _, teacher, student = name.split("-")
    sources = [registry().make("model", use, {}) for use in (teacher, student)]
    networks = [source.build((3, 32, 32), 100) for source in sources]
    terms = kdzoo.terms(["ce", {"use": method} | ({"negatives": 8} if method == "crd" else {})])
    distiller = kdzoo.Distiller(
        *networks,
        terms,
        example=torch.rand(2, 3, 32, 32),
        classes=[str(number) for number in range(100)],
        num_samples=200,
        targets=torch.arange(200) % 100,
        teacher_layers=sources[0].layers(),
        student_layers=sources[1].layers(),
    )
    indices = torch.tensor([3, 70])
    step = distiller(torch.rand(2, 3, 32, 32), indices % 100, indices)
    assert step.terms[method].isfinite()


def test_fitnet_in_two_stages(tmp_path: Path) -> None:
    """The paper's order: the hint trains the lower half, then soft targets the whole student."""
    text = DIGITS["digits-fitnet-two-stage"]
    spec = kdzoo.read_spec(written(tmp_path, text))
    assert [[entry.use for entry in stage.losses] for stage in spec.stages] == [
        ["fitnet"],
        ["ce", "kd"],
    ]
    assert kdzoo.read_spec(YAML(typ="safe", pure=True).load(dump_spec(spec))) == spec
    short = ["stages.0.train.epochs=2", "stages.1.train.epochs=2", "teacher.train.epochs=1"]
    short += ["stages.1.train.schedule=null", "observers=[]"]
    run = kdzoo.run(spec, short, runs=tmp_path / "runs")
    assert run.report.epochs == 4
    hint = kdzoo.run(spec, [*short, "stop_epoch=2", "baseline=false"], runs=tmp_path / "runs")
    start = kdzoo.run(
        spec,
        [*short, "stop_epoch=1", "baseline=false", "stages.0.train.optimizer.lr=1e-30"],
        runs=tmp_path / "runs",
    )
    before, after = (kdzoo.load_student(r.directory).model.state_dict() for r in (start, hint))
    moved = {key.split(".")[0] for key in before if not before[key].equal(after[key])}
    assert {"block0", "block1"} <= moved  # the statistics of block2 follow what passes
    assert before["head.weight"].equal(after["head.weight"])
    assert before["block2.0.weight"].equal(after["block2.0.weight"])
