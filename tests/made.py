"""Finished runs that nobody trained: files with drawn numbers, for reports with many classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from kdzoo.extend.contracts import Floats, TeachingCurves
from kdzoo.report.summary import BestValidation, Comparison, Report, Score
from kdzoo.training.answers_file import write_answers
from kdzoo.training.curves_file import CurvesTable
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Evaluation

IMAGES = 50  # of each class
HOSTILE = '<script>alert("1")</script>'
NAMES = (
    "tench",
    HOSTILE,
    "=1+2",
    "a, b",
    "long " * 20,
    "ostrich",
    "&amp;",
    "hen",
    "Ünïcödé",
    "'\"",
)


def names_of(classes: int) -> list[str]:
    return [NAMES[c] if c < len(NAMES) else f"class {c}" for c in range(classes)]


def evaluation(accuracy: np.ndarray, draw: np.random.Generator) -> Evaluation:
    classes = len(accuracy)
    targets = np.repeat(np.arange(classes), IMAGES)
    wrong = (targets + draw.integers(1, min(classes, 6), len(targets))) % classes
    answers = np.where(draw.random(len(targets)) < accuracy[targets], targets, wrong)
    return Evaluation(
        num_classes=classes,
        targets=targets,
        answers=answers,
        corrected=answers,
        correction=None,
        confidence=draw.random(len(targets)),
        among_five=answers == targets,
    )


def finished_run(
    path: Path,
    *,
    classes: int = 10,
    epochs: int = 8,
    seed: int = 0,
    effects: np.ndarray | None = None,
    untaught: tuple[int, ...] = (1,),
    label_weights: dict[str, float] | None = None,
    changes: dict[str, Any] | None = None,
    parameters: tuple[int, int] = (1_000, 10_000),
    data: str = "these",
) -> RunDirectory:
    """A directory as a run leaves it, and beside it its baseline's answers. ``effects`` (C,) is
    what the teacher does to each class."""
    draw, names = np.random.default_rng(seed), names_of(classes)
    level = np.random.default_rng(99).uniform(0.5, 0.9, classes)
    shift = np.zeros(classes) if effects is None else effects
    student, baseline, teacher = (
        evaluation(a, draw) for a in ((level + shift).clip(0, 1), level, level + 0.05)
    )
    scores = [Score.of(e, names) for e in (student, baseline, teacher)]
    report = Report(
        name="made",
        epochs=epochs,
        parameters=parameters[0],
        teacher_parameters=parameters[1],
        data=data,
        images=dict.fromkeys(names, IMAGES),
        student=scores[0],
        best_validation=BestValidation(epoch=3, validation=0.7, test=0.69),
        baseline=scores[1],
        teacher=scores[2],
        comparison=Comparison.of(
            (scores[0], student.answers), (scores[1], baseline.answers), student.targets, names
        ),
        agreement=0.8,
        untaught=tuple(names[c] for c in untaught),
        teacher_weights={names[c]: 0.0 for c in untaught},
        label_weights=label_weights or {},
        directories={"teacher": "runs/t", "baseline": f"runs/of-{path.name}"},
    )
    taught = np.ones((epochs, classes))
    taught[epochs // 2 :, list(untaught)] = 0
    curves = [draw.random((epochs, classes)) for _ in range(7)]
    directory = RunDirectory(path)
    path.mkdir(parents=True)
    beside = RunDirectory(path.with_name(f"of-{path.name}"))
    beside.path.mkdir()
    write_answers(beside, baseline)
    directory.report.write_bytes(report.as_json())
    directory.classes.write_bytes(
        CurvesTable(names).content(TeachingCurves(*curves[:6], taught, taught, curves[6]))
    )
    directory.student.touch()
    directory.environment.write_text('{"versions": {"torch": "2.0"}}')
    spec = {
        "name": "made",
        "seed": seed,
        "data": {"use": "image-folder"},
        "teacher": {"use": "wide", "checkpoint": "/t.pt"},
        "student": {"use": "narrow"},
        "train": {"epochs": epochs},
        "losses": [{"use": "kd", "id": "kd", "temperature": 4}],
        **(changes or {}),
    }
    with open(directory.spec, "w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    write_answers(directory, student)
    return directory


def earlier_run(
    path: Path,
    gap: Floats,
    *,
    seed: int = 0,
    classes: str = "abcdefghij",
    taught: float = 1.0,
    validation: bool = True,
    without: int = 0,
    data: str = "these",
) -> str:
    """A run of five epochs whose student ended ``gap`` (C,) from its baseline on the validation
    images, as far as its spec, its curves and a report go. The first epochs may be ``without`` a
    baseline."""
    path.mkdir(parents=True)
    spec = {
        "name": "earlier",
        "seed": seed,
        "data": "planted",
        "student": "mlp",
        "train": {"epochs": 5},
        "losses": ["ce"],
    }
    with open(path / "spec.yaml", "w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    ones = np.ones((5, len(gap)))
    student = 0.7 * ones
    student[-1] += 5 * gap  # on average over the five epochs
    shown = TeachingCurves(
        samples=ones,
        student=student,
        teacher=ones,
        agreement=ones,
        divergence=ones,
        predicted=ones,
        teacher_weight=taught * ones,
        label_weight=ones,
        baseline=np.where(np.arange(5)[:, None] < without, np.nan, 0.7 * ones),
        state=ones,
    )
    measured = replace(shown, validation=shown) if validation else shown
    (path / "classes.csv").write_bytes(CurvesTable(list(classes)).content(measured))
    report = Report(
        name="earlier",
        epochs=5,
        parameters=1,
        data=data,
        images=dict.fromkeys(classes, IMAGES),
        student=Score.of(evaluation(student[-1].clip(0, 1), np.random.default_rng(0)), classes),
    )
    (path / "report.json").write_bytes(report.as_json())
    return str(path)
