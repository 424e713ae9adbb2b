"""For each check of an observer a broken one that it catches, and where possible no other does."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from proving import caught, quick
from torch.optim.optimizer import register_optimizer_step_pre_hook

import kdzoo
from kdzoo.testing import run_checks
from kdzoo.testing.observers import ObserverChecks

EVERY = quick(ObserverChecks, but=set())


class Sound(kdzoo.Observer):
    """Writes a line for each epoch into a file, and knows how far it is written."""

    name = "sound"

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.file = open(self.place(run) / "epochs.txt", "ab")  # noqa: SIM115
        size, done = self.file.tell(), state["bytes"] if state else 0
        if size < done:
            raise kdzoo.RunError("lines are missing")
        self.file.truncate(done)
        self.file.seek(0, 2)

    def place(self, run: kdzoo.RunInfo) -> Path:
        return run.directory

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.file.write(f"{record.epoch} {record.scalars['lr']}\n".encode())

    def state_dict(self) -> dict[str, Any]:
        self.file.flush()
        return {"bytes": self.file.tell()}

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        self.file.close()


class Undescribed(Sound):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        lines: int = 4


class WantsValidation(Sound):
    """Reads an accuracy that not every run has."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        if "accuracy/teacher" in record.scalars:
            assert record.scalars["accuracy/validation"] > 0


class WantsSuccess(Sound):
    """Is not prepared for a run that is interrupted before its first epoch."""

    last: kdzoo.EpochRecord | None = None

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.last = record

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        assert self.last is not None


class StateOfArrays(Sound):
    """Its state holds more than data."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "when": np.float64(0.5)}


class CountsCheckpoints(Sound):
    """Its state changes when it is asked for."""

    asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {**super().state_dict(), "asked": self.asked}


class NotFlushed(Sound):
    """Says how far it has written before it is written."""

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.file.tell()}


class NotFlushedNorMissed(NotFlushed):
    """The same, and where it goes on what is missing becomes zeros."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.file = open(self.place(run) / "epochs.txt", "ab")  # noqa: SIM115
        self.file.truncate(state["bytes"] if state else 0)
        self.file.seek(0, 2)

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.file.write(b"-" * 100)


class Appends(Sound):
    """Writes what a killed run wrote already once more."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.file = open(self.place(run) / "epochs.txt", "ab")  # noqa: SIM115
        if state is None:
            self.file.truncate(0)

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.file.flush()


class AppendsTheTime(Appends):
    """The same, and no two runs leave the same file."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.file.write(f"{time.time():.3f} ".encode())
        super().epoch(run, record)


class AppendsToNoRun(Appends):
    """Goes on in the file of a run that begins anew."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.file = open(self.place(run) / "epochs.txt", "ab")  # noqa: SIM115
        if state is not None:
            self.file.truncate(state["bytes"])


class ForgetsTheRest(kdzoo.Observer):
    """Keeps what it writes in a list, and begins with an empty one where a run goes on."""

    name = "forgets-the-rest"

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.rows: list[int] = []

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.rows.append(record.epoch)
        (run.directory / "epochs.json").write_text(json.dumps(self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}


class ForgetsWhen(ForgetsTheRest):
    """The same, and no two runs leave the same file."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.rows.append(record.epoch)
        (run.directory / "epochs.txt").write_text(f"{time.time()}: {self.rows}")


class WritesOnlyAtFirst(Sound):
    """Writes a second file, unless the run goes on; and has nothing on the disk before the end."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.first = state is None

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        if self.first and error is None:
            (run.directory / "end.bin").write_bytes(b"\xff")


class Dated(Sound):
    """Writes the time into its lines, and into the name of a file that each start has of its own;
    and an archive that grows otherwise where a run goes on."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        (run.directory / f"{time.time():.2f}.txt").write_text(f"from epoch {run.epoch}")
        with open(run.directory / "archive.bin", "ab") as archive:
            archive.write(b"\xff")

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.file.write(f"{time.time():.3f}: ".encode())
        super().epoch(run, record)


class NeverCutsOff(Sound):
    """Appends, and what it writes is on the disk where it is asked for its state."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        self.file = open(self.place(run) / "epochs.txt", "ab")  # noqa: SIM115


class CutsOffWhatIsKnown(NeverCutsOff):
    """Appends to what a run left that was killed before there was any checkpoint."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        if state is not None:
            self.file.truncate(state["bytes"])


class ForgetsItsBest(Sound):
    """Writes the best accuracy so far, and where a run goes on the best since then."""

    what = "accuracy/train"

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.best = 0.0

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        self.best = max(self.best, self.seen(record))
        self.file.write(f"{self.best}\n".encode())

    def seen(self, record: kdzoo.EpochRecord) -> float:
        return record.scalars["accuracy/train"]


class ForgetsItsWorst(ForgetsItsBest):
    """The same of the other end."""

    def seen(self, record: kdzoo.EpochRecord) -> float:
        return 1 - record.scalars["accuracy/train"]


class ForgetsTheHighest(ForgetsItsBest):
    """The same of a loss."""

    sign = 1
    highest = 0.0

    def steps(self, run: kdzoo.RunInfo, first: int, values: Mapping[str, Any]) -> None:
        self.highest = max(self.highest, *(4 + self.sign * values["loss/total"]))

    def seen(self, record: kdzoo.EpochRecord) -> float:
        return float(self.highest)


class ForgetsTheLowest(ForgetsTheHighest):
    """The same of the other end."""

    sign = -1


class RaisesWhatItIsTold(Sound):
    """Raises the error of the run."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        if error is not None:
            raise error


class RaisesItsOwn(Sound):
    """Raises an interrupt of its own."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        if error is not None:
            raise KeyboardInterrupt from error


class Lasts(Sound):
    """Writes a number of the clock's that is sometimes longer, so that its state differs too."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.file.write(b"1" * (1 + time.perf_counter_ns() % 997) + b"\n")


class RoundsValues(Sound):
    """Writes into the arrays that it is shown."""

    def steps(self, run: kdzoo.RunInfo, first: int, values: Mapping[str, Any]) -> None:
        for series in values.values():
            series.round(0, out=series)
            series += 1


class ClosesGaps(Sound):
    """Writes into the curves that it is shown."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        record.curves.student[:] = 0


class OneForAll(Sound):
    """Its memory belongs to the class."""

    seen: ClassVar[list[int]] = []

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.seen[:] = range(run.epoch)

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.seen.append(record.epoch)
        self.file.write(f"{len(self.seen):0{len(self.seen)}}\n".encode())


class OneStateForAll(Sound):
    """How many epochs it saw is in its state alone, and belongs to the class."""

    seen: ClassVar[list[int]] = []

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.seen[:] = state["seen"] if state else []

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        self.seen.append(record.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": list(self.seen)}


class Elsewhere(Sound):
    """Writes into the working directory too."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        Path("last-run.txt").write_text(run.name)


class BesideTheRun(Sound):
    """Writes beside the run directory."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        (run.directory.parent / "last-run.txt").write_text(run.name)


class GoesThere(Sound):
    """Goes into the run directory, and takes everybody along."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        os.chdir(run.directory)


class LeavesOpen(Sound):
    """Does not close its file."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        self.kept.append(self.file)
        self.file.flush()

    kept: ClassVar[list[Any]] = []


class LeavesOpenAfterAnError(LeavesOpen):
    """Closes its file where all went well."""

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        if error is None:
            self.file.close()


class LeavesAThread(Sound):
    """Its thread goes on."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.stop.clear()
        threading.Thread(target=self.stop.wait, args=(10,), daemon=True).start()

    stop: ClassVar = threading.Event()


class Interferes(Sound):
    """Changes the learning rate through the back door."""

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        super().start(run, state)
        self.hook = register_optimizer_step_pre_hook(self.halve)

    def halve(self, optimizer: torch.optim.Optimizer, *given: Any) -> None:
        optimizer.param_groups[0]["lr"] *= 0.5

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        super().end(run, error)
        self.hook.remove()


class MoreThreads(Sound):
    """Gives torch another thread."""

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        super().epoch(run, record)
        torch.set_num_threads(torch.get_num_threads() + 1)


EXACTLY: list[tuple[type[kdzoo.Observer], str]] = [
    (Undescribed, "contract"),
    (WantsValidation, "whole_runs"),
    (WantsSuccess, "errors"),
    (CountsCheckpoints, "state_dict"),
    (NotFlushed, "restarts"),
    (Appends, "restarts"),
    (AppendsTheTime, "restarts"),
    (AppendsToNoRun, "restarts"),
    (ForgetsTheRest, "restarts"),
    (WritesOnlyAtFirst, "restarts"),
    (NeverCutsOff, "restarts"),
    (CutsOffWhatIsKnown, "restarts"),
    (ForgetsItsBest, "restarts"),
    (ForgetsItsWorst, "restarts"),
    (ForgetsTheHighest, "restarts"),
    (ForgetsTheLowest, "restarts"),
    (RoundsValues, "leaves_what_it_sees_alone"),
    (ClosesGaps, "leaves_what_it_sees_alone"),
    (OneForAll, "two_at_once"),
    (OneStateForAll, "two_at_once"),
    (Elsewhere, "writes_in_its_directory"),
    (BesideTheRun, "writes_in_its_directory"),
    (GoesThere, "writes_in_its_directory"),
    (LeavesOpen, "closes"),
    (LeavesOpenAfterAnError, "closes"),
    (LeavesAThread, "closes"),
    (Interferes, "in_a_run"),
    (MoreThreads, "leaves_torch_alone"),
]


@pytest.mark.parametrize("sound", [Sound, Dated, Lasts])
def test_what_is_sound_passes_every_check(sound: type[kdzoo.Observer]) -> None:
    assert caught(sound) == set()


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (Appends, "killed before a checkpoint, epochs.txt is not what"),
        (Appends, "its line 4 is '3 0.03333333333333333' and not '4 0.025'"),
        (AppendsTheTime, "it has 5 lines instead of 4"),
        (ForgetsWhen, "its line 1 is '#: [#, #]' and not '#: [#, #, #, #]' (each number is shown"),
        (ForgetsTheRest, "ended in an epoch, epochs.json is not"),
        (ForgetsTheRest, "its line 1 is '[3, 4]' and not '[1, 2, 3, 4]'"),
        (NeverCutsOff, "killed between state_dict and the checkpoint, epochs.txt is not what"),
        (CutsOffWhatIsKnown, "between its first state_dict and the checkpoint, epochs.txt is not"),
        (NotFlushedNorMissed, f"its line 1 is {chr(0) * 80!r:.80}... and not '"),
        (WritesOnlyAtFirst, "end.bin is not what a run leaves that was never cut off: it is not"),
    ],
)
def test_where_a_run_goes_on_otherwise(mutant: type[kdzoo.Observer], said: str) -> None:
    (result,) = run_checks(mutant, checks=["restarts"])
    assert said in result.reason


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(
    mutant: type[kdzoo.Observer], check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        assert caught(mutant) == {check}
    finally:
        LeavesAThread.stop.set()


def test_a_state_that_is_more_than_data_cannot_be_gone_on_from() -> None:
    assert caught(StateOfArrays) == {"state_dict", "restarts", "in_a_run"}


@pytest.mark.parametrize("mutant", [RaisesWhatItIsTold, RaisesItsOwn])
def test_what_is_raised_at_the_end_fails_a_check_and_ends_none(
    mutant: type[kdzoo.Observer],
) -> None:
    results = {result.check: result for result in run_checks(mutant)}
    failed = {check for check, result in results.items() if result.status == "failed"}
    assert failed == {"errors", "restarts", "closes"}
    assert set(results) == set(EVERY)
    said = "ended with KeyboardInterrupt(), it raised KeyboardInterrupt(). The run raises its own"
    assert said in results["closes"].reason


def test_every_check_is_proved() -> None:
    assert {check for _, check in EXACTLY} == set(EVERY)
