"""Studies: trials are runs, the test images wait for the best one, bad input is found at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import Engine, event

import kdzoo
from kdzoo.spec.read import read_spec
from kdzoo.spec.tuning import read_tuning
from kdzoo.tuning.search import SeededSampler, make_pruner

SPACE = {
    "losses.kd.temperature": {"low": 1, "high": 10},
    "policy": {"choices": ["all", {"use": "tllm", "start_epoch": 1}]},
    "policy.patience": {"low": 1, "high": 3, "step": 1},
}


@pytest.fixture(autouse=True, scope="module")
def hasty_database() -> Iterator[None]:
    """As files are (tests/conftest.py): a study's database does not wait for the disk either."""

    def connected(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


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


def test_best_yaml_gives_the_best_trials_student_again(
    tmp_path: Path, tuned: dict[str, Any]
) -> None:
    done = kdzoo.tune({**tuned, "threads": 1}, runs=tmp_path)
    again = kdzoo.run(done.directory / "best.yaml", runs=tmp_path / "elsewhere")
    trained = tmp_path / done.best.user_attrs["runs"][0]
    one, other = ((path / "student.safetensors") for path in (trained, again.directory))
    assert one.read_bytes() == other.read_bytes()


def test_a_policy_that_reads_validation_images_keeps_them(
    tmp_path: Path, tuned: dict[str, Any]
) -> None:
    """There is nothing to train again: the best trial itself is tested."""
    policy = {"use": "tllm", "start_epoch": 1, "source": "validation"}
    tune = {"space": {"losses.kd.temperature": {"low": 1, "high": 10}}, "trials": 2}
    data = {**tuned["data"], "per_class": 48}
    done = kdzoo.tune({**tuned, "data": data, "policy": policy, "tune": tune}, runs=tmp_path)
    assert isinstance(done.final, kdzoo.Run)
    assert [done.final.directory.name] == done.best.user_attrs["runs"]


@pytest.mark.parametrize(
    ("objective", "highest"),
    [
        (["worst_class"], [1.0]),
        (["hurt_classes"], [10.0]),
        (["worst_tenth", "harm", "hurt_classes"], [1.0, 10.0, 10.0]),
    ],
)
def test_each_objective_over_seeds(
    tmp_path: Path, tuned: dict[str, Any], objective: list[str], highest: list[float]
) -> None:
    tuned.pop("seed", None)
    tune = {**tuned["tune"], "objective": objective, "trials": 2, "pruner": {"use": "nop"}}
    done = kdzoo.tune({**tuned, "seeds": [0, 1], "tune": tune}, runs=tmp_path)
    for trial in done.study.get_trials():
        assert len(trial.user_attrs["runs"]) == 2
        assert all(0 <= v <= high for v, high in zip(trial.values, highest, strict=True))
    assert isinstance(done.final, kdzoo.Study)
    signs = [-1 if name in ("harm", "hurt_classes") else 1 for name in objective]
    assert [d.name for d in done.study.directions] == [
        "MINIMIZE" if sign < 0 else "MAXIMIZE" for sign in signs
    ]
    first = [signs[0] * trial.values[0] for trial in done.study.get_trials()]
    assert signs[0] * done.best.values[0] == max(first)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "gp", "cma-es", "nsga-ii", "qmc"])
def test_each_sampler_searches(tmp_path: Path, tuned: dict[str, Any], sampler: str) -> None:
    temperature = {"losses.kd.temperature": {"low": 1, "high": 10}}
    tune = {"space": temperature, "sampler": sampler, "trials": 3, "pruner": {"use": "nop"}}
    done = kdzoo.tune({**tuned, "tune": tune}, runs=tmp_path)
    assert len({t.params["losses.kd.temperature"] for t in done.study.get_trials()}) == 3


def test_hyperband_knows_the_longest_run(tuned: dict[str, Any]) -> None:
    """An epoch of the second seed is later than any of the first."""
    tuned.pop("seed", None)
    tuned["seeds"] = [0, 1]
    tuned["tune"] |= {"space": {"train.epochs": {"low": 2, "high": 8}}, "pruner": "hyperband"}
    pruner = make_pruner(read_tuning(tuned))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    trial = study.ask()
    trial.report(0.5, 1)
    trial.should_prune()  # it sets the brackets up: 1, 3, 9 epochs of 16
    assert len(pruner._pruners) == 3  # type: ignore[attr-defined]


def test_the_chapter_may_be_a_file(tmp_path: Path, tuned: dict[str, Any]) -> None:
    (tmp_path / "space.yaml").write_text(json.dumps(tuned["tune"]))
    (tmp_path / "spec.yaml").write_text(json.dumps({**tuned, "tune": "space.yaml"}))
    assert set(read_tuning(tmp_path / "spec.yaml").space) == set(SPACE)


def test_a_worker_that_died_on_another_machine(tmp_path: Path, tuned: dict[str, Any]) -> None:
    """Its trial was the last one; only its missing heartbeat tells that it will never end."""
    tuned["tune"] |= {"heartbeat": 1}
    done = kdzoo.tune(tuned, ["tune.trials=1"], runs=tmp_path)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{done.directory / 'study.db'}", heartbeat_interval=1
    )
    dead = optuna.load_study(study_name="tiny", storage=storage).ask()
    dead.set_user_attr("worker", "elsewhere:/runs/lock")
    storage.record_heartbeat(dead._trial_id)
    more = kdzoo.tune(tuned, ["tune.trials=2"], runs=tmp_path)
    states = [trial.state.name for trial in more.study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert more.study.get_trials()[2].system_attrs["retry_history"] == [1]


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


def test_another_sampler_for_a_study_that_is_there(
    tmp_path: Path, tuned: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    tuned["tune"]["trials"] = 1
    kdzoo.tune(tuned, runs=tmp_path)
    assert "the study's" not in caplog.text
    kdzoo.tune(tuned, ["tune.sampler=random", "tune.pruner=nop"], runs=tmp_path)
    assert """sampler was {"use": "tpe"} and is {"use": "random"} now""" in caplog.text
    assert """pruner was the default and is {"use": "nop"} now""" in caplog.text
    assert "but it has all its trials (1): raise `tune.trials`" in caplog.text
    caplog.clear()
    kdzoo.tune(tuned, ["tune.sampler=random", "tune.trials=2"], runs=tmp_path)
    assert """pruner was {"use": "nop"} and is the default now""" in caplog.text
    assert "the study's sampler" not in caplog.text
    assert "raise `tune.trials`" not in caplog.text


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", [{"use": "tpe", "n_startup_trials": 1}, "cma-es", "qmc"])
def test_a_study_that_goes_on_draws_what_it_would_have_drawn(
    tmp_path: Path, tuned: dict[str, Any], sampler: Any
) -> None:
    space = {
        "losses.kd.temperature": {"low": 1, "high": 10},
        "losses.kd.weight": {"low": 0.1, "high": 2, "log": True},
    }
    given = {**tuned, "tune": {"space": space, "sampler": sampler, "trials": 5, "pruner": "nop"}}
    whole = kdzoo.tune(given, runs=tmp_path / "whole").study.get_trials()
    kdzoo.tune(given, ["tune.trials=2"], runs=tmp_path / "cut")
    directory = next((tmp_path / "cut").glob("tiny-tune-*"))
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{directory / 'study.db'}")
    study.sampler = SeededSampler(read_tuning(given))
    for drawn in (False, True):  # by a worker that is killed before or after it has drawn
        lost = study.ask()
        if drawn:
            lost.suggest_float("losses.kd.temperature", 1, 10)
            lost.suggest_float("losses.kd.weight", 0.1, 2, log=True)
        study.tell(lost, state=TrialState.FAIL)
        RetryHeartbeatStaleTrialCallback()(study, study.get_trials()[lost.number])
    cut = kdzoo.tune(given, runs=tmp_path / "cut").study.get_trials()
    done = [trial for trial in cut if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in done] == [trial.params for trial in whole]
    assert len(cut) == 7
    assert len({str(trial.params) for trial in whole}) == 5


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
        ("policy.patience", {"choices": [1, 2], "low": 3}, "choices stand alone"),
        ("policy.patience", {"lwo": 1, "high": 2}, 'did you mean "low"'),
        ("policy.patiense", {"low": 1, "high": 3}, "belongs to none"),
        ("seed", {"low": 1, "high": 3}, "list `seeds` instead"),
        ("store_gb", {"low": 1, "high": 3}, "it is no setting"),
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


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:////nowhere/study.db", "cannot be used"),
        ("sqlite://", "in memory"),
        ("/nowhere/study.journal", "there is no /nowhere"),
    ],
)
def test_an_unreachable_database(
    tmp_path: Path, tuned: dict[str, Any], storage: str, message: str
) -> None:
    with pytest.raises(kdzoo.RunError, match=message):
        kdzoo.tune(tuned, [f"tune.storage={storage}"], runs=tmp_path)
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
        (
            {"sampler": {"use": "tpe", "n_startup_trials": "three"}},
            "n_startup_trials of tpe must be a whole number, not 'three'",
        ),
        ({"pruner": "percentile"}, "percentile needs `percentile`"),
        ({"sampler": "grid"}, "a grid needs a step, or choices"),
        ({"pruner": {"use": "median", "n_startup_trials": -1}}, "does not take these"),
        ({"pruner": "wilcoxon"}, "list more `seeds`"),
        ({"pruner": "median", "objective": ["accuracy", "worst_class"]}, "one objective only"),
        ({"pruner": {"use": "hyperband", "min_resource": 0}}, "pruner {.*hyperband.*0}"),
        ({"sampler": "bruteforce"}, "sampler {.*bruteforce"),
        ({"pruner": "median", "objective": "hurt_classes"}, "only wilcoxon can prune"),
        ({"pruner": "median", "objective": "harm"}, "harm is measured when a seed's run"),
        ({"objective": "loss"}, r"^spec: tune\.objective\.0: [^\n]*$"),
        ({"objective": []}, "tune.objective: is empty"),
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


@pytest.mark.parametrize("chapter", [["space"], 3])
def test_a_chapter_that_has_no_keys_is_named(
    tmp_path: Path, tuned: dict[str, Any], chapter: Any
) -> None:
    with pytest.raises(kdzoo.SpecError, match=r"^spec: tune: must be a mapping of keys, not "):
        kdzoo.tune({**tuned, "tune": chapter}, runs=tmp_path)
