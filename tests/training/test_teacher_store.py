"""Stored teacher outputs: the same student, whatever happened to the files."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_pictures
from ruamel.yaml import YAML
from torch import nn
from warm import Warm

import kdzoo
from kdzoo.distill.distiller import Distiller
from kdzoo.extend.registry import registry
from kdzoo.training.loop import Trainer
from kdzoo.training.teacher_store import chunk_size

EXACT = ("student.safetensors", "classes.csv", "metrics.jsonl", "answers.safetensors")


class ByBatch(kdzoo.ModelSource):
    """A linear network of which batch norm keeps no statistics."""

    name = "by-batch"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        size = torch.Size(input_shape).numel()
        norm = nn.BatchNorm1d(size, track_running_stats=False)
        return nn.Sequential(nn.Flatten(), norm, nn.Linear(size, num_classes))


@pytest.fixture
def spec(tiny: dict[str, Any]) -> dict[str, Any]:
    """A convolutional teacher of which a loss reads a feature too; 3 epochs of odd numbers."""
    small = {"use": "small-cnn", "width": 4, "depth": 2}
    return {
        **tiny,
        "data": "sample-odd",
        "baseline": False,
        "policy": "all",
        "student": {**small, "width": 2},
        "teacher": {**small, "train": {"epochs": 1}},
        "train": {"epochs": 3, "batch_size": 7},
        "losses": ["ce", "kd", {"use": "fitnet", "layers": {"student": 1, "teacher": 1}}],
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch had that the teacher was asked about."""
    counts: list[int] = []
    teach = Distiller.teach

    def counted(distiller: Distiller, inputs: torch.Tensor) -> kdzoo.Outputs:
        if distiller.chunk is not None and distiller.training:
            counts.append(len(inputs))
        return teach(distiller, inputs)

    monkeypatch.setattr(Distiller, "teach", counted)
    return counts


def exact(spec: dict[str, Any], runs: Path) -> dict[str, bytes]:
    run = kdzoo.run(spec, runs=runs, fresh=True)
    return {name: (run.directory / name).read_bytes() for name in EXACT}


def stored(runs: Path, output: str = "logits") -> list[Path]:
    """The files of an output, one an epoch; ``*``: of all."""
    return sorted((runs / ".cache" / "teacher").glob(f"*/*-{output}-*.rows"))


def test_the_student_is_the_same_with_another_batch_size_too(
    tmp_path: Path, spec: dict[str, Any], asked: list[int]
) -> None:
    """Of 1,617 images in chunks of 32: neither batch size divides either."""
    spec["data"] = "digits"
    spec["train"] = {"epochs": 3, "batch_size": 70}
    other = {**spec, "train": {"epochs": 3, "batch_size": 50}}
    alone = [exact(one, tmp_path / "alone") for one in (spec, other)]
    assert not stored(tmp_path / "alone")
    runs = tmp_path / "runs"
    ours = [{**one, "store_gb": 1.0} for one in (spec, other)]
    assert exact(ours[0], runs) == alone[0]  # it fills the store
    assert len(stored(runs)) == 3
    for one, wanted in zip(ours, alone, strict=True):
        asked.clear()
        assert exact(one, runs) == wanted
        # A chunk before anything else, and the first batch of each epoch.
        assert asked[1:] == [one["train"]["batch_size"]] * 3
    assert len(stored(runs)) == 3


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="kdzoo")
    return caplog


def test_a_teacher_whose_answers_depend_on_the_batch_is_not_stored(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is normalized by its batch, whatever the processor does."""
    spec["teacher"] = {"use": "by-batch", "train": {"epochs": 1}}
    spec["losses"] = ["ce", "kd"]
    with registry().lent(ByBatch):
        wanted = exact(spec, tmp_path)
        assert exact({**spec, "store_gb": 1.0}, tmp_path) == wanted
    assert "not stored: they depend on the other images of a batch" in caplog.text
    assert not stored(tmp_path)


def test_what_is_not_stored_is_said(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    spec["store_gb"] = 1.0
    one = {"train": spec.pop("train"), "losses": spec.pop("losses"), "policy": spec.pop("policy")}
    one["train"]["epochs"] = 1
    spec["stages"] = [one, {**one, "train": {**one["train"], "precision": "bf16"}}]
    kdzoo.run(spec, runs=tmp_path)
    assert "not stored: its stages compute in different precisions" in caplog.text
    assert not stored(tmp_path)


def test_half_precision_is_stored_too(
    tmp_path: Path, spec: dict[str, Any], asked: list[int]
) -> None:
    spec["train"]["precision"] = "bf16"
    wanted = exact(spec, tmp_path)
    spec["store_gb"] = 1.0
    assert exact(spec, tmp_path) == wanted
    assert len(stored(tmp_path)) == 3
    asked.clear()
    assert exact(spec, tmp_path) == wanted
    assert asked[1:] == [7] * 3


@pytest.mark.parametrize(
    ("batch_size", "chunk"), [(2, 2), (7, 4), (31, 16), (32, 32), (50, 32), (512, 32)]
)
def test_chunks_are_the_same_for_usual_batches(batch_size: int, chunk: int) -> None:
    assert chunk_size(batch_size) == chunk


def test_streamed_images(tmp_path: Path, spec: dict[str, Any], asked: list[int]) -> None:
    root = write_pictures(tmp_path / "pictures")
    spec["data"] = {"use": "image-folder", "root": str(root), "size": 12, "memory_gb": 0}
    spec["train"]["batch_size"] = 4
    wanted = exact(spec, tmp_path / "runs")
    spec["store_gb"] = 1.0
    for _ in range(2):
        asked.clear()
        assert exact(spec, tmp_path / "runs") == wanted
    assert len(stored(tmp_path / "runs")) == 3
    assert asked[1:] == [4] * 3


def test_a_run_that_goes_on_reads_what_it_stored(
    tmp_path: Path, spec: dict[str, Any], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = exact(spec, tmp_path / "alone")
    spec["store_gb"] = 1.0
    close = Trainer._close_epoch

    def cut(trainer: Trainer, *arguments: Any) -> None:
        if trainer.distiller.teacher is not None and trainer.epoch == 2:
            raise KeyboardInterrupt  # the second epoch is stored, and will be done again
        close(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            kdzoo.run(spec, runs=tmp_path)
    assert len(stored(tmp_path)) == 2
    asked.clear()
    run = kdzoo.run(spec, runs=tmp_path)
    assert {name: (run.directory / name).read_bytes() for name in EXACT} == wanted
    assert asked[1] == 7
    assert len(asked[2:]) == run_steps(run)  # the third epoch alone was computed


def run_steps(run: kdzoo.Run) -> int:
    """How many steps an epoch had."""
    return (
        max(json.loads(line)["step"] for line in (run.directory / "metrics.jsonl").open())
        // run.report.epochs
    )


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def of_another_epoch(file: Path) -> None:
    other = stored(file.parents[3])[1]
    file.unlink()
    file.with_name(other.name.replace("0001", "0000")).write_bytes(other.read_bytes())


def no_array(file: Path) -> None:
    file.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flipped, "its checksum is wrong"),
        (truncated, "is damaged"),
        (no_array, "is damaged"),
        (of_another_epoch, "something else than the teacher says now"),
    ],
)
def test_a_damaged_or_stale_file_is_noticed_and_written_again(
    damage: Callable[[Path], None],
    said: str,
    tmp_path: Path,
    spec: dict[str, Any],
    asked: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec["store_gb"] = 1.0
    wanted = exact(spec, tmp_path)
    before = [file.name for file in stored(tmp_path)]
    damage(stored(tmp_path)[0])
    assert exact(spec, tmp_path) == wanted
    assert said in caplog.text
    assert [file.name for file in stored(tmp_path)] == before
    asked.clear()
    assert exact(spec, tmp_path) == wanted
    assert asked[1:] == [7] * 3


def test_another_teacher_has_another_store(tmp_path: Path, spec: dict[str, Any]) -> None:
    spec["store_gb"] = 1.0
    kdzoo.run(spec, runs=tmp_path)
    changed = [
        {"teacher": {**spec["teacher"], "seed": 7}},
        {"data_seed": 9},
        {"data": {"use": "sample-odd", "split_seed": 3}},
    ]
    for change in changed:
        before = len(stored(tmp_path))
        kdzoo.run({**spec, **change}, runs=tmp_path)
        assert len(stored(tmp_path)) == before + 3, change


def test_runs_with_other_losses_share_what_they_ask_for(
    tmp_path: Path, spec: dict[str, Any], asked: list[int]
) -> None:
    fitnet = spec["losses"][2]
    runs = [
        (["ce", "kd", fitnet], False),
        (["ce", {"use": "kd", "temperature": 2}], True),
        (["ce", "crd"], False),  # its layer is new
        (["ce", "kd", "crd", fitnet], True),
    ]
    for losses, known in runs:
        one = {**spec, "losses": losses}
        asked.clear()
        done = exact({**one, "store_gb": 1.0}, tmp_path / "runs")
        assert (asked[1:] == [7] * 3) == known, losses
        assert done == exact(one, tmp_path / "alone")
    files = stored(tmp_path / "runs", "*")
    assert len(files) == 3 * 3
    assert len({file.parent for file in files}) == 1


def test_the_limit_holds(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    spec["store_gb"] = 1.0
    kdzoo.run(spec, runs=tmp_path)
    size = sum(file.stat().st_size for file in stored(tmp_path, "*"))
    assert f"outputs of the teacher: 0 epochs read, 3 stored, {size / 1e9:.2g} GB in" in caplog.text
    first = stored(tmp_path)[0].parent
    # Room for one store only: the older one makes way.
    kdzoo.run({**spec, "seed": 1, "store_gb": 1.5 * size / 1e9}, runs=tmp_path)
    assert f"{first}: removed, to make room" in caplog.text
    assert len(stored(tmp_path)) == 3
    # Room for no epoch at all: nothing is removed in vain.
    kdzoo.run({**spec, "seed": 2, "store_gb": 1e-9}, runs=tmp_path)
    assert "`store_gb` does not allow for another epoch of the logits" in caplog.text
    assert len(stored(tmp_path)) == 3
    assert not list((tmp_path / ".cache" / "teacher").glob("*/*.partial"))


def test_where_room_is_short_logits_come_first(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    layers = {"student": 0, "teacher": 0}
    spec.update(store_gb=1.0, losses=["ce", "kd", {"use": "fitnet", "layers": layers}])
    kdzoo.run(spec, runs=tmp_path / "all")
    logits, both = (
        sum(file.stat().st_size for file in stored(tmp_path / "all", what)) / 3
        for what in ("logits", "*")
    )
    spec["store_gb"] = (logits + 0.9 * (both - logits)) / 1e9
    kdzoo.run(spec, runs=tmp_path / "some")
    assert len(stored(tmp_path / "some")) == len(stored(tmp_path / "some", "*")) == 3
    assert caplog.text.count('`store_gb` does not allow for another epoch of layer "0"') == 1


def test_runs_that_take_turns_do_not_chase_each_others_stores_away(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    kdzoo.run({**spec, "store_gb": 1.0}, runs=tmp_path)
    size = sum(file.stat().st_size for file in stored(tmp_path, "*"))
    (before,) = {file.parent for file in stored(tmp_path)}
    spec.update(store_gb=1.5 * size / 1e9, sweep={"losses.kd.weight": [0.5, 0.7]}, seeds=[1, 2])
    kdzoo.run_study(spec, runs=tmp_path)
    # What was kept before makes way. Then each seed finds its own, of which one is not whole.
    counts = Counter(file.parent for file in stored(tmp_path, "*") if "logits" not in file.name)
    assert before not in counts
    assert sorted(counts.values()) == [1, 3]
    assert caplog.text.count("3 epochs read, 0 stored") == 1
    assert caplog.text.count("1 epochs read, 0 stored") == 1
    assert caplog.text.count(": removed, to make room") == 1


def test_a_disk_that_refuses_does_not_end_the_run(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = exact(spec, tmp_path)
    (tmp_path / ".cache").mkdir(exist_ok=True)
    (tmp_path / ".cache" / "teacher").write_bytes(b"not a directory")
    assert exact({**spec, "store_gb": 1.0}, tmp_path) == wanted
    assert caplog.text.count("no more outputs of the teacher are stored") == 1


def test_what_was_being_written_at_sigkill_is_not_read(
    tmp_path: Path, spec: dict[str, Any], warm: Warm
) -> None:
    spec.update(store_gb=1.0, train={"epochs": 40, "batch_size": 7})
    wanted = exact({**spec, "store_gb": 0.0}, tmp_path / "alone")
    file = tmp_path / "spec.yaml"
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    runs = tmp_path / "runs"
    process = warm.start("kdzoo", "run", str(file), "--runs", str(runs), cwd=tmp_path)
    while len(stored(runs)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (stored(runs)[0].parent / "0030.partial").write_bytes(b"half an epoch")
    run = kdzoo.run(spec, runs=runs)
    assert {name: (run.directory / name).read_bytes() for name in EXACT} == wanted
    assert len(stored(runs)) == 40
    assert not list(stored(runs)[0].parent.glob("*.partial"))


def test_two_processes_on_one_store(tmp_path: Path, spec: dict[str, Any], warm: Warm) -> None:
    spec.update(store_gb=1.0, train={"epochs": 15, "batch_size": 7})
    kdzoo.run({**spec, "store_gb": 0.0}, runs=tmp_path)  # the teacher
    file = tmp_path / "spec.yaml"
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    command = ["kdzoo", "run", str(file), "--runs", str(tmp_path)]
    weights = (0.5, 0.7)
    processes = [
        warm.start(*command, "--set", f"losses.kd.weight={weight}", cwd=tmp_path)
        for weight in weights
    ]
    assert [process.wait() for process in processes] == [0, 0]
    # What one came to while the other wrote is computed and not stored: a third fills the gaps.
    assert 1 <= len(stored(tmp_path)) <= 15
    stored(tmp_path)[0].unlink()  # at least this one
    for weight in (*weights, 0.8):
        kd = {"use": "kd", "weight": weight}
        one = {**spec, "losses": [spec["losses"][0], kd, spec["losses"][2]]}
        run = kdzoo.run(one, runs=tmp_path)
        done = {name: (run.directory / name).read_bytes() for name in EXACT}
        assert done == exact({**one, "store_gb": 0.0}, tmp_path / "alone")
    assert len(stored(tmp_path)) == 15
    assert len({file.name.partition("-")[0] for file in stored(tmp_path)}) == 15
    assert not list(stored(tmp_path)[0].parent.glob("*.partial"))
