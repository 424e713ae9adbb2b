"""Whole runs: exactness, resume, reuse, and every way in which one can end badly."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import planted
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import nn
from warm import Warm

import kdzoo
from kdzoo.extend.bases import Observer
from kdzoo.extend.registry import registry
from kdzoo.report.summary import summary_lines
from kdzoo.training.loop import Trainer

EXACT = (
    "student.safetensors",
    "classes.csv",
    "metrics.jsonl",
    "answers.safetensors",
    "report.json",
)


def write(tmp_path: Path, spec: dict[str, Any], name: str = "tiny.yaml") -> Path:
    file = tmp_path / name
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    return file


def files(run: kdzoo.Run) -> dict[str, bytes]:
    content = {name: (run.directory / name).read_bytes() for name in EXACT}
    content["report.json"] = content["report.json"].replace(
        str(run.directory.parent).encode(), b"RUNS"
    )
    return content


@pytest.fixture
def rich(tiny: dict[str, Any]) -> dict[str, Any]:
    """Everything that has a state: dropout, batch norm, a loss that draws, a policy, momentum."""
    losses = [*tiny["losses"], {"use": "sample-feature", "noise": 0.1}]
    return {**tiny, "student": "sample-dropout", "losses": losses, "policy": "sample-alternating"}


def test_a_run_leaves_what_it_should(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = kdzoo.run({**tiny, "observers": ["jsonl", "tensorboard"]}, runs=tmp_path)
    assert run.directory.parent == tmp_path
    names = {path.name for path in run.directory.iterdir()}
    assert names >= {
        "spec.yaml",
        "environment.json",
        "metrics.jsonl",
        "classes.csv",
        "checkpoint.pt",
        "student.safetensors",
        "answers.safetensors",
        "report.json",
    }
    assert any(name.startswith("events.out.tfevents") for name in names)
    report = run.report
    assert report == kdzoo.Report.read(run.directory / "report.json")
    assert report.epochs == 4
    assert report.teacher is not None
    assert report.baseline is not None
    assert sum(report.against_baseline()) == 10
    for role in ("teacher", "baseline"):
        own = kdzoo.Report.read(Path(report.directories[role]) / "report.json")
        assert own.student == getattr(report, role)
    resolved = {**tiny["data"], "crop": 0, "flip": False}  # as the data says
    assert kdzoo.read_spec(run.directory / "spec.yaml") == kdzoo.read_spec(
        {**tiny, "data": resolved, "observers": ["jsonl", "tensorboard"]}
    )
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").open()]
    epochs = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert set(epochs[0]) == {
        "epoch",
        "step",
        "lr",
        "accuracy/train",
        "accuracy/teacher",
        "accuracy/validation",
        "agreement",
        "untaught",
    }
    assert [round(line["lr"], 4) for line in epochs] == [0.05, 0.05, 0.005, 0.005]
    steps = [line for line in lines if "loss/total" in line]
    assert all(
        line["loss/total"] == pytest.approx(0.1 * line["loss/ce"] + 0.9 * line["loss/kd"], rel=1e-5)
        for line in steps
    )


def test_the_same_spec_gives_the_same_bits(tmp_path: Path, rich: dict[str, Any]) -> None:
    torch.manual_seed(1)
    one = files(kdzoo.run(rich, runs=tmp_path / "a"))
    torch.manual_seed(2)  # the caller's random state is neither read nor changed
    state = torch.get_rng_state()
    assert files(kdzoo.run(rich, runs=tmp_path / "b")) == one
    assert torch.equal(torch.get_rng_state(), state)
    other = files(kdzoo.run({**rich, "seed": 1}, runs=tmp_path / "a"))
    assert other["student.safetensors"] != one["student.safetensors"]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_cut_off_after_any_epoch_goes_on_exactly(
    tmp_path: Path, rich: dict[str, Any], epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kdzoo.run(rich, runs=tmp_path / "whole")

    class Cut(BaseException):
        pass

    original = Trainer._epoch

    def cut(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.distiller.teacher is not None and self.epoch == epoch:
            raise Cut  # after all its steps, before its checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", cut)
        with pytest.raises(Cut):
            kdzoo.run(rich, runs=tmp_path / "cut")
    assert files(kdzoo.run(rich, runs=tmp_path / "cut")) == files(whole)


@pytest.mark.slow
def test_a_lost_metrics_file_costs_no_training(
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = {**tiny, "log_every": 2}
    whole = files(kdzoo.run(spec, runs=tmp_path / "whole"))
    lines = whole["metrics.jsonl"].splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if json.loads(line).get("epoch") == 2)
    before, last, after = b"".join(lines[:place]), lines[place], lines[place + 1 :]
    original = Trainer._keep_epoch

    def cut(self: Trainer, info: kdzoo.RunInfo, *arguments: Any) -> None:
        original(self, info, *arguments)
        if info.role == "student" and self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_keep_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            kdzoo.run(spec, runs=tmp_path / "cut")
    cases = {
        "gone": (None, b""),
        "empty": (b"", b""),
        "without the epoch": (before, before),
        "without an end": (before + last[:-1], before),
        "gone, and cut off again later": (b"".join(after), b""),
        "the same, with more lines": (9 * b"".join(reversed(after)), b""),
    }
    for case, (content, left) in cases.items():
        shutil.copytree(tmp_path / "cut", tmp_path / case)
        (metrics,) = (tmp_path / case).glob("tiny-??????????/metrics.jsonl")
        assert metrics.read_bytes() == before + last
        metrics.unlink()
        if content is not None:
            metrics.write_bytes(content)
        found = files(kdzoo.run(spec, runs=tmp_path / case))
        step = json.loads(last)["step"]
        assert f"{metrics}: lines up to step {step} are missing; the run goes on" in caplog.text
        assert found == {**whole, "metrics.jsonl": left + b"".join(after)}, case


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_in_the_same_bits(
    tmp_path: Path, rich: dict[str, Any], warm: Warm
) -> None:
    """Real processes and real SIGKILLs, until the run is through."""
    spec = write(tmp_path, {**rich, "train": {**rich["train"], "epochs": 25}})
    whole = kdzoo.run(spec, runs=tmp_path / "whole")
    command = ["kdzoo", "run", str(spec), "--runs", str(tmp_path / "killed")]
    draw = random.Random(0)

    def progress() -> set[tuple[str, int]]:
        checkpoints = (tmp_path / "killed").glob("*/checkpoint.pt")
        return {(path.parent.name, path.stat().st_mtime_ns) for path in checkpoints}

    kills = 0
    for attempt in range(6):
        before = progress()
        process = warm.start(*command, cwd=tmp_path)
        if attempt < 5:
            while process.poll() is None and progress() <= before:
                time.sleep(0.01)
            time.sleep(0.3 * draw.random())  # anywhere in an epoch, or between two
            process.kill()
        _, said = process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
    assert process.returncode == 0, said
    assert kills >= 3
    assert files(kdzoo.run(spec, runs=tmp_path / "killed")) == files(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_from_outside(
    tmp_path: Path, tiny: dict[str, Any], warm: Warm, number: signal.Signals
) -> None:
    train = {**tiny["train"], "epochs": 2000}
    spec = write(tmp_path, {**tiny, "train": train, "baseline": False, "policy": "all"})
    process = warm.start("kdzoo", "run", str(spec), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/tiny-??????????/checkpoint.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; the same command goes on from the last finished epoch" in said
    assert "Traceback" not in said


class ThrowsAway(kdzoo.Loss):
    """Ctrl-C comes in the third epoch, in code that throws away what is raised in it."""

    name = "throws-away"
    guidance = "label"

    def forward(self, student, teacher, batch):
        with contextlib.suppress(BaseException):
            if batch.progress == 2:
                signal.raise_signal(signal.SIGINT)
        return 0 * student.logits.sum(1)


def test_an_interrupt_that_was_thrown_away_is_not_lost(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry()._components["loss"], "throws-away", ThrowsAway)
    losses = [*tiny["losses"], "throws-away"]
    spec = {**tiny, "losses": losses, "baseline": False, "policy": "all"}
    with pytest.raises(KeyboardInterrupt):
        kdzoo.run(spec, runs=tmp_path)
    (directory,) = tmp_path.glob("tiny-??????????")
    assert torch.load(directory / "checkpoint.pt")["epoch"] == 2


class Pressed(kdzoo.Observer):
    """Ctrl-C comes in the second epoch, while it does what must not be cut off."""

    name = "pressed"
    presses = 0
    told: ClassVar[list[object]] = []

    def epoch(self, run, record):
        if (run.role, record.epoch) == ("student", 2):
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)
            self.told.append("done")

    def end(self, run, error):
        if run.role == "student":
            self.told.append(type(error))


@pytest.mark.parametrize(
    ("presses", "told"), [(1, ["done", KeyboardInterrupt]), (2, [KeyboardInterrupt])]
)
def test_an_observer_is_cut_off_by_the_second_ctrl_c(
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    presses: int,
    told: list[object],
) -> None:
    monkeypatch.setitem(registry()._components["observer"], "pressed", Pressed)
    monkeypatch.setattr(Pressed, "presses", presses)
    monkeypatch.setattr(Pressed, "told", [])
    with pytest.raises(KeyboardInterrupt):
        kdzoo.run({**tiny, "observers": ["pressed"]}, runs=tmp_path)
    assert Pressed.told == told


def test_a_finished_run_is_reported_and_not_repeated(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdzoo")
    run = kdzoo.run(tiny, runs=tmp_path)
    before = (run.directory / "checkpoint.pt").stat().st_mtime_ns
    again = kdzoo.run({**tiny, "name": "renamed", "log_every": 3}, runs=tmp_path)
    assert again == run
    assert (run.directory / "checkpoint.pt").stat().st_mtime_ns == before
    assert f"student: finished before, in {run.directory}" in caplog.text
    pages = [(run.directory / name) for name in ("report.html", "report.csv")]
    written = [page.read_bytes() for page in pages]
    pages[0].unlink()  # as if it had been killed before it wrote its page
    pages[1].unlink()
    kdzoo.run(tiny, runs=tmp_path)
    assert [page.read_bytes() for page in pages] == written
    content = files(run)
    caplog.clear()
    fresh = kdzoo.run(tiny, runs=tmp_path, fresh=True)
    assert (run.directory / "checkpoint.pt").stat().st_mtime_ns > before
    assert files(fresh) == content
    assert "teacher: finished before" in caplog.text
    assert "baseline: finished before" in caplog.text


def test_teacher_and_baseline_are_shared_by_the_runs_that_need_the_same(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    one = kdzoo.run(tiny, runs=tmp_path)
    hotter = [{"use": "ce", "weight": 0.5}, {"use": "kd", "temperature": 9}]
    other = kdzoo.run({**tiny, "losses": hotter}, runs=tmp_path)
    assert one.directory != other.directory
    assert one.report.directories == other.report.directories
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4
    moved = kdzoo.run({**tiny, "data": {**tiny["data"], "split_seed": 1}}, runs=tmp_path)
    assert not set(moved.report.directories.values()) & set(one.report.directories.values())


def test_teacher_and_baseline_are_ordinary_runs(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = kdzoo.run(tiny, runs=tmp_path / "a")
    for directory in map(Path, run.report.directories.values()):
        alone = kdzoo.run(directory / "spec.yaml", runs=tmp_path / "b")
        assert alone.directory.name == directory.name
        content = (directory / "student.safetensors").read_bytes()
        assert (alone.directory / "student.safetensors").read_bytes() == content


def test_baseline_and_student_are_a_paired_experiment(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same initial weights, and the same views in the same order; label weight 1."""
    seen: dict[str, list[Any]] = {}

    original = Trainer._epoch

    def spy(self: Trainer, info: Any, *arguments: Any) -> None:
        if info.role in ("baseline", "student"):
            rows = seen.setdefault(info.role, [])
            if not rows:
                rows.append([p.detach().clone() for p in self.distiller.student.parameters()])
                rows.append([(t.id, t.weight) for t in self.distiller.terms])
            views = self.images.epoch(self.epoch, 16, self.spec.seed)
            rows += [(view.inputs, view.indices) for view in views]
        original(self, info, *arguments)

    monkeypatch.setattr(Trainer, "_epoch", spy)
    kdzoo.run(tiny, runs=tmp_path)
    baseline, student = seen["baseline"], seen["student"]
    assert all(torch.equal(a, b) for a, b in zip(baseline[0], student[0], strict=True))
    assert baseline[1] == [("ce", 1.0)]
    assert student[1] == [("ce", 0.1), ("kd", 0.9)]
    assert len(baseline) == len(student) > 20
    for one, other in zip(baseline[2:], student[2:], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_curves_have_the_baselines_at_the_same_epoch(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    import csv

    def column(directory: Path, name: str) -> list[str]:
        return [row[name] for row in csv.DictReader((directory / "classes.csv").open())]

    own = column(run.directory, "baseline")
    assert own == column(Path(run.report.directories["baseline"]), "student")
    both, student, samples = (
        np.array([float(v) for v in column(run.directory, name)])
        for name in ("both_right", "student", "samples")
    )
    counts = both * samples
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    least, most = (
        student + np.array(own, dtype=float) - 1,
        np.minimum(student, np.array(own, float)),
    )
    assert (both >= least - 1e-9).all()
    assert (both <= most + 1e-9).all()
    assert (both > least + 0.01).any()  # they are right on the same images more than they must be
    weights = column(run.directory, "teacher_weight")
    last = dict(zip(column(run.directory, "class")[-10:], weights[-10:], strict=True))
    assert sorted(name for name, weight in last.items() if weight == "0.0") == sorted(
        run.report.untaught
    )


def test_a_class_that_is_taught_less_is_untaught_wherever_it_is_said(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    policy = {"use": "fixed", "classes": ["b"], "teacher_weight": 0.5}
    run = kdzoo.run({**tiny, "policy": policy}, runs=tmp_path)
    assert run.report.untaught == ("b",)
    _, curves = kdzoo.read_curves(run.directory / "classes.csv")
    assert curves.untaught == [1]
    assert dataclasses.replace(curves, state=None).untaught == []  # by the weights alone
    last = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["untaught"] == ["b"]
    page = (run.directory / "report.html").read_text()
    assert "never but with weight 0.5" in page
    assert "teaching went down to 0.5 after epoch 0" in page
    assert run.report.no_longer_taught == []
    assert run.report.teacher_weights == {"b": 0.5}
    said = summary_lines(run.report)
    assert "No longer taught: none." in said
    assert "Teacher weights other than 1: b (0.5)." in said


class Stops(kdzoo.ClassPolicy):
    """Suspects class b after its first epoch, and stops it after its second; stops d after the
    first, for an epoch; c hears more of its labels."""

    name = "stops"

    def update(self, curves):
        state = kdzoo.ClassState
        states = np.full(10, state.TAUGHT)
        states[1] = state.SUSPECT if len(curves.student) == 1 else state.UNTAUGHT
        states[3] = state.UNTAUGHT if len(curves.student) == 1 else state.TAUGHT
        teacher = np.where(states == state.UNTAUGHT, 0.0, 1.0)
        label = np.where(teacher == 0, 9.0, 1.0)
        label[2] = 1.0 + len(curves.student)
        return kdzoo.ClassWeights(teacher=teacher, label=label, states=states)


def test_the_log_says_once_what_a_policy_does_with_a_class(
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "kdzoo")
    monkeypatch.setitem(registry()._components["policy"], "stops", Stops)
    run = kdzoo.run({**tiny, "baseline": False, "policy": "stops"}, runs=tmp_path)
    said = [line for line in caplog.messages if line.startswith("after epoch")]
    assert said == [
        "after epoch 1: the policy suspects: b",
        "after epoch 1: no longer taught: d",
        "after epoch 1: label weight changed: c",
        "after epoch 2: no longer taught: b",
        "after epoch 2: taught again: d",
    ]
    with open(run.directory / "report.csv", newline="") as file:
        taught = {row["class"]: row["taught"] for row in csv.DictReader(file)}
    assert [taught[name] for name in "abcd"] == [
        "to the end",
        "to epoch 2",
        "to the end",
        "to the end but for 1 epoch",
    ]
    caplog.clear()
    short = {**tiny, "baseline": False, "policy": "stops", "train": {**tiny["train"], "epochs": 2}}
    kdzoo.run(short, runs=tmp_path)
    said = [line for line in caplog.messages if line.startswith("after epoch")]
    assert said == [  # after the last it is of no use
        "after epoch 1: the policy suspects: b",
        "after epoch 1: no longer taught: d",
        "after epoch 1: label weight changed: c",
    ]


def test_the_best_validation_epoch_is_tested_once(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdzoo.pipeline import plan, student
    from kdzoo.training.evaluate import evaluate

    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        return evaluate(*arguments)

    for module in (plan, student):
        monkeypatch.setattr(module, "evaluate", counted)
    # From the third epoch on the steps are so long that what was learnt is lost.
    train = {**tiny["train"], "schedule": {"use": "multistep", "milestones": [2], "gamma": 100}}
    alone = {**tiny, "teacher": None, "baseline": False, "policy": "all", "losses": ["ce"]}
    alone["data"] = {"use": "planted", "per_class": 60}
    for stop, times in ((None, 2), (1, 1)):
        calls.clear()
        report = kdzoo.run({**alone, "train": train, "stop_epoch": stop}, runs=tmp_path).report
        assert calls == [3000] * times
        best = report.best_validation
        assert best is not None
        assert (best.epoch == report.epochs) == (times == 1)
    short = kdzoo.run({**alone, "train": train, "stop_epoch": 2}, runs=tmp_path).report
    whole = kdzoo.run({**alone, "train": train}, runs=tmp_path).report
    assert whole.best_validation is not None
    assert whole.best_validation.epoch == 2
    assert whole.best_validation.test == pytest.approx(short.student.accuracy, abs=1e-6)
    assert whole.student.accuracy < short.student.accuracy


def test_load_student_and_evaluate(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path / "runs")
    student = kdzoo.load_student(run.directory)
    assert student(torch.rand(3, 1, 1, 11)).shape == (3, 10)
    said = kdzoo_command("evaluate", str(run.directory), "--json")
    assert json.loads(said.stdout) == run.report.student.model_dump()
    assert "all" in kdzoo_command("evaluate", str(run.directory)).stdout


def test_a_corrected_student_has_the_accuracies_of_the_report(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["data"]["validation"] = 0.5
    run = kdzoo.run(tiny, runs=tmp_path)
    score = run.report.student
    data = registry().make("dataset", "planted", {"per_class": 12}).load()
    images, targets = data.test_images.float() / 255, data.test_targets
    plain, student = (
        kdzoo.load_student(run.directory, corrected=corrected)(images)
        for corrected in (False, True)
    )
    assert score.correction is not None
    offsets = torch.tensor(list(score.correction.offsets.values()))
    assert offsets.abs().max() > 0.01
    torch.testing.assert_close(student, score.correction.scale * plain + offsets)
    right = student.argmax(1) == targets
    assert right.float().mean().item() == pytest.approx(score.corrected_accuracy, abs=1e-6)
    for number, name in enumerate(data.classes):
        accuracy = right[targets == number].float().mean().item()
        assert accuracy == pytest.approx(score.corrected[name], abs=1e-6)


def test_a_student_whose_model_is_gone_or_has_other_params(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdzoo.pipeline.student import evaluate_run

    class Passing(type(registry().make("model", "mlp", {}))):  # type: ignore[misc]
        name = "passing"

    known = registry()._components["model"]
    monkeypatch.setitem(known, "passing", Passing)
    alone = {"teacher": None, "baseline": False, "policy": "all", "losses": ["ce"]}
    student = {"use": "passing", "widths": [4]}
    run = kdzoo.run({**tiny, **alone, "student": student}, runs=tmp_path)

    class Other(Passing):  # type: ignore[misc, valid-type]
        class Params(kdzoo.Params):
            """Renamed."""

            layers: tuple[int, ...] = kdzoo.Field((4,), description="Their widths.")

    monkeypatch.setitem(known, "passing", Other)
    for does in (kdzoo.load_student, evaluate_run):
        with pytest.raises(kdzoo.CheckpointError, match=r"(?s)widths.*the version that it"):
            does(run.directory)
    monkeypatch.delitem(known, "passing")
    with pytest.raises(kdzoo.CheckpointError, match=r"(?s)unknown model.*kdzoo\.register"):
        kdzoo.load_student(run.directory)


def test_a_teacher_out_of_a_checkpoint(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdzoo")
    tiny["teacher"]["train"]["epochs"] = 30
    tiny["data"]["per_class"] = 50
    one = kdzoo.run(tiny, runs=tmp_path)
    weights = Path(one.report.directories["teacher"]) / "student.safetensors"
    loaded = {**tiny, "teacher": {"use": "mlp", "widths": [16], "checkpoint": str(weights)}}
    other = kdzoo.run(loaded, runs=tmp_path)
    assert other.report.teacher is not None
    assert one.report.teacher is not None
    assert other.report.teacher.classes == one.report.teacher.classes
    assert one.report.teacher.corrected_accuracy is not None
    # What somebody else trained may have learnt from the validation images.
    assert other.report.teacher.corrected_accuracy is None
    assert other.report.student == one.report.student
    assert other.report.agreement == one.report.agreement
    assert "teacher: loaded; " in caplog.text
    loaded["teacher"]["widths"] = [17]
    with pytest.raises(kdzoo.CheckpointError, match="not of the architecture or class count"):
        kdzoo.run(loaded, runs=tmp_path)
    odd = {**loaded, "data": "sample-odd", "teacher": {**loaded["teacher"], "widths": [16]}}
    with pytest.raises(kdzoo.SpecError, match="the teacher knows 10 classes"):
        kdzoo.run(odd, runs=tmp_path)


def test_a_loaded_teacher_is_measured_once_a_command(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Not again for each setting and each run; but on each split of its own."""
    caplog.set_level(logging.INFO, "kdzoo")
    tiny = {**tiny, "teacher": "sample-knowing", "baseline": False, "policy": "all"}
    for sweep, times in (
        ({"losses.kd.temperature": [2, 3, 4]}, 1),
        ({"data.split_seed": [1, 2]}, 2),
    ):
        caplog.clear()
        kdzoo.run_study({**tiny, "sweep": sweep}, runs=tmp_path)
        assert caplog.text.count("teacher: loaded; ") == times


class Counted(kdzoo.ModelSource):
    """Counts what is built of it."""

    name = "counted"
    widths: ClassVar[list[int]] = []

    class Params(kdzoo.Params):
        width: int = kdzoo.Field(description="How wide the hidden layer is.")

    def build(self, input_shape, num_classes):
        self.widths.append(self.params.width)
        layers = torch.nn.Linear(11, self.params.width), torch.nn.Linear(self.params.width, 10)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def test_a_finished_teacher_and_baseline_are_not_put_together_again(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry()._components["model"], "counted", Counted)
    teacher = {"use": "counted", "width": 16, "train": tiny["teacher"]["train"]}
    tiny = {**tiny, "teacher": teacher, "student": {"use": "counted", "width": 8}}
    kdzoo.run(tiny, runs=tmp_path)
    Counted.widths.clear()
    kdzoo.run({**tiny, "losses": ["ce", {"use": "kd", "temperature": 9}]}, runs=tmp_path)
    assert sorted(Counted.widths) == [8, 16]  # the student and its teacher, once each


def test_a_teacher_whose_classes_are_in_another_order_is_noticed(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    alone = {**tiny, "student": {"use": "mlp", "widths": [16]}, "teacher": None, "losses": ["ce"]}
    alone |= {"baseline": False, "policy": "all", "train": {"epochs": 20}}
    alone["train"]["optimizer"] = {"use": "sgd", "lr": 0.5, "momentum": 0.9}
    tiny["data"] = alone["data"] = {"use": "planted", "per_class": 60, "validation": 0.0}
    state = load_file(kdzoo.run(alone, runs=tmp_path).directory / "student.safetensors")
    kept = tmp_path / "teacher.pth"
    teacher = {"use": "mlp", "widths": [16], "checkpoint": str(kept)}
    tiny["teacher"] = teacher
    for order, said in ([0, 1, 2, 3], ""), ([3, 1, 2, 0], '"a" for "d", "d" for "a"'):
        rows = torch.tensor([*order, *range(4, 10)])
        torch.save({k: v[rows] if "head" in k else v for k, v in state.items()}, kept)
        caplog.clear()
        kdzoo.run(tiny, runs=tmp_path)
        assert ("are its classes in another order?" in caplog.text) == bool(said)
        assert said in caplog.text


def test_a_teacher_that_knows_nothing_is_refused(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from kdzoo_plugins.models.mlp import MLP

    source = MLP(MLP.Params(widths=(16,)))
    torch.manual_seed(0)
    state = source.build((1, 1, 11), 10).state_dict()
    state["head.weight"].zero_()  # one answer for all images
    torch.save(state, tmp_path / "untrained.pth")
    teacher = {"use": "mlp", "widths": [16], "checkpoint": str(tmp_path / "untrained.pth")}
    with pytest.raises(kdzoo.CheckpointError, match=r"chance is 10.00 %: check"):
        kdzoo.run({**tiny, "teacher": teacher}, runs=tmp_path / "runs")
    caplog.set_level(logging.INFO, "kdzoo")
    kdzoo.run({**tiny, "teacher": {**teacher, "check": False}}, runs=tmp_path / "runs")
    assert "teacher: loaded; 10.00 % of 10 validation images are right" in caplog.text
    state["head.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "untrained.pth")
    with pytest.raises(
        kdzoo.CheckpointError, match=r"untrained.pth\) answers NaN or infinity to val"
    ):
        kdzoo.run({**tiny, "teacher": teacher}, runs=tmp_path / "runs")


UNITS = {"mean": [0.5], "std": [0.0625]}  # the planted features, nearly centred, of size 1


def weights_of(tmp_path: Path, spec: dict[str, Any]) -> str:
    """A trained teacher's weights as a file of somebody else's would hold them."""
    trained = kdzoo.run({**spec, "name": "other"}, runs=tmp_path / "others")
    teacher = kdzoo.load_student(trained.report.directories["teacher"])
    torch.save(teacher.model.state_dict(), tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def test_teacher_and_student_may_be_normalized_differently(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["data"]["per_class"] = 60
    tiny["teacher"]["normalize"] = UNITS
    loaded: dict[str, Any] = {"use": "mlp", "widths": [16], "normalize": UNITS}
    loaded["checkpoint"] = weights_of(tmp_path, tiny)
    plain = kdzoo.run({**tiny, "teacher": loaded}, runs=tmp_path)
    # The same function of the images: weights for other units, and the normalization that they had.
    state = torch.load(loaded["checkpoint"])
    state["hidden0.0.weight"] = state["hidden0.0.weight"] / 3
    torch.save(state, tmp_path / "scaled.pth")
    scaled = {
        **loaded,
        "checkpoint": str(tmp_path / "scaled.pth"),
        "normalize": {"mean": [0.5], "std": [0.0625 / 3]},
    }
    student = {"use": "mlp", "widths": [8], "normalize": {"mean": [0.1], "std": [2.0]}}
    other = kdzoo.run({**tiny, "teacher": scaled, "student": student}, runs=tmp_path)
    assert other.report.teacher is not None
    assert plain.report.teacher is not None
    assert other.report.teacher.classes == plain.report.teacher.classes
    own = kdzoo.load_student(other.directory)
    assert (own.mean.item(), own.std.item()) == pytest.approx((0.1, 2.0))
    onward = {
        "use": "mlp",
        "widths": [8],
        "checkpoint": str(other.directory / "student.safetensors"),
    }
    started = kdzoo.run({**tiny, "teacher": scaled, "student": onward}, runs=tmp_path)
    assert kdzoo.load_student(started.directory).mean.item() == own.mean.item()
    # Weights of ours bring the normalization that they were trained with.
    ours = {**student, "checkpoint": str(other.directory / "student.safetensors"), "check": False}
    del ours["normalize"]
    third = kdzoo.run({**tiny, "teacher": ours}, runs=tmp_path)
    assert third.report.teacher is not None
    assert third.report.teacher.classes == other.report.student.classes
    wrong = {**loaded, "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    with pytest.raises(kdzoo.SpecError, match=r"3 means, and the images have 1 channels"):
        kdzoo.run({**tiny, "teacher": wrong}, runs=tmp_path)


def test_the_teacher_is_folded_and_both_networks_have_their_channels_last(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fold = kdzoo.Distiller.fold_teacher

    def folds(distiller: kdzoo.Distiller, example: Any) -> int:
        folded = fold(distiller, example)
        networks: list[Any] = [distiller.student, distiller.teacher]
        seen.append((folded, [network and network.channels_last for network in networks]))
        return folded

    monkeypatch.setattr(kdzoo.Distiller, "fold_teacher", folds)
    small = {"use": "small-cnn", "width": 2, "depth": 2}
    tiny = {**tiny, "data": "sample-odd", "baseline": False, "policy": "all", "student": small}
    tiny["teacher"] = {**small, "train": {"epochs": 1}}
    kdzoo.run(tiny, runs=tmp_path)
    assert seen == [(0, [True, None]), (2, [True, True])]


def test_a_source_can_bring_weights_and_their_normalization(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kdzoo")
    run = kdzoo.run({**tiny, "teacher": "sample-knowing"}, runs=tmp_path)
    assert "teacher: loaded; 100.00 % of 10 validation images are right" in caplog.text
    assert set(run.report.directories) == {"baseline"}
    with pytest.raises(kdzoo.SpecError, match="say where its weights come from"):
        kdzoo.read_spec({**tiny, "teacher": "mlp"})


@pytest.fixture
def narrow(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny spec with a loaded teacher that is above chance, and worse than its student."""
    tiny["data"]["per_class"] = 100
    tiny["train"] = {**tiny["train"], "epochs": 8, "schedule": None}
    tiny["student"]["normalize"] = UNITS
    model = {"use": "mlp", "widths": [2], "normalize": UNITS}
    teacher = {**model, "train": {"epochs": 2}}
    file = weights_of(tmp_path, {**tiny, "teacher": teacher, "train": {"epochs": 1}})
    return {**tiny, "teacher": {**model, "checkpoint": file}}


def test_a_teacher_worse_than_the_student_stops_the_run(
    tmp_path: Path, narrow: dict[str, Any]
) -> None:
    with pytest.raises(kdzoo.CheckpointError, match=r"without it: check .* `check: false`"):
        kdzoo.run(narrow, runs=tmp_path)
    teacher = {**narrow["teacher"], "check": False}
    assert kdzoo.run({**narrow, "teacher": teacher}, runs=tmp_path).report.teacher


def test_a_teacher_that_nothing_was_there_to_compare_with_is_named_at_the_end(
    tmp_path: Path, narrow: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """No baseline and no validation images, as in the literature's pairs."""
    from kdzoo.report.summary import summary_lines

    caplog.set_level(logging.INFO, "kdzoo")
    alone = {**narrow, "baseline": False, "policy": "all"}
    alone["data"] = {**narrow["data"], "validation": 0}
    alone["losses"] = ["ce", {"use": "kd", "weight": 0.01}]
    run = kdzoo.run(alone, runs=tmp_path / "runs")
    assert "% of 1000 training images are right" in caplog.text
    assert run.report.teacher is not None
    teacher, student = run.report.teacher.accuracy, run.report.student.accuracy
    said = (
        f"The loaded teacher is worse than the student: {100 * teacher:.2f} % of the test images "
        f"against {100 * student:.2f} %. If that is not meant, check that"
    )
    assert summary_lines(run.report)[1].startswith(said)
    assert said in caplog.text
    assert said in (run.directory / "report.html").read_text()
    # What was trained here was not loaded in a wrong way.
    teacher = {**narrow["teacher"], "train": {"epochs": 2}}
    del teacher["checkpoint"]
    trained = kdzoo.run({**alone, "teacher": teacher}, runs=tmp_path / "runs")
    assert trained.report.teacher is not None
    assert trained.report.student.accuracy - trained.report.teacher.accuracy > 0.1
    assert not any("worse than the student" in line for line in summary_lines(trained.report))


def test_a_teacher_out_of_another_spec(tmp_path: Path, tiny: dict[str, Any]) -> None:
    assistant = {**tiny, "name": "assistant", "student": {"use": "mlp", "widths": [12]}}
    write(tmp_path, assistant, "assistant.yaml")
    chain = write(tmp_path, {**tiny, "teacher": {"run": "assistant.yaml"}}, "chain.yaml")
    run = kdzoo.run(chain, runs=tmp_path / "runs")
    assert Path(run.report.directories["teacher"]).name.startswith("assistant-")
    assert run.report.teacher == kdzoo.run(assistant, runs=tmp_path / "runs").report.student
    early = write(tmp_path, {**tiny, "teacher": {"run": "assistant.yaml", "epoch": 2}}, "e.yaml")
    teacher = Path(kdzoo.run(early, runs=tmp_path / "runs").report.directories["teacher"])
    assert kdzoo.Report.read(teacher / "report.json").epochs == 2
    whole = (Path(run.report.directories["teacher"]) / "metrics.jsonl").read_bytes()
    assert whole.startswith((teacher / "metrics.jsonl").read_bytes())
    # After its last epoch it is what the whole run left.
    last = write(tmp_path, {**tiny, "teacher": {"run": "assistant.yaml", "epoch": 4}}, "last.yaml")
    assert kdzoo.run(last, runs=tmp_path / "runs").directory == run.directory


def test_a_baseline_that_is_through_before_the_run_is_shared_with_the_whole_run(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    train = {"epochs": 2, "batch_size": 16}
    stages = [
        {"train": train, "losses": tiny.pop("losses"), "policy": "all"},
        {"train": train, "losses": ["kd"]},
    ]
    tiny = {key: tiny[key] for key in tiny if key not in ("train", "policy")} | {"stages": stages}
    runs = [kdzoo.run({**tiny, "stop_epoch": stop}, runs=tmp_path) for stop in (3, None)]
    assert runs[0].directory != runs[1].directory
    assert runs[0].report.directories == runs[1].report.directories


def test_stages(tmp_path: Path, rich: dict[str, Any]) -> None:
    """A hint stage, then distillation: the loss's own parameters persist, the head was frozen."""
    train = rich.pop("train")
    hint = {"use": "sample-feature", "noise": 0.1}
    rich.pop("losses")
    rich.pop("policy")
    rich["stages"] = [
        {
            "train": {"epochs": 2, "batch_size": 16},
            "losses": [hint],
            "learn": ["student.1", "losses"],
        },
        {"train": train, "losses": ["ce", "kd", {**hint, "weight": 0.5}], "policy": "tllm"},
    ]
    run = kdzoo.run(rich, runs=tmp_path / "whole")
    assert run.report.epochs == 6
    baseline = kdzoo.read_spec(Path(run.report.directories["baseline"]) / "spec.yaml")
    assert [[e.id for e in stage.losses] for stage in baseline.stages] == [["ce"]]
    with pytest.raises(kdzoo.SpecError, match="stop_epoch: 2 ends the run before its first stage"):
        kdzoo.run({**rich, "stop_epoch": 2}, runs=tmp_path / "stop")
    for stop in (3, 5):
        stopped = kdzoo.run({**rich, "stop_epoch": stop}, runs=tmp_path / "stop")
        assert stopped.report.epochs == stop
        part = (stopped.directory / "metrics.jsonl").read_bytes()
        assert (run.directory / "metrics.jsonl").read_bytes().startswith(part)
    rich["stages"][0]["learn"] = ["student.9"]
    with pytest.raises(kdzoo.SpecError, match=r'learn: no parameters under "student.9"'):
        kdzoo.run(rich, runs=tmp_path / "wrong")


class HalfFrozen(kdzoo.ModelSource):
    """Its first layer is what it is."""

    name = "half-frozen"

    def build(self, input_shape, num_classes):
        first, last = torch.nn.Linear(11, 8), torch.nn.Linear(8, num_classes)
        torch.nn.init.constant_(first.weight, 0.25)
        torch.nn.init.zeros_(first.bias)
        first.weight.requires_grad_(False)
        return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), last)


class FixedScale(kdzoo.Loss):
    """Cross entropy times a parameter that is not learnt."""

    name = "fixed-scale"
    guidance = "label"

    def setup(self, student_shapes, teacher_shapes, num_classes, num_samples):
        self.scale = torch.nn.Parameter(torch.tensor(0.25), requires_grad=False)

    def forward(self, student, teacher, batch):
        rows = torch.nn.functional.cross_entropy(student.logits, batch.targets, reduction="none")
        return self.scale * rows


def test_what_a_component_froze_stays_frozen_in_every_stage(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry()._components["model"], "half-frozen", HalfFrozen)
    monkeypatch.setitem(registry()._components["loss"], "fixed-scale", FixedScale)
    train, losses = tiny["train"], ["fixed-scale"]
    stages = [
        {"train": train, "losses": losses, "learn": ["student.3"]},
        {"train": train, "losses": losses},
    ]
    alone = {key: tiny[key] for key in ("name", "data", "observers")}
    run = kdzoo.run({**alone, "student": "half-frozen", "stages": stages}, runs=tmp_path)
    state = torch.load(run.directory / "checkpoint.pt", weights_only=True)["distiller"]
    assert (state["student.model.1.weight"] == 0.25).all()
    assert state["losses.fixed-scale.scale"] == 0.25
    assert (state["student.model.1.bias"] != 0).any()  # the second stage has set it free again


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_stages_go_on_exactly(
    tmp_path: Path, rich: dict[str, Any], epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off within a stage, at the border of two, and after it."""
    losses, train = rich.pop("losses"), rich.pop("train")
    policy = rich.pop("policy")
    short = {"epochs": 2, "batch_size": 16, "optimizer": "adamw"}
    rich["stages"] = [
        {"train": short, "losses": losses, "policy": policy},
        {"train": train, "losses": losses, "policy": policy},
    ]
    rich["baseline"] = False
    whole = kdzoo.run(rich, runs=tmp_path / "whole")
    original = Trainer._close_epoch

    def cut(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.distiller.teacher is not None and self.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            kdzoo.run(rich, runs=tmp_path / "cut")
    assert files(kdzoo.run(rich, runs=tmp_path / "cut")) == files(whole)


def test_the_oracle_goes_by_runs_of_other_seeds(tmp_path: Path, tiny: dict[str, Any]) -> None:
    torch.save(planted.PlantedTeacher().build((1, 1, 11), 10).state_dict(), tmp_path / "teacher.pt")
    harmed = {
        **tiny,
        "data": {"use": "planted", "per_class": 60, "validation": 0.5},
        "teacher": {"use": "planted-teacher", "checkpoint": str(tmp_path / "teacher.pt")},
        "student": {"use": "planted-student", "width": 16},
    }
    plain = [
        kdzoo.run({**harmed, "seed": seed, "policy": "all"}, runs=tmp_path).directory
        for seed in (0, 1)
    ]
    policy = {"use": "oracle", "runs": [str(run) for run in plain], "margin": 0.0}
    chosen = kdzoo.run({**harmed, "seed": 0, "policy": policy}, runs=tmp_path).report.untaught
    classes, curves = kdzoo.read_curves(plain[1] / "classes.csv")
    assert curves.validation is not None
    assert curves.validation.baseline is not None
    gap = (curves.validation.student - curves.validation.baseline)[-5:].mean(0)
    worst = np.argsort(gap, kind="stable")[:2]
    assert gap[worst[1]] < np.median(gap)
    assert set(chosen) == {classes[c] for c in worst}


def test_nan_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    losses = [{"use": "sample-explodes", "after": 2.5}, "kd"]
    spec = {**tiny, "baseline": False, "policy": "all", "losses": losses}
    done = kdzoo_command("run", str(write(tmp_path, spec)))
    assert done.returncode == 1
    assert "loss/sample-explodes became nan in step" in done.stderr
    assert "(epoch 3); the checkpoint of epoch 2 is kept" in done.stderr
    assert "Traceback" not in done.stderr
    (checkpoint,) = tmp_path.glob("runs/tiny-??????????/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 2


def test_weights_that_explode_in_the_last_step_are_not_saved(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """The loss of a step is finite before its update ruins the weights."""
    optimizer = {"use": "sgd", "lr": 1e38}
    train = {"epochs": 1, "batch_size": 1000, "optimizer": optimizer}
    spec = {
        **tiny,
        "policy": "all",
        "baseline": False,
        "train": train,
        "losses": [{"use": "ce", "weight": 1e38}],
    }
    with pytest.raises(kdzoo.NonFiniteError, match="became NaN or infinite in epoch 1") as caught:
        kdzoo.run(spec, runs=tmp_path)
    assert "Usual reasons: a learning rate that is too high" in str(caught.value)
    assert not list(tmp_path.glob("tiny-??????????/checkpoint.pt"))


class WithStatistics(nn.Module):
    """Has batch norm over features of some size, and a buffer that is infinite by design."""

    def __init__(self, inputs: int, classes: int, size: float) -> None:
        super().__init__()
        self.size = size
        self.stem, self.norm = nn.Linear(inputs, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.norm(self.size * self.stem(images.flatten(1))))
        return answer


class WithStatisticsSource(kdzoo.ModelSource):
    name = "with-statistics"

    class Params(kdzoo.Params):
        size: float = kdzoo.Field(1.0, description="Of the features.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return WithStatistics(math.prod(input_shape), num_classes, self.params.size)


def test_statistics_that_became_infinite_are_not_saved(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variance of such features is no number in single precision; nothing else shows it."""
    monkeypatch.setitem(registry()._components["model"], "with-statistics", WithStatisticsSource)
    alone = {**tiny, "teacher": None, "baseline": False, "losses": ["ce"], "policy": "all"}
    assert kdzoo.run({**alone, "student": "with-statistics"}, runs=tmp_path).report.epochs == 4
    student = {"use": "with-statistics", "size": 1e30}
    with pytest.raises(
        kdzoo.NonFiniteError, match=r"norm\.running_var became NaN or infinite in epoch 1; there is"
    ):
        kdzoo.run({**alone, "student": student, "name": "huge"}, runs=tmp_path)
    assert not list(tmp_path.glob("huge-*/checkpoint.pt"))


def test_a_full_disk_is_one_message(tmp_path: Path, tiny: dict[str, Any]) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-m", "kdzoo", "run", str(write(tmp_path, tiny))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_unusable_run_directories_are_one_message(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    (tmp_path / "runs").write_text("in the way")
    done = kdzoo_command("run", str(write(tmp_path, tiny)))
    assert done.returncode == 1
    assert "cannot be used as run directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_one_message(tmp_path: Path, tiny: dict[str, Any]) -> None:
    from kdzoo.pipeline.student import evaluate_run

    run = kdzoo.run(tiny, runs=tmp_path)
    (run.directory / "report.json").unlink()
    checkpoint = run.directory / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(kdzoo.CheckpointError, match=rf"is damaged.*; remove {run.directory} to"):
        kdzoo.run(tiny, runs=tmp_path)
    shutil.rmtree(run.directory)
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report
    curves = (run.directory / "classes.csv").read_bytes()
    (run.directory / "classes.csv").unlink()
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report
    assert (run.directory / "classes.csv").read_bytes() == curves
    (run.directory / "report.json").write_text("{")
    with pytest.raises(kdzoo.CheckpointError, match=r"report\.json: is damaged; remove it, and"):
        kdzoo.run(tiny, runs=tmp_path)
    (run.directory / "report.json").unlink()
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report
    (run.directory / "spec.yaml").write_text("a: [")
    with pytest.raises(kdzoo.CheckpointError, match=rf"{run.directory}: the spec that it was run"):
        evaluate_run(run.directory)


def test_damaged_weights_of_a_run_are_named_and_written_again(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    another = {**tiny, "policy": "all"}  # has the same teacher
    teacher = Path(run.report.directories["teacher"]) / "student.safetensors"
    student = run.directory / "student.safetensors"
    whole = {file: file.read_bytes() for file in (teacher, student)}
    for file in whole:
        file.write_bytes(whole[file][:-4])
    remedy = "remove it, and `kdzoo run` writes it again out of checkpoint.pt"
    with pytest.raises(kdzoo.CheckpointError, match=f"{teacher}: cannot be read: .*; {remedy}$"):
        kdzoo.run(another, runs=tmp_path)
    caplog.clear()
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report  # which is all that is left of it
    (said,) = (r.message for r in caplog.records if r.levelno == logging.WARNING)
    assert said.startswith(f"{student}: cannot be read: ")
    assert said.endswith(f"; {remedy}")
    with pytest.raises(kdzoo.CheckpointError, match=f"; {remedy}$"):
        kdzoo.load_student(run.directory)
    for file in whole:
        file.unlink()
    kdzoo.run(another, runs=tmp_path)
    kdzoo.run(tiny, runs=tmp_path)
    assert {file: file.read_bytes() for file in whole} == whole
    student.write_bytes(b"")
    (run.directory / "checkpoint.pt").unlink()
    with pytest.raises(kdzoo.CheckpointError, match=r"is empty; remove it, .* trains it again$"):
        kdzoo.load_student(run.directory)


def test_a_run_whose_checkpoint_is_gone_says_that_it_starts_over(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    assert "is gone" not in caplog.text
    (run.directory / "report.json").unlink()
    (run.directory / "checkpoint.pt").unlink()
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report
    assert f"student: {run.directory}/checkpoint.pt is gone; it starts over" in caplog.text


def test_what_does_not_fit_is_found_before_the_teacher_is_trained(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    many, few, none = (
        {"data": {"use": "planted", "per_class": 100, "validation": share}}
        for share in (0.1, 0.05, 0)
    )
    cka, shown = {"use": "tllm", "signal": "cka"}, {"use": "tllm", "source": "validation"}
    feature = {"use": "sample-feature", "layers": {"student": 7, "teacher": 0}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"policy": {"use": "fixed", "classes": ["nobody"]}}, 'there is no class "nobody"'),
        ({"policy": {"use": "fixed", "classes": list("abcdefghi")}}, "two at least must be"),
        ({"baseline": False}, "there is none; say `baseline: true`"),
        ({"policy": cka}, "training images, and 50 of each class are needed"),
        ({"policy": cka, **many, "student": "sample-knowing"}, 'declares no "penultimate" layer'),
        ({"policy": shown, **none}, "looks at validation images, and there are none"),
        ({"policy": shown, **few}, "validation images, and 10 of each class are needed"),
        ({"losses": ["ce", feature]}, "has no stage 7"),
        ({"data": {"use": "sample-odd", "wrong": "crash"}}, 'data "sample-odd" failed'),
        ({"stages": None}, "stages"),
    ]
    for change, said in changes:
        with pytest.raises(kdzoo.KdzooError, match=said):
            kdzoo.run({**tiny, **change}, runs=tmp_path)
    assert not list(tmp_path.glob("*/checkpoint.pt"))


def test_a_changed_environment_is_announced_on_resume(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = kdzoo.run({**tiny, "threads": 1}, runs=tmp_path)
    (run.directory / "report.json").unlink()
    kdzoo.run({**tiny, "threads": 2}, runs=tmp_path)
    assert "threads was 1 when this run began and is 2 now" in caplog.text
    assert torch.get_num_threads() == 1


def test_a_gpu_does_convolutions_in_a_fixed_order(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the caller had set is put back. That the bits are the same is test_gpu.py's."""
    cudnn, seen, original = torch.backends.cudnn, set(), Trainer._epoch

    def watched(self: Trainer, *arguments: Any) -> None:
        seen.add((cudnn.deterministic, cudnn.benchmark))
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "_epoch", watched)
    monkeypatch.setattr(cudnn, "benchmark", True)
    kdzoo.run(tiny, runs=tmp_path)
    assert seen == {(True, False)}
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


def test_a_damaged_environment_is_said_once(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Where something is computed that it could have changed."""
    run = kdzoo.run(tiny, runs=tmp_path)
    environment = run.directory / "environment.json"
    whole = environment.read_bytes()
    for damaged in (b"\xdf\xff", whole[:-9], whole.decode().encode("utf-16"), b""):
        for left, told in (("report.json", 1), ("report.html", 0)):  # unfinished, without a page
            environment.write_bytes(damaged)
            (run.directory / left).unlink()
            caplog.clear()
            assert kdzoo.run(tiny, runs=tmp_path).report == run.report
            said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
            assert len(said) == told
            assert all(text.startswith(f"{environment}: is damaged; ") for text in said)


def test_observers_are_told_everything_in_order(tmp_path: Path, tiny: dict[str, Any]) -> None:
    recorder: Any = registry().find(Observer.kind, "sample-recorder")
    recorder.calls.clear()
    kdzoo.run({**tiny, "observers": ["sample-recorder"], "log_every": 4}, runs=tmp_path)
    student = [call for call in recorder.calls if call[1] == "student"]
    assert student[0] == ("start", "student", 0, None)
    assert student[-1] == ("end", "student", None)
    steps = [call for call in student if call[0] == "steps"]
    seen = [n for call in steps for n in range(call[2], call[2] + len(call[3]["loss/total"]))]
    assert seen == list(range(1, len(seen) + 1))
    assert set(steps[0][3]) == {"loss/total", "loss/ce", "loss/kd"}
    epochs = [call[2] for call in student if call[0] == "epoch"]
    assert [record.epoch for record in epochs] == [1, 2, 3, 4]
    assert epochs[-1].step == seen[-1]
    assert epochs[-1].curves.student.shape == (4, 10)
    roles = [call[1] for call in recorder.calls if call[0] == "start"]
    assert roles == ["teacher", "baseline", "student"]


def test_odd_images_and_no_validation(tmp_path: Path, tiny: dict[str, Any]) -> None:
    odd = {**tiny, "data": {"use": "sample-odd", "validation": 0}, "student": "small-cnn"}
    run = kdzoo.run(odd, runs=tmp_path)
    assert run.report.best_validation is None
    assert list(run.report.student.classes) == ["x", "y", "z"]
    with pytest.raises(kdzoo.PluginError, match='data "sample-odd" failed: KeyError'):
        kdzoo.run({**odd, "data": {"use": "sample-odd", "wrong": "crash"}}, runs=tmp_path)


class NotPlain(kdzoo.Observer):
    """Its state could be written, and never read back."""

    name = "not-plain"

    def state_dict(self):
        import numpy as np

        return {"loss": np.float64(1.0)}


class Fails(kdzoo.Observer):
    """Fails at the end of an epoch."""

    name = "fails"

    def epoch(self, run, record):
        raise ConnectionError("server down")


class Exits(kdzoo.Observer):
    """Ends the process at the end of an epoch."""

    name = "exits"

    def epoch(self, run, record):
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (NotPlain, r"checkpoint\.observers\.not-plain\.loss is numpy\.float64; a state must hold"),
        (Fails, 'observer "fails" failed: ConnectionError: server down'),
        (Exits, 'observer "exits" failed: SystemExit: 0'),
    ],
)
def test_a_component_that_fails_is_named(
    tmp_path: Path,
    tiny: dict[str, Any],
    observer: type,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry()._components["observer"], observer.name, observer)
    with pytest.raises(kdzoo.KdzooError, match=message):
        kdzoo.run({**tiny, "observers": [observer.name]}, runs=tmp_path)


def test_what_was_written_and_is_gone_is_noticed(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    (run.directory / "student.safetensors").unlink()
    kdzoo.run(tiny, runs=tmp_path)  # finished from its checkpoint
    assert kdzoo.load_student(run.directory)
    curves = Path(run.report.directories["baseline"]) / "classes.csv"
    curves.write_text("".join(curves.open().readlines()[:-10]))
    with pytest.raises(kdzoo.CheckpointError, match="epochs are missing; remove"):
        kdzoo.run({**tiny, "seed": 0, "policy": "all"}, runs=tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    wide = kdzoo.run({**tiny, "student": {"use": "mlp", "widths": [9]}}, runs=tmp_path)
    (run.directory / "checkpoint.pt").write_bytes((wide.directory / "checkpoint.pt").read_bytes())
    (run.directory / "report.json").unlink()
    with pytest.raises(
        kdzoo.CheckpointError, match=f"is not of this run; remove {run.directory} to"
    ):
        kdzoo.run(tiny, runs=tmp_path)


class Mean(kdzoo.Loss):
    """The most natural mistake."""

    name = "mean"
    guidance = "label"

    def forward(self, student, teacher, batch):
        return torch.nn.functional.cross_entropy(student.logits, batch.targets)


class EndsBadly(kdzoo.Observer):
    """Its end fails whatever happened before."""

    name = "ends-badly"

    def end(self, run, error):
        raise ValueError("end failed")


def test_a_mistake_in_a_loss_does_not_wait_for_the_teacher(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry()._components["loss"], "mean", Mean)
    with pytest.raises(kdzoo.PluginError, match=r'loss "mean" answered \(\); it must be one value'):
        kdzoo.run({**tiny, "losses": ["ce", "kd", "mean"]}, runs=tmp_path)
    assert not list(tmp_path.glob("*"))


def test_the_end_of_an_observer_hides_no_other_error(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry()._components["observer"], "ends-badly", EndsBadly)
    bad = {**tiny, "observers": ["ends-badly"], "teacher": None, "baseline": False}
    losses = [{"use": "sample-explodes", "after": 1.0}]
    with pytest.raises(kdzoo.NonFiniteError, match="became nan"):
        kdzoo.run({**bad, "losses": losses, "policy": "all"}, runs=tmp_path)
    with pytest.raises(kdzoo.PluginError, match='observer "ends-badly" failed: ValueError'):
        kdzoo.run({**bad, "losses": ["ce"], "policy": "all"}, runs=tmp_path)


def test_a_baseline_learns_without_the_parts_it_does_not_have(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["losses"].append("sample-feature")
    learn = ["student", "losses.sample-feature"]
    run = kdzoo.run({**tiny, "student": "sample-dropout", "learn": learn}, runs=tmp_path)
    baseline = kdzoo.read_spec(Path(run.report.directories["baseline"]) / "spec.yaml")
    assert baseline.stages[0].learn == ("student",)


def test_evaluation_needs_no_more_than_the_student_and_the_data(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    from kdzoo.pipeline.student import evaluate_run

    other = write(tmp_path, {**tiny, "name": "other"}, "other.yaml")
    run = kdzoo.run({**tiny, "teacher": {"run": str(other)}}, runs=tmp_path / "runs")
    other.unlink()
    assert evaluate_run(run.directory) == run.report.student


def test_evaluation_on_other_classes_is_refused(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of a data set that has changed would be others than the student's."""
    import planted

    from kdzoo.pipeline.student import evaluate_run

    run = kdzoo.run(
        {**tiny, "teacher": None, "baseline": False, "losses": ["ce"], "policy": "all"},
        runs=tmp_path,
    )
    source = registry().find("dataset", "planted")
    load = source.load

    def renamed(self: Any) -> kdzoo.ImageData:
        return dataclasses.replace(load(self), classes=(*planted.CLASSES[:-1], "z"))

    monkeypatch.setattr(source, "load", renamed)
    with pytest.raises(kdzoo.SpecError, match="class 9 is j there and z here"):
        evaluate_run(run.directory)


def test_class_names_are_not_markup(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    from rich.console import Console

    from kdzoo.report.summary import Report, Score, summary_lines, summary_table
    from kdzoo.training.evaluate import Evaluation

    evaluation = Evaluation(
        num_classes=2,
        targets=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        answers=np.array([0, 1, 1, 1, 0, 1, 1, 1]),
        corrected=None,
        correction=None,
        confidence=np.ones(8),
        among_five=np.ones(8, bool),
    )
    score = Score.of(evaluation, ["[/b]", "[red]x"])
    report = Report(
        name="x",
        epochs=1,
        parameters=1,
        data="these",
        images={"[/b]": 4, "[red]x": 4},
        student=score,
        teacher=score,
        teacher_weights={"[/b]": 0.0},
    )
    console = Console(record=True, markup=False, width=100)
    console.print(summary_table(report))
    assert "[/b]: 25.0 %" in console.export_text()
    assert "No longer taught: [/b]." in summary_lines(report)


def test_what_a_killed_run_had_half_written_is_removed(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    (run.directory / ".checkpoint.pt.1.partial").write_bytes(b"half")
    (run.directory / "report.json").unlink()
    kdzoo.run(tiny, runs=tmp_path)
    assert not list(run.directory.glob(".*.partial"))
