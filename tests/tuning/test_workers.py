"""Several processes work on one study; one that is killed loses nothing but its trial's time."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ruamel.yaml import YAML
from warm import Command, Warm

TRIALS = 4


Worker = Callable[..., Command]


@pytest.fixture
def worker(tmp_path: Path, warm: Warm) -> Worker:
    """Starts ``kdzoo tune``, in a session of its own."""

    def start(*arguments: str) -> Command:
        return warm.start("kdzoo", "tune", "spec.yaml", *arguments, cwd=tmp_path, merged=True)

    return start


def until(found: Callable[[], bool], process: Command | subprocess.Popen[Any]) -> None:
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
        "train": {**tiny["train"], "epochs": 100},
        "tune": {
            "space": {"losses.kd.temperature": {"low": 1, "high": 10}},
            "pruner": None,
            "trials": TRIALS,
        },
    }
    YAML(typ="safe", pure=True).dump(content, tmp_path / "spec.yaml")
    return content


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of a database of a server's own, which nobody else uses."""
    pytest.importorskip("psycopg", reason="its driver is missing: pip install 'kdzoo[postgresql]'")
    places = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    initdb = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *places]))
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (no initdb)")
    # It refuses to be root's; a distribution's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    try:
        owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    except KeyError:
        pytest.skip("PostgreSQL is never run by root, and there is no user postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, owner, -1)
        options: Any = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [initdb, "-D", f"{home}/data", "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            **options,
        )
        server = subprocess.Popen(
            [str(Path(initdb).with_name("postgres")), "-D", f"{home}/data", "-k", home]
            + ["-h", "127.0.0.1", "-p", str(port)],
            stderr=subprocess.DEVNULL,
            **options,
        )
        try:
            until(lambda: Path(home, f".s.PGSQL.{port}").exists(), server)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait()


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What ``--storage`` says."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql")
        return url
    return str(tmp_path / "shared.journal")


def trials(tmp_path: Path, storage: str | None = None) -> list[optuna.trial.FrozenTrial]:
    opened: Any
    if storage is None:
        (file,) = tmp_path.glob("runs/tiny-tune-*/study.db")
        opened = f"sqlite:///{file}"
    elif "://" in storage:
        opened = storage.replace("postgresql:", "postgresql+psycopg:")
    else:
        backend = optuna.storages.journal.JournalFileBackend(storage)
        opened = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="tiny", storage=opened).get_trials()


def counts_add_up(done: list[optuna.trial.FrozenTrial]) -> None:
    """All trials are complete, and what was cut off was run again as it was."""
    states = [trial.state for trial in done]
    assert states.count(TrialState.COMPLETE) == TRIALS
    assert states.count(TrialState.FAIL) <= 1  # the killed worker's, unless it was between two
    assert len(done) == TRIALS + states.count(TrialState.FAIL)
    for failed in (trial for trial in done if trial.state == TrialState.FAIL):
        again = [t for t in done if failed.number in t.system_attrs.get("retry_history", ())]
        assert len(again) == 1
        assert failed.params.items() <= again[0].params.items()  # it may not have drawn any yet


def at_work(tmp_path: Path) -> int:
    """How many workers have a trial each."""
    if not begun(tmp_path):
        return 0
    running = [trial for trial in trials(tmp_path) if trial.state == TrialState.RUNNING]
    return len({trial.user_attrs.get("worker") for trial in running} - {None})


def helpers(process: Command) -> list[int]:
    """The processes that a worker has started to work beside it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(p) for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.slow
def test_of_two_workers_one_is_killed(
    tmp_path: Path, spec: dict[str, Any], storage: str, worker: Worker
) -> None:
    shared = ["--storage", storage]
    first = worker(*shared)
    until(lambda: begun(tmp_path), first)
    second = worker(*shared)
    time.sleep(1)
    first.kill()
    first.communicate()
    said, _ = second.communicate(timeout=280)
    assert second.returncode == 0, said
    counts_add_up(trials(tmp_path, storage))


@pytest.mark.slow
def test_two_commands_finish_one_study(
    tmp_path: Path, spec: dict[str, Any], worker: Worker
) -> None:
    """The best setting is trained again once; whoever comes second waits for it."""
    both = [worker() for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
        assert "Best trial:" in said
    counts_add_up(trials(tmp_path))
    assert len({trial.params["losses.kd.temperature"] for trial in trials(tmp_path)}) == TRIALS
    assert len(list(tmp_path.glob("runs/tiny-*/report.json"))) == 3  # teacher, final run, study


@pytest.mark.slow
def test_a_worker_whose_trial_was_taken_over_goes_on(
    tmp_path: Path, spec: dict[str, Any], worker: Worker
) -> None:
    """As that of a machine which slept for longer than its heartbeat may be missing."""
    process = worker()
    until(lambda: at_work(tmp_path) == 1, process)
    (file,) = tmp_path.glob("runs/tiny-tune-*/study.db")
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{file}")
    (running,) = (t for t in study.get_trials() if t.state == TrialState.RUNNING)
    study.tell(running.number, state=TrialState.FAIL)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "another one took its trial over" in said
    states = [trial.state for trial in trials(tmp_path)]
    assert states.count(TrialState.COMPLETE) == TRIALS - 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_one_of_a_command_s_two_workers_is_killed(
    tmp_path: Path, spec: dict[str, Any], worker: Worker
) -> None:
    process = worker("--workers", "2")
    until(lambda: at_work(tmp_path) == 2, process)
    (helper,) = helpers(process)
    os.kill(helper, signal.SIGKILL)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "worker 2 was ended by SIGKILL; the others go on" in said
    assert re.search(r"^trial 0 begun: temperature=[\d.]+$", said, re.MULTILINE)
    assert re.search(
        rf"^trial \d: accuracy [\d.]+ %  temperature=[\d.]+; 1 of {TRIALS}, "
        r"best so far [\d.]+ %, about \d+ (s|min) left$",
        said,
        re.MULTILINE,
    )
    counts_add_up(trials(tmp_path))


def interrupt(tmp_path: Path, worker: Worker, presses: int) -> None:
    """Press Ctrl-C while two workers have a trial each; both end, and leave the trials queued."""
    process = worker("--workers", "2")
    until(lambda: at_work(tmp_path) == 2, process)
    (helper,) = helpers(process)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.02)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "kdzoo: interrupted; the same command goes on from here"
    assert "Traceback" not in said
    assert not Path(f"/proc/{helper}").exists()
    states = [trial.state for trial in trials(tmp_path)]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.WAITING) == states.count(TrialState.FAIL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_an_interrupted_study_goes_on(tmp_path: Path, spec: dict[str, Any], worker: Worker) -> None:
    interrupt(tmp_path, worker, presses=1)
    before = {t.number for t in trials(tmp_path) if t.state == TrialState.COMPLETE}
    again = worker("--resume", "--trials", str(len(before) + 1))
    said, _ = again.communicate(timeout=280)
    assert again.returncode == 0, said
    (new,) = (
        trial
        for trial in trials(tmp_path)
        if trial.state == TrialState.COMPLETE and trial.number not in before
    )
    assert new.system_attrs["retry_history"]  # one that was cut off comes first


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_second_ctrl_c_ends_all_workers_at_once(
    tmp_path: Path, spec: dict[str, Any], worker: Worker
) -> None:
    interrupt(tmp_path, worker, presses=2)
