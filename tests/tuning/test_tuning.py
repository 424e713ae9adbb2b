"""Studies: trials are runs, the test images wait for the best one, bad input is found at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

import kdzoo
from kdzoo.spec.read import read_spec
from kdzoo.spec.tuning import read_tuning

SPACE = {
    "losses.kd.temperature": {"low": 1, "high": 10},
    "policy": {"choices": ["all", {"use": "tllm", "start_epoch": 1}]},
    "policy.patience": {"low": 1, "high": 3, "step": 1},
}


@pytest.fixture
def tuned(tiny: dict[str, Any]) -> dict[str, Any]:
    """Three short trials."""
    return {
        **tiny,
        "data": {"use": "planted", "per_class": 12, "validation": 0.25},
        "tune": {"space": SPACE, "trials": 3},
    }


def test_a_study_tests_the_best_trial_alone(tmp_path: Path, tuned: dict[str, Any]) -> None:
    done = kdzoo.tune(tuned, runs=tmp_path)
    trials = done.study.get_trials()
    assert len(trials) == 3
    assert all(("policy.patience" in t.params) == (t.params["policy"] != "all") for t in trials)
    assert isinstance(done.final, kdzoo.Run)
    tested = {json.loads(p.read_bytes())["name"] for p in tmp_path.glob("*/report.json")}
    assert tested == {"tiny", "tiny-teacher", "tiny-baseline"}
    # What best.yaml says is the best trial itself: its run goes on to the test and no further.
    spec = read_spec(done.directory / "best.yaml")
    assert spec.threads == done.best.user_attrs["threads"]
    before = {path.name for path in tmp_path.iterdir()}
    again = kdzoo.run(spec, runs=tmp_path)
    assert again.directory.name in before
    assert again.directory != done.final.directory


def test_trials_share_what_the_teacher_says(tmp_path: Path, tuned: dict[str, Any]) -> None:
    """It is stored unless the spec says otherwise, and changes nothing."""
    found = []
    for name, extra in (("by itself", {}), ("not", {"store_gb": 0})):
        done = kdzoo.tune({**tuned, **extra}, runs=tmp_path / name)
        found.append([(t.params, t.values) for t in done.study.get_trials()])
        stored = list((tmp_path / name / ".cache" / "teacher").glob("*/*.rows"))
        assert len(stored) == (0 if extra else tuned["train"]["epochs"])
        assert "store_gb: 4" not in (done.directory / "best.yaml").read_text()
    assert found[0] == found[1]


def test_the_study_goes_on_and_opens_in_optuna(tmp_path: Path, tuned: dict[str, Any]) -> None:
    done = kdzoo.tune(tuned, runs=tmp_path)
    more = kdzoo.tune(tuned, ["tune.trials=4"], runs=tmp_path, resume=True)
    assert more.directory == done.directory
    url = f"sqlite:///{more.directory / 'study.db'}"
    assert len(optuna.load_study(study_name="tiny", storage=url).trials) == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("losses.kd.temprature", {"low": 1, "high": 2}, 'did you mean "temperature"'),
        ("losses.kd.temperature", {"low": 2, "high": 1}, "low must be below high"),
        ("losses.kd.temperature", {"low": -1, "high": 1}, "must be greater than 0"),
        ("losses.kd.temperature", {"low": "1", "high": 2}, "must be a number, not '1'$"),
        ("policy.patience", {"choices": ["many"]}, "whole number"),
        ("policy.patience", {"choices": []}, "is empty"),
        ("policy.patience", {"choices": [1, 1.0]}, "has 1.0 twice"),
        ("policy.patiense", {"low": 1, "high": 3}, "belongs to none"),
        ("seed", {"low": 1, "high": 3}, "list `seeds` instead"),
        ("train.epochs", {"low": 1, "high": 8, "step": 2}, "do not lead"),
    ],
)
def test_bad_spaces_are_named(
    tuned: dict[str, Any], key: str, value: dict[str, Any], message: str
) -> None:
    tuned["tune"]["space"] = {**SPACE, key: value}
    with pytest.raises(kdzoo.SpecError, match=message):
        read_tuning(tuned)


def test_the_space_that_components_carry(tuned: dict[str, Any]) -> None:
    tuned["tune"]["space"] = "default"
    assert {"losses.kd.temperature", "policy.patience", "policy.margin"} <= set(
        read_tuning(tuned).space
    )


def test_a_storage_that_holds_another_space(tmp_path: Path, tuned: dict[str, Any]) -> None:
    storage = f"tune.storage={tmp_path / 'study.journal'}"
    kdzoo.tune(tuned, [storage, "tune.trials=1"], runs=tmp_path)
    tuned["tune"]["space"] = {"losses.kd.temperature": {"low": 1, "high": 5}}
    with pytest.raises(kdzoo.SpecError, match="holds another study"):
        kdzoo.tune(tuned, [storage], runs=tmp_path)


def test_a_storage_that_is_no_journal(tmp_path: Path, tuned: dict[str, Any]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("temperature 4 was best\n")
    with pytest.raises(kdzoo.RunError, match=r"notes\.txt: is no journal of Optuna's"):
        kdzoo.tune(tuned, [f"tune.storage={file}"], runs=tmp_path)
    assert file.read_text() == "temperature 4 was best\n"


def test_an_unreachable_database(tmp_path: Path, tuned: dict[str, Any]) -> None:
    with pytest.raises(kdzoo.RunError, match="cannot be used"):
        kdzoo.tune(tuned, ["tune.storage=sqlite:////nowhere/study.db"], runs=tmp_path)
    assert not list(tmp_path.glob("tiny-*/checkpoint.pt"))


def test_a_grid_ends_when_all_of_it_is_tried(tmp_path: Path, tuned: dict[str, Any]) -> None:
    policies = ["all", {"use": "tllm", "start_epoch": 1}]
    tuned["tune"] = {"space": {"policy": {"choices": policies}}, "sampler": "grid", "trials": 9}
    for _ in range(2):
        done = kdzoo.tune(tuned, runs=tmp_path)
        assert {t.params["policy"] for t in done.study.trials} == {"all", json.dumps(policies[1])}
        assert len(done.study.trials) == 2


def test_a_study_whose_trials_are_all_pruned_says_so(tmp_path: Path, tuned: dict[str, Any]) -> None:
    tuned["tune"]["pruner"] = {"use": "threshold", "lower": 1.0}
    with pytest.raises(kdzoo.RunError, match="no trial of 3 was finished: all were pruned"):
        kdzoo.tune(tuned, runs=tmp_path)


def test_a_choice_that_does_not_fit_is_found_before_any_training(
    tmp_path: Path, tuned: dict[str, Any]
) -> None:
    hint = {"use": "fitnet", "layers": [{"student": "hidden0", "teacher": "hidden0"}]}
    tuned["losses"] = [*tuned["losses"], hint]
    adapters = {"choices": ["linear", "regressor"]}  # the last one is for pictures
    tuned["tune"]["space"] = {"losses.fitnet.adapter": adapters}
    with pytest.raises(kdzoo.SpecError, match="regressor"):
        kdzoo.tune(tuned, runs=tmp_path)
    assert not list(tmp_path.glob("*/checkpoint.pt"))


def test_keys_of_a_stage_below_what_is_chosen(tuned: dict[str, Any]) -> None:
    stage = {key: tuned.pop(key) for key in ("train", "losses", "policy")}
    tuned["stages"] = [stage, stage]
    tuned["tune"]["space"] = {
        "stages.1.policy": SPACE["policy"],
        "stages.1.policy.patience": SPACE["policy.patience"],
    }
    tuning = read_tuning(tuned)
    one, other = (
        tuning.derive(lambda key, domain, i=i: domain.ends[i % len(domain.ends)]).data
        for i in (0, 1)
    )
    assert one["stages"][1]["policy"] == {"use": "all"}
    assert other["stages"][1]["policy"] == {"use": "tllm", "start_epoch": 1, "patience": 3}
    assert other["stages"][0]["policy"] == stage["policy"]


@pytest.mark.parametrize(
    ("chapter", "message"),
    [
        ({"sampler": "tpee"}, 'did you mean "tpe"'),
        ({"sampler": {"use": "tpe", "n_startup": 3}}, 'did you mean "n_startup_trials"'),
        ({"sampler": {"use": "tpe", "n_startup_trials": "three"}}, "sampler tpe"),
        ({"sampler": "grid"}, "a grid needs a step, or choices"),
        ({"pruner": {"use": "median", "n_startup_trials": -1}}, "does not take these"),
        ({"pruner": "wilcoxon"}, "list more `seeds`"),
        ({"pruner": "median", "objective": ["accuracy", "worst_class"]}, "one objective only"),
        ({"pruner": {"use": "hyperband", "min_resource": 0}}, "pruner hyperband"),
        ({"sampler": "bruteforce"}, "sampler bruteforce"),
        ({"objective": "loss"}, "objective"),
        ({"objective": ["accuracy", "accuracy"]}, "the same one twice"),
        ({"space": ["policy"]}, "must be `default`, or a range"),
        ({"trials": 0}, "trials"),
    ],
)
def test_bad_searches_are_named_before_any_training(
    tmp_path: Path, tuned: dict[str, Any], chapter: dict[str, Any], message: str
) -> None:
    tuned["tune"] |= chapter
    with pytest.raises(kdzoo.SpecError, match=message):
        kdzoo.tune(tuned, runs=tmp_path)
    assert not list(tmp_path.glob("*/checkpoint.pt"))
