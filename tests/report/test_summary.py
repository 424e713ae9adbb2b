"""report.json: what it says of student, baseline and teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdzoo
from kdzoo.report.evidence import mcnemar
from kdzoo.report.summary import Comparison, Report, Score, summary_lines
from kdzoo.training.answers_file import read_answers
from kdzoo.training.curves_file import read_curves
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Evaluation


def random_score(classes: int, names: list[str], seed: int) -> tuple[Score, Evaluation]:
    draw = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), 50)
    answers = np.where(
        draw.random(len(targets)) < 0.7, targets, draw.integers(0, classes, len(targets))
    )
    evaluation = Evaluation(
        num_classes=classes,
        targets=targets,
        answers=answers,
        corrected=answers,
        correction=None,
        confidence=draw.random(len(targets)),
        among_five=answers == targets,
    )
    return Score.of(evaluation, names), evaluation


def test_the_comparison_is_of_the_two_runs_answers(tmp_path: Path, tiny: dict[str, Any]) -> None:
    report = kdzoo.run(tiny, runs=tmp_path).report
    assert report.baseline is not None
    assert report.comparison is not None
    for name, difference in report.comparison.differences.items():
        own, other = report.student.classes[name], report.baseline.classes[name]
        assert abs(difference - (own - other)) < 2e-6
        low, high = report.comparison.intervals[name]
        assert low < high
        assert low - 0.01 < difference < high + 0.01
    assert report.comparison.harm >= 0
    assert report.images == dict.fromkeys("abcdefghij", 300)
    assert report.teacher_parameters == 11 * 16 + 16 + 16 * 10 + 10
    assert set(report.comparison.corrected_differences) == set(report.comparison.differences)
    (own_directory,) = (p for p in tmp_path.glob("tiny-*") if p.name.count("-") == 1)
    own = read_answers(RunDirectory(own_directory))
    others = {
        role: read_answers(RunDirectory(Path(path))) for role, path in report.directories.items()
    }
    assert report.agreement == np.mean(own[1] == others["teacher"][1])
    right = [answers == targets for targets, answers in (others["baseline"], own)]
    assert report.comparison.mcnemar == mcnemar(*right)
    names = list(report.student.classes)
    added = []
    for pair in report.comparison.confusions:
        of, answered = names.index(pair.of), names.index(pair.answered)
        counts = [
            int(((targets == of) & (answers == answered)).sum())
            for targets, answers in (own, others["baseline"])
        ]
        assert [pair.student, pair.baseline] == counts
        assert of != answered
        added.append(pair.student - pair.baseline)
    assert added == sorted(added, reverse=True)
    assert min(added) > 0


def test_label_weights_that_a_policy_changed_are_in_the_report(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    policy = {"use": "fixed", "classes": ["b", "c"]}
    run = kdzoo.run({**tiny, "policy": policy}, runs=tmp_path)
    _, curves = read_curves(RunDirectory(run.directory).classes)
    last = curves.label_weight[-1]
    assert set(run.report.label_weights) == {"b", "c"}
    assert list(run.report.label_weights.values()) == [round(w, 6) for w in last[1:3]]
    said = " ".join(summary_lines(run.report))
    assert "Label weights other than 1: " in said
    assert f"b ({last[1]:.3g})" in said


def test_without_validation_images_nothing_is_corrected(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["data"]["validation"] = 0
    run = kdzoo.run(tiny, runs=tmp_path)
    report = run.report
    assert report.comparison is not None
    assert report.comparison.corrected_differences == report.student.corrected == {}
    assert report.student.corrected_accuracy is None
    with pytest.raises(kdzoo.CheckpointError, match=r"report\.json.*no validation images"):
        kdzoo.load_student(run.directory, corrected=True)


def test_logits_that_are_not_finite_have_no_calibration() -> None:
    """A teacher may have such, where `check: false` lets it pass."""
    score, evaluation = random_score(3, ["a", "b", "c"], 0)
    assert score.calibration_error is not None
    broken = dataclasses.replace(evaluation, confidence=np.full(150, np.nan))
    score = Score.of(broken, ["a", "b", "c"])
    assert score.calibration_error is None
    assert Score.model_validate_json(score.as_json()) == score


def test_a_thousand_classes_stay_readable() -> None:
    names = [f"n{number:08}" for number in range(1000)]
    (student, one), (baseline, two) = (random_score(1000, names, seed) for seed in (0, 1))
    pairs = (student, one.answers), (baseline, two.answers)
    report = Report(
        name="many",
        epochs=1,
        parameters=1,
        data="these",
        images=dict.fromkeys(names, 50),
        student=student,
        baseline=baseline,
        teacher=student,
        comparison=Comparison.of(*pairs, one.targets, names),
    )
    assert len(report.as_json()) < 500_000
    assert Report.model_validate_json(report.as_json()) == report


def test_a_run_of_an_older_version_is_tested_again_but_not_trained(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path)
    (run.directory / "answers.safetensors").unlink()
    old = json.loads((run.directory / "report.json").read_text())
    old["comparison"]["corrected"] = old["comparison"].pop("corrected_differences")
    (run.directory / "report.json").write_text(json.dumps(old))
    metrics = (run.directory / "metrics.jsonl").read_bytes()
    assert kdzoo.run(tiny, runs=tmp_path).report == run.report
    assert (run.directory / "metrics.jsonl").read_bytes() == metrics


def test_a_teacher_of_other_images_is_tested_on_these(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """What it knows of its own test images is no answer to ours."""
    other = {**tiny, "name": "other", "data": {**tiny["data"], "draw": 7}, "baseline": False}
    del other["teacher"], other["policy"]
    other["losses"] = ["ce"]
    file = tmp_path / "other.yaml"
    file.write_text(json.dumps(other))
    report = kdzoo.run({**tiny, "teacher": {"run": str(file)}}, runs=tmp_path / "runs").report
    own = Report.read(Path(report.directories["teacher"]) / "report.json").student
    assert report.teacher is not None
    assert report.teacher.classes != own.classes
    assert report.agreement is not None
