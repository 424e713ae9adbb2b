"""The checks of observers."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
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
            learning_rate=np.full(self.epochs, 0.1),
            stage=np.zeros(self.epochs),
        )
        scalars = {"lr": 0.1, "accuracy/train": 0.5}
        if self.has_teacher:
            scalars |= {"accuracy/teacher": 0.9, "agreement": 0.7}
        if self.has_validation:
            scalars["accuracy/validation"] = 0.6
        return EpochRecord(
            epoch=epoch,
            step=epoch * _STEPS,
            scalars=scalars,
            curves=curves.first(epoch),
            loader_share=0.25,
        )

    def steps(self, first: int, count: int) -> dict[str, npt.NDArray[np.float32]]:
        """What is told of some steps."""
        names = ["loss/total", *(f"loss/{term}" for term in self.terms)]
        values = np.arange(first, first + count, dtype=np.float32)
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
        killed: whether it is not told of the end.
        lost: whether what it wrote after its state does not reach the disk.
    """

    what: str
    epochs: int = 2
    more: bool = False
    killed: bool = True
    lost: bool = False


_CUTS = (
    _Cut("ended in an epoch", killed=False),
    _Cut("killed in an epoch", lost=True),
    _Cut("killed before a checkpoint", more=True),
    _Cut("killed before its first checkpoint", epochs=0, more=True),
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
                error = KeyboardInterrupt() if told else ValueError("a loss became NaN")
                observer.end(info, error)

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
        whole = self._whole("whole")
        for cut in _CUTS:
            if (left := self._gone_on(cut)) == whole:
                continue
            # A second run that nobody cut off, in another second, tells which of it is the clock's.
            time.sleep(max(began + 1.1 - time.monotonic(), 0))
            for name, again in self._whole(f"beside {cut.what}").items():
                if name in whole:
                    difference = _difference(whole[name], again, left.get(name))
                    require(
                        not difference,
                        f"of a run that goes on after it was {cut.what}, {name} is not what a "
                        f"run leaves that was never cut off: {difference}. Keep in state_dict what "
                        "start needs: how far a file goes, to cut it off there, or what it holds",
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

        def begun(name: str, story: _Story) -> tuple[Observer, RunInfo, _Story]:
            observer, info = self._make(), story.info(self.folder / name)
            observer.start(info, None)
            return observer, info, story

        other = replace(_USUAL, what="another", role="teacher", terms=("labels",), untaught=())
        alone = begun("alone", _USUAL)
        _tell(*alone, range(1, _USUAL.epochs + 1))
        wanted = _left(alone[0], alone[1])
        alone[0].end(alone[1], None)
        first, second = begun("first", _USUAL), begun("second", other)
        with _blaming("one of two runs at once"):
            for epoch in range(1, _USUAL.epochs + 1):
                _tell(*first, [epoch])
                _tell(*second, [epoch])
            got = _left(first[0], first[1])
            for observer, info, _ in (first, second):
                observer.end(info, None)
        require(
            same(wanted, got), "what it leaves of a run is otherwise when it watches another too"
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
        info = _USUAL.info(self.folder)
        threads = set(threading.enumerate())
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
        observer.end(info, None)
        for thread in set(threading.enumerate()) - threads:
            thread.join(1)
            require(not thread.is_alive(), f"its thread {thread.name} goes on after the end")
        still = _open_files(info.directory)
        require(not still, f"it left {', '.join(still)} open after the end")

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

    def _whole(self, name: str) -> dict[str, bytes]:
        """What it leaves of a run that is never cut off."""
        info = _USUAL.info(self.folder / name)
        observer = self._make()
        observer.start(info, None)
        _tell(observer, info, _USUAL, range(1, _USUAL.epochs + 1))
        observer.end(info, None)
        return _files(info.directory)

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
            _tell(observer, info, _USUAL, [1 + cut.epochs], asking=False)
        else:
            first = cut.epochs * _STEPS + 1
            observer.steps(info, first, _USUAL.steps(first, 2))
        if cut.killed and not cut.lost:
            shutil.copytree(directory, left)
        observer.end(info, KeyboardInterrupt())
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


def _left(observer: Observer, info: RunInfo) -> Any:
    """Its state, and the sizes of its files: names may hold the time."""
    state = observer.state_dict()
    files = sorted(path.stat().st_size for path in info.directory.rglob("*") if path.is_file())
    return state, files


def _files(directory: Path) -> dict[str, bytes]:
    """What lies below a directory, by path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


_NUMBER = re.compile(r"-?[0-9][0-9.]*(e[+-]?[0-9]+)?")


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
    return f"its line {number} is {other[:80]!r} and not {line[:80]!r}{shown}"


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
    except Exception as error:
        raise ContractError(f"{what}: it raised {type(error).__name__}: {error}") from error
