"""Several processes work on one study; one that is killed loses nothing but its trial's time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ruamel.yaml import YAML

TRIALS = 5


def worker(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """``kdzoo tune``, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdzoo", "tune", "spec.yaml", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(tmp_path: Path) -> bool:
    """Whether a trial's student has a checkpoint."""
    return any(
        "teacher" not in path.parent.name for path in tmp_path.glob("runs/tiny-*/checkpoint.pt")
    )


@pytest.fixture
def spec(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    content = {
        **tiny,
        "data": {"use": "planted", "per_class": 12, "validation": 0.25},
        "baseline": False,
        "policy": "all",
        "train": {**tiny["train"], "epochs": 60},
        "tune": {
            "space": {"losses.kd.temperature": {"low": 1, "high": 10}},
            "pruner": None,
            "trials": TRIALS,
        },
    }
    YAML(typ="safe", pure=True).dump(content, tmp_path / "spec.yaml")
    return content


def trials(tmp_path: Path, journal: bool) -> list[optuna.trial.FrozenTrial]:
    if journal:
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "shared.journal"))
        storage: Any = optuna.storages.JournalStorage(backend)
    else:
        (file,) = tmp_path.glob("runs/tiny-tune-*/study.db")
        storage = f"sqlite:///{file}"
    return optuna.load_study(study_name="tiny", storage=storage).get_trials()


@pytest.mark.slow
@pytest.mark.parametrize("journal", [False, True], ids=["sqlite", "journal"])
def test_of_two_workers_one_is_killed(tmp_path: Path, spec: dict[str, Any], journal: bool) -> None:
    shared = ["--storage", str(tmp_path / "shared.journal")] if journal else []
    first = worker(tmp_path, *shared)
    until(lambda: begun(tmp_path), first)
    second = worker(tmp_path, *shared)
    time.sleep(1)
    first.kill()
    first.communicate()
    said, _ = second.communicate(timeout=280)
    assert second.returncode == 0, said
    done = trials(tmp_path, journal)
    states = [trial.state for trial in done]
    assert states.count(TrialState.COMPLETE) == TRIALS
    assert states.count(TrialState.FAIL) <= 1  # the killed worker's, unless it was between two
    assert TrialState.RUNNING not in states
    assert len(done) == TRIALS + states.count(TrialState.FAIL)
    for failed in (trial for trial in done if trial.state == TrialState.FAIL):
        again = [t for t in done if failed.number in t.system_attrs.get("retry_history", ())]
        assert [trial.params for trial in again] == [failed.params]


@pytest.mark.slow
def test_an_interrupted_study_goes_on(tmp_path: Path, spec: dict[str, Any]) -> None:
    process = worker(tmp_path)
    until(lambda: begun(tmp_path), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "kdzoo: interrupted; the same command goes on with the study"
    assert "Traceback" not in said
    again = worker(tmp_path, "--resume")
    said, _ = again.communicate(timeout=280)
    assert again.returncode == 0, said
    states = [trial.state for trial in trials(tmp_path, False)]
    assert states.count(TrialState.COMPLETE) == TRIALS
    assert TrialState.RUNNING not in states
