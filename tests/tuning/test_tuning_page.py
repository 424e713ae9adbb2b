"""A study's page: whole in one file, from trials that nobody trained."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from made import HOSTILE
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from page_reader import Page

from kdzoo.tuning.page import write_tuning_page

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
    study = made_study(objective, trials)
    directory = tmp_path / "study"
    directory.mkdir()
    write_tuning_page(directory, study, tmp_path / "made-1234567890", again=True)
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
    with open(directory / "report.csv", newline="", encoding="utf-8") as stream:
        assert len(report["trials"]) == len(list(csv.DictReader(stream))) == trials
    complete = [t for t in report["trials"] if t["state"] == "complete"]
    # A mark for each complete trial: in a history and a slice for each objective, in the front.
    several = len(objective) > 1
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
    assert set(report["front"]) == {t.number for t in study.best_trials}
