"""A study's page: whole in one file, from trials that nobody trained."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made import HOSTILE, finished_run
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from page_reader import Page

import kdzoo
from kdzoo.tuning.outcome import Outcome
from kdzoo.tuning.page import write_tuning_page
from kdzoo.tuning.table import tuning_lines, tuning_table
from kdzoo.tuning.trials import best_trial
from kdzoo.tuning.trials import number as shown
from kdzoo.words import counted

LOG = FloatDistribution(0.1, 2, log=True)
POLICY = CategoricalDistribution(["all", HOSTILE, None])


def made_study(objective: list[str], trials: int = 30) -> optuna.Study:
    directions = ["minimize" if name == "hurt_classes" else "maximize" for name in objective]
    study = optuna.create_study(study_name="made", directions=directions)
    study.set_user_attr("objective", objective)
    study.set_user_attr("space", {"policy": "{}", "losses.kd.weight": "{}"})
    for number in range(trials):
        pruned = len(objective) == 1 and number % 7 == 3
        params: dict[str, Any] = {"policy": POLICY.choices[number % 3]}
        if number % 3 < 2:
            params["losses.kd.weight"] = 0.1 + 0.03 * number
        known = {"policy": POLICY, "losses.kd.weight": LOG}
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                params=params,
                distributions={key: known[key] for key in params},
                values=None if pruned else [(number * 7 % 61) / 61, number % 5][: len(objective)],
                intermediate_values={
                    step: step / 10 for step in range(1, 3 if pruned else 5) if len(objective) == 1
                },
            )
        )
    return study


@pytest.mark.parametrize("trials", [1, 30, 60])
@pytest.mark.parametrize("objective", [["accuracy"], ["accuracy", "hurt_classes"]])
def test_it_is_whole_and_says_what_the_files_say(
    tmp_path: Path, objective: list[str], trials: int
) -> None:
    study, several = made_study(objective, trials), len(objective) > 1
    directory = tmp_path / "study"
    directory.mkdir()
    best = best_trial(study)
    tested = [kdzoo.Report.read(finished_run(tmp_path / f"r{s}", seed=s).report) for s in (0, 1)]
    outcome = Outcome.of(study, best, tested, again=True)
    write_tuning_page(directory, study, tmp_path / "made-1234567890", outcome)
    lines = tuning_lines(study, outcome)
    text = (directory / "report.html").read_text(encoding="utf-8")
    assert "trained again on all training images" in text
    page = Page(text)
    links = {a["href"] or "" for a in page.all("a")}
    assert {link for link in links if not link.startswith("#")} == {
        "report.json",
        "report.csv",
        "../made-1234567890/report.html",
    }
    assert not re.search(r"https?://|@import|url\(", text)
    assert "<script>alert" not in text
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(a.get("role") == "img" and a.get("aria-label") for a in page.all("svg"))
    report = json.loads((directory / "report.json").read_bytes())
    assert report["trained_again"]
    assert report["validation"] == dict(zip(objective, best.values, strict=True))
    assert report["test"] == {
        "accuracy": np.mean([run.student.accuracy for run in tested]),
        **(
            {"hurt_classes": np.mean([run.against_baseline()[1] for run in tested])}
            if several
            else {}
        ),
    }
    assert set(report["test"]) == {"accuracy", *objective}
    for name, value in report["test"].items():
        row = [name, shown(name, report["validation"][name]), shown(name, value)]
        assert row in page.cells
        assert f"{name}: {row[1]} on the validation images, {row[2]} on the test images." in lines
    with open(directory / "report.csv", newline="", encoding="utf-8") as stream:
        assert len(report["trials"]) == len(list(csv.DictReader(stream))) == trials
    complete = [t for t in report["trials"] if t["state"] == "complete"]
    front = len(report["front"])
    which = f"the best in accuracy of the {counted(front, 'trial')} on the Pareto front"
    said = f"Trial {report['best']}, {which if several else 'the best one'}, was trained again"
    assert said in text
    assert any(line.startswith(said) for line in lines)
    assert any(f"Pareto front, {counted(front, 'trial')} of" in line for line in lines) == several
    # A mark for each complete trial: in a history and a slice for each objective, in the front.
    weighed = sum("losses.kd.weight" in t["params"] for t in complete)
    marks = [a for a in page.all("circle") if "trial" in (a["class"] or "")]
    assert len(marks) == len(objective) * (2 * len(complete) + weighed) + several * len(complete)
    curves = re.search(r'<section id="curves".*?</section>', text, re.DOTALL)
    assert (curves is None) == several
    if curves is not None:  # of each trial, but no more than can be told apart
        lines = re.findall(r'<path class="(student|interval)" d="M([^"]+)"', curves[0])
        assert len(lines) == min(trials, 40)
        assert [kind for kind, _ in lines].count("student") == 1
        assert {path.count("L") for _, path in lines} <= {1, 3}  # pruned ones end early
    best = [t["values"]["accuracy"] for t in complete if t["number"] == report["best"]]
    assert best == [max(t["values"]["accuracy"] for t in complete)]
    rows = [cells for cells in page.cells if cells and cells[0].isdigit()]
    assert [int(cells[0]) for cells in rows] == [t["number"] for t in report["trials"]]
    states = {int(cells[0]): cells[1] for cells in rows}
    assert [n for n, state in states.items() if state.endswith(", tested")] == [report["best"]]
    assert set(report["front"]) == {t.number for t in study.best_trials}


def test_harm_is_not_cut_off_at_the_axes(tmp_path: Path) -> None:
    """Beside a small plot there is room for eight characters; the unit is in the title."""
    study = optuna.create_study(study_name="made", directions=["minimize", "maximize"])
    study.set_user_attr("objective", ["harm", "accuracy"])
    study.set_user_attr("space", {"losses.kd.weight": "{}", "losses.kd.alpha": "{}"})
    for place in range(3):
        study.add_trial(
            create_trial(
                params={"losses.kd.weight": 0.5 + place / 10, "losses.kd.alpha": 1.0},
                distributions={"losses.kd.weight": LOG, "losses.kd.alpha": LOG},
                values=[3.7812 - place, 0.5],
            )
        )
    reports = [kdzoo.Report.read(finished_run(tmp_path / "run").report)]
    outcome = Outcome.of(study, best_trial(study), reports, again=False)
    assert "its policy reads validation images" in outcome.said
    assert [row[0] for row in outcome.rows] == ["accuracy", "harm"]
    assert reports[0].comparison is not None
    assert outcome.test["harm"] == reports[0].comparison.harm
    write_tuning_page(tmp_path, study, tmp_path / "run", outcome)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    plots = re.findall(r'<svg viewBox="0 0 (?:260 132|720 226)".*?</svg>', text, re.DOTALL)
    labels = [label for plot in plots for label in re.findall(r'"end">([^<]+)</text>', plot)]
    assert "378.12" in labels
    assert max(map(len, labels)) <= 8
    assert "harm in points by losses.kd.weight" in text
    heads = [str(column.header) for column in tuning_table(study).columns]
    assert heads == ["trial", "harm", "accuracy", "weight", "alpha"]
