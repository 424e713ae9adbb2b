"""The checks of observers."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdzoo.extend.bases import Observer
from kdzoo.extend.contracts import ClassState, EpochRecord, RunInfo, TeachingCurves
from kdzoo.extend.registry import registry
from kdzoo.pipeline.runs import run
from kdzoo.testing.checks import Checks, ContractError, NotApplicable, after, require, sometimes
from kdzoo.testing.modules import same, stored
from kdzoo.testing.scene import Labels, Nets, Pictures

__all__ = ["ObserverChecks"]

_STEPS = 5  # an epoch
_WINDOW = 3  # steps that are shown at once

_HEIGHTS = (0.3, 0.8, 0.5, 0.6)
"""What accuracies are like, epoch by epoch: the best and the worst come before a run is cut off, so
that one that goes on without them shows others."""


@dataclass(frozen=True)
class _Story:
    """A run to be told of."""

    what: str
    role: Literal["teacher", "baseline", "student"] = "student"
    epochs: int = 4
    classes: tuple[str, ...] = ("a", "b", "c")
    terms: tuple[str, ...] = ("labels", "teacher")
    has_teacher: bool = True
    has_baseline: bool = True
    has_validation: bool = True
    untaught: tuple[int, ...] = (1,)

    def info(self, directory: Path, epoch: int = 0) -> RunInfo:
        """What is told at the beginning, or where it goes on after ``epoch``."""
        directory.mkdir(parents=True, exist_ok=True)
        return RunInfo(
            name="told",
            role=self.role,
            directory=directory,
            classes=self.classes,
            epochs=self.epochs,
            steps=self.epochs * _STEPS,
            epoch=epoch,
            step=epoch * _STEPS,
            spec="name: told\nlosses:\n- use: labels\n",
        )

    def record(self, epoch: int) -> EpochRecord:
        """What is told after an epoch, counted from 1."""
        draw = np.random.default_rng(0)
        shape = (self.epochs, len(self.classes))
        unknown = np.full(shape, np.nan)
        taught = np.ones(shape)
        taught[1:, list(self.untaught)] = 0
        curves = TeachingCurves(
            samples=np.full(shape, 10.0),
            student=draw.uniform(size=shape),
            teacher=draw.uniform(size=shape) if self.has_teacher else unknown,
            agreement=draw.uniform(size=shape) if self.has_teacher else unknown,
            divergence=draw.uniform(size=shape) if self.has_teacher else unknown,
            predicted=draw.uniform(5, 15, shape),
            teacher_weight=taught,
            label_weight=np.ones(shape),
            baseline=draw.uniform(size=shape) if self.has_baseline else None,
            state=np.where(taught > 0, ClassState.TAUGHT, ClassState.UNTAUGHT).astype(np.float64),
            learning_rate=0.1 / np.arange(1, self.epochs + 1),
            stage=np.zeros(self.epochs),
        )
        height = _HEIGHTS[epoch - 1]
        scalars = {"lr": 0.1 / epoch, "accuracy/train": height}
        if self.has_teacher:
            scalars |= {"accuracy/teacher": height + 0.1, "agreement": height - 0.1}
        if self.has_validation:
            scalars["accuracy/validation"] = height / 2
        return EpochRecord(
            epoch=epoch,
            step=epoch * _STEPS,
            scalars=scalars,
            curves=curves.first(epoch),
            loader_share=height / 4,
        )

    def steps(self, first: int, count: int) -> dict[str, npt.NDArray[np.float32]]:
        """What is told of some steps."""
        names = ["loss/total", *(f"loss/{term}" for term in self.terms)]
        steps = np.arange(first, first + count, dtype=np.float32)
        values = (2 + np.sin(steps) / steps).astype(np.float32)  # as with _HEIGHTS
        return {name: values / np.float32(1 + i) for i, name in enumerate(names)}


_USUAL = _Story("an ordinary one")
_STORIES = (
    _USUAL,
    _Story("a teacher's", role="teacher", terms=("labels",), has_teacher=False, untaught=()),
    _Story("one without a baseline", has_baseline=False),
    _Story("one without validation images", has_validation=False),
    _Story("one of a single epoch", epochs=1),
    _Story("one in which no class is taught", untaught=(0, 1, 2)),
    _Story(
        "one with strange class names",
        classes=("[red]", "naïve café", "n" * 80, "a/b\\c", "<b>&", " "),
    ),
    _Story("one with 200 classes", classes=tuple(str(number) for number in range(200))),
)


@dataclass(frozen=True)
class _Cut:
    """How a run is cut off.

    Attributes:
        what: in words.
        epochs: how many it had when its last checkpoint was written.
        more: whether it was told of another epoch then, which the checkpoint does not know.
        asked: whether it was asked for its state after that epoch, too; the answer is lost.
        killed: whether it is not told of the end.
        lost: whether what it wrote after its state does not reach the disk.
    """

    what: str
    epochs: int = 2
    more: bool = False
    asked: bool = False
    killed: bool = True
    lost: bool = False


_CUTS = (
    _Cut("ended in an epoch", killed=False),
    _Cut("killed in an epoch", lost=True),
    _Cut("killed before a checkpoint", more=True),
    _Cut("killed before its first checkpoint", epochs=0, more=True),
    _Cut("killed between state_dict and the checkpoint", more=True, asked=True),
    _Cut("killed between its first state_dict and the checkpoint", epochs=0, more=True, asked=True),
)


class ObserverChecks(Checks[Observer]):
    """What is asked of an observer."""

    base = Observer

    def whole_runs(self) -> None:
        """It watches all kinds of runs from the beginning to the end."""
        for number, story in enumerate(_STORIES):
            info = story.info(self.folder / str(number))
            with _blaming(f"a run, {story.what}"):
                observer = self._make()
                observer.start(info, None)
                _tell(observer, info, story, range(1, story.epochs + 1))
                observer.end(info, None)

    def errors(self) -> None:
        """It is told to end at any moment, with the error that cut the run off."""
        for number, told in enumerate((0, 1, 2)):
            info = _USUAL.info(self.folder / str(number))
            with _blaming("a run that ends with an error"):
                observer = self._make()
                observer.start(info, None)
                _tell(observer, info, _USUAL, range(1, 1 + told))
                if told:
                    observer.steps(info, told * _STEPS + 1, _USUAL.steps(told * _STEPS + 1, 2))
                _end(observer, info, KeyboardInterrupt() if told else ValueError("it is NaN"))

    def state_dict(self) -> None:
        """Its state is plain data, and asking for it changes nothing."""
        info = _USUAL.info(self.folder)
        observer = self._make()
        observer.start(info, None)
        for epoch in range(1, _USUAL.epochs + 1):
            _tell(observer, info, _USUAL, [epoch], asking=False)
            state = stored("its state", observer.state_dict())
            require(same(state, observer.state_dict()), "asking for its state changes it")
        observer.end(info, None)

    def restarts(self) -> None:
        """A run that was ended or killed, and goes on, leaves the files that it would have left."""
        began = time.monotonic()
        whole, _ = self._whole("whole")
        for cut in _CUTS:
            if (left := self._gone_on(cut)) == whole:
                continue
            again, _ = self._in_another_second(began, f"beside {cut.what}")
            for name, difference in _differences(whole, again, left):
                raise ContractError(
                    f"of a run that goes on after it was {cut.what}, {name} is not what a run "
                    f"leaves that was never cut off: {difference}. Keep in state_dict what start "
                    "needs: how far a file goes, to cut it off there, or what it holds"
                )

    def leaves_what_it_sees_alone(self) -> None:
        """It changes no array and no mapping that it is shown: other observers see them too."""
        info = _USUAL.info(self.folder)
        observer = self._make()
        observer.start(info, None)
        values = _USUAL.steps(1, _WINDOW)
        shown = copy.deepcopy(values)
        observer.steps(info, 1, shown)
        require(_equal(values, shown), "it changed the values of the steps")
        record = _USUAL.record(2)
        seen = copy.deepcopy(record)
        observer.epoch(info, seen)
        unchanged = record.scalars == seen.scalars and _equal(
            vars(record.curves), vars(seen.curves)
        )
        require(unchanged, "it changed the record of an epoch")
        observer.end(info, None)

    @after("state_dict")
    def two_at_once(self) -> None:
        """Two that watch two runs share nothing."""

        other = replace(_USUAL, what="another", role="teacher", terms=("labels",), untaught=())
        began = time.monotonic()
        whole, state = self._whole("alone")
        runs = []
        for name, story in (("first", _USUAL), ("second", other)):
            observer, info = self._make(), story.info(self.folder / name)
            observer.start(info, None)
            runs.append((observer, info, story))
        with _blaming("one of two runs at once"):
            for epoch in range(1, _USUAL.epochs + 1):
                for observer, info, story in runs:
                    _tell(observer, info, story, [epoch])
            beside = runs[0][0].state_dict()
            for observer, info, _ in runs:
                observer.end(info, None)
        left = _files(runs[0][1].directory)
        if left == whole and same(state, beside):
            return
        again, later = self._in_another_second(began, "alone again")
        for name, difference in _differences(whole, again, left):
            raise ContractError(
                f"what it leaves of a run is otherwise when it watches another too: {name} is not "
                f"what it was: {difference}"
            )
        # Where a clock is in what it writes, its state may say how much that is.
        timeless = whole == again and same(state, later)
        require(
            same(state, beside) or not timeless,
            "its state is otherwise when it watches another too",
        )

    def writes_in_its_directory(self) -> None:
        """It writes into the run directory, and nowhere else that is at hand."""
        work = self.folder / "work"
        work.mkdir()
        os.chdir(work)
        info = _USUAL.info(self.folder / "runs" / "own")
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
        observer.end(info, None)
        require(Path.cwd() == work.resolve(), "it changed the working directory, for everybody")
        stray = [*work.iterdir(), *((self.folder / "runs").iterdir())]
        stray.remove(info.directory)
        require(not stray, f"it wrote {', '.join(path.name for path in stray)} outside of the run")

    @sometimes
    def closes(self) -> None:
        """At the end its threads are gone and its files are closed."""
        for what, error in (("end", None), ("end with an error", KeyboardInterrupt())):
            info = _USUAL.info(self.folder / what)
            threads = set(threading.enumerate())
            observer = self._make()
            observer.start(info, None)
            _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
            _end(observer, info, error)
            for thread in set(threading.enumerate()) - threads:
                thread.join(1)
                require(not thread.is_alive(), f"its thread {thread.name} goes on after the {what}")
            still = _open_files(info.directory)
            require(not still, f"it left {', '.join(still)} open after the {what}")

    def in_a_run(self) -> None:
        """A run that it watches, and that is interrupted and goes on, ends in the same weights."""
        spec = {
            "name": "watched",
            "data": Pictures.name,
            "student": Nets.name,
            "train": {"epochs": 3, "batch_size": 8},
            "losses": [Labels.name],
            "log_every": 2,
        }
        own = {"use": self.component.name, **self.entry}
        results = []
        with registry().lent(self.component, Pictures, Nets, Labels, _Interrupts):
            plain = run({**spec, "observers": []}, runs=self.folder / "plain")
            watched = self.folder / "watched"
            with contextlib.suppress(KeyboardInterrupt):
                run({**spec, "observers": [own, _Interrupts.name]}, runs=watched)
            results = [plain, run({**spec, "observers": [own]}, runs=watched)]
        one, other = ((done.directory / "student.safetensors").read_bytes() for done in results)
        require(
            one == other, "a run that it watches ends in other weights: it changes the training"
        )

    # What the checks are made of.

    def _whole(self, name: str) -> tuple[dict[str, bytes], Any]:
        """What it leaves of a run that is never cut off, and its last state."""
        info = _USUAL.info(self.folder / name)
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
        state = copy.deepcopy(observer.state_dict())
        observer.end(info, None)
        return _files(info.directory), state

    def _in_another_second(self, began: float, name: str) -> tuple[dict[str, bytes], Any]:
        """The same again: what is otherwise then is the clock's."""
        time.sleep(max(began + 1.1 - time.monotonic(), 0))
        return self._whole(name)

    def _gone_on(self, cut: _Cut) -> dict[str, bytes]:
        """What it leaves of one that is cut off and goes on."""
        directory, left = self.folder / cut.what, self.folder / f"{cut.what}, what is left"
        info = _USUAL.info(directory)
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, 1 + cut.epochs))
        state = stored("its state", observer.state_dict()) if cut.epochs else None
        if cut.lost:
            shutil.copytree(directory, left)
        if cut.more:
            _tell(observer, info, _USUAL, [1 + cut.epochs], asking=cut.asked)
        else:
            first = cut.epochs * _STEPS + 1
            observer.steps(info, first, _USUAL.steps(first, 2))
        if cut.killed and not cut.lost:
            shutil.copytree(directory, left)
        _end(observer, info, KeyboardInterrupt())
        if not cut.killed:
            directory.rename(left)
        with _blaming(f"a run that goes on after it was {cut.what}"):
            info = _USUAL.info(left, epoch=cut.epochs)
            observer = self._make()
            observer.start(info, state)
            _tell(observer, info, _USUAL, range(1 + cut.epochs, _USUAL.epochs + 1))
            observer.end(info, None)
        return _files(left)

    def _use(self) -> None:
        info = _USUAL.info(self.folder)
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
        observer.end(info, None)


class _Interrupts(Observer):
    """Stands for a person at the keyboard."""

    name = "kdzoo-testing-interrupts"

    def steps(self, run: RunInfo, first: int, values: Any) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        if first > 5:
            raise KeyboardInterrupt


def _tell(
    observer: Observer,
    info: RunInfo,
    story: _Story,
    epochs: Iterable[int],
    *,
    asking: bool = True,
) -> None:
    """All that the engine says in some epochs."""
    for epoch in epochs:
        done = (epoch - 1) * _STEPS
        for first in range(1, _STEPS + 1, _WINDOW):
            count = min(_WINDOW, _STEPS + 1 - first)
            observer.steps(info, done + first, story.steps(done + first, count))
        observer.epoch(info, story.record(epoch))
        if asking:
            observer.state_dict()


def _end(observer: Observer, info: RunInfo, error: BaseException | None) -> None:
    """Tell it that a run has ended. What it raises then must not end the checks too."""
    try:
        observer.end(info, error)
    except BaseException as raised:
        if error is None:
            raise
        advice = ". The run raises its own error itself" if type(raised) is type(error) else ""
        raise ContractError(
            f"told that a run ended with {error!r}, it raised {raised!r}{advice}"
        ) from raised


def _files(directory: Path) -> dict[str, bytes]:
    """What lies below a directory, by path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


_NUMBER = re.compile(r"-?[0-9][0-9.]*(e[+-]?[0-9]+)?")


def _differences(
    whole: Mapping[str, bytes], again: Mapping[str, bytes], left: Mapping[str, bytes]
) -> Iterator[tuple[str, str]]:
    """The files that are not what they would be, and what is wrong with them. One whose name is
    another in each run is left out; else see :func:`_difference`."""
    for name in sorted(whole.keys() & again.keys()):
        if difference := _difference(whole[name], again[name], left.get(name)):
            yield name, difference


def _difference(whole: bytes, again: bytes, left: bytes | None) -> str:
    """What is wrong with a file of a run that goes on, if anything is.

    Args:
        whole: the same of a run that was never cut off.
        again: of another such run. Where it has other numbers, those of a clock, all are let pass;
            where more differs, nothing can be said.
        left: of the run that goes on; ``None`` where there is no such file.
    """
    if left is None:
        return "it is not there"
    try:
        texts = [content.decode() for content in (whole, again, left)]
    except UnicodeDecodeError:
        return ""  # a database, say, may hold the same in another arrangement
    if masked := texts[0] != texts[1]:
        texts = [_NUMBER.sub("#", text) for text in texts]
    if texts[0] != texts[1] or texts[0] == texts[2]:
        return ""
    wanted, got = (texts[which].splitlines() for which in (0, 2))
    apart = [
        pair for pair in enumerate(zip(wanted, got, strict=False), 1) if pair[1][0] != pair[1][1]
    ]
    if not apart:
        return f"it has {len(got)} lines instead of {len(wanted)}"
    number, (line, other) = apart[0]
    shown = " (each number is shown as #)" if masked else ""
    return f"its line {number} is {_short(other)} and not {_short(line)}{shown}"


def _short(line: str) -> str:
    shown = repr(line)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _open_files(directory: Path) -> list[str]:
    """The files below a directory that this process has open."""
    listing = Path("/proc/self/fd")
    if not listing.is_dir():
        raise NotApplicable("this system does not tell which files are open")
    found = []
    for link in listing.iterdir():
        with contextlib.suppress(OSError):
            target = Path(os.readlink(link))
            if target.is_relative_to(directory.resolve()):
                found.append(target.name)
    return found


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name], equal_nan=True)
        if isinstance(one[name], np.ndarray)
        else one[name] is other[name]
        for name in one
    )


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{what}: it raised {type(error).__name__}: {error}") from error
