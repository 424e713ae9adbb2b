"""Runs carried out: each after those that it builds on, from wherever it was left."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from kdzoo.errors import CheckpointError, DataError, RunError
from kdzoo.pipeline.plan import Job, Plan, Role, Run
from kdzoo.pipeline.session import Session
from kdzoo.report.page import write_run_page
from kdzoo.report.summary import Report
from kdzoo.spec.models import Spec
from kdzoo.spec.read import dump_spec
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Ints
from kdzoo.training.loop import Watch
from kdzoo.training.weights import read_weights

__all__ = ["Sessions"]

log = logging.getLogger("kdzoo")


class Sessions:
    """The sessions of a command of several runs: one for each device that they ask for."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._sessions: dict[tuple[str, int | None], Session] = {}

    def of(self, spec: Spec) -> Session:
        """The one for this spec's device."""
        key = spec.device, spec.data.workers
        if key not in self._sessions:
            self._sessions[key] = Session(self.runs, spec)
        return self._sessions[key]

    def do(self, spec: Spec, *, fresh: bool = False, wait: bool = False) -> Run:
        """One run, as :func:`run` does it."""
        with _computing(spec):
            return _do(self.of(spec), spec, "student", fresh=fresh, wait=wait)

    def train(self, spec: Spec, watch: Watch) -> RunDirectory:
        """One run, up to where the test images would be read. It is the run that :func:`run`
        finishes: found by the same hash, in the same directory."""
        with _computing(spec):
            return _train(self.of(spec), spec, "student", watch)

    def take_part(self, job: Job) -> None:
        """In another process than the first: train with it."""
        session = self.of(job.spec)
        if session.images(job.spec).fingerprint != job.fingerprint:
            raise DataError(
                f'data "{job.spec.data.use}": the images are not those of the first process; each '
                "machine needs the same"
            )
        with _computing(job.spec):
            Plan(session, job.spec, job.role).fit(None)

    @property
    def stored(self) -> str:
        """What was said last of the stored outputs of a teacher; empty where there are none."""
        return next((one.stored for one in self._sessions.values() if one.stored), "")

    def directory(self, spec: Spec) -> RunDirectory:
        """Where a run is, or would be."""
        return self.of(spec).directory(spec)

    def validation_images(self, spec: Spec) -> tuple[tuple[str, ...], Ints]:
        """The class names, and (C,) how many validation images each has."""
        images = self.of(spec).images(spec)
        targets = images.validation.targets.cpu().numpy()
        return images.classes, np.bincount(targets, minlength=len(images.classes))

    def put_together(self, specs: Iterable[Spec]) -> None:
        """Put each setting together once, so that the last one's mistake does not wait for the
        first one's hours."""
        tried = set()
        for spec in specs:
            key = dump_spec(spec.model_copy(update={"seed": 0}))
            if key not in tried and not self.directory(spec).finished:
                with _computing(spec):
                    Plan(self.of(spec), spec, "student")
            tried.add(key)


def _do(
    session: Session, spec: Spec, role: Role, *, fresh: bool = False, wait: bool = False
) -> Run:
    """One run, from wherever it was left to its report.

    Args:
        spec: the run's.
        role: what its student is.
        fresh: start it over.
        wait: wait for another process that is working on it; teachers and baselines always do.
    """
    directory = session.directory(spec)
    if not fresh and directory.finished:
        return _found(session, directory, spec, role)
    # All parts are put together before anything is trained, so that whatever does not fit is
    # found at once and not after the teacher.
    plan = Plan(session, spec, role)
    with directory.locked(wait=wait or role != "student"), _disk_errors(directory):
        if fresh:
            directory.clear()
        elif directory.finished:  # by the process that had the lock
            return _found(session, directory, spec, role)
        others = {name: _do(session, other, name) for name, other in plan.others.items()}
        return plan.do(directory, others)


def _train(session: Session, spec: Spec, role: Role, watch: Watch) -> RunDirectory:
    """The same run, up to where the test images would be read; ``_do`` goes on from there.

    Another process that is working on it is waited for.

    Args:
        spec: the run's.
        role: what its student is.
        watch: who looks on, at the teacher's and the baseline's run too.
    """
    directory = session.directory(spec)
    if directory.trained:
        return directory
    plan = Plan(session, spec, role)
    with directory.locked(wait=True), _disk_errors(directory):
        if not directory.trained:  # by the process that had the lock
            watch.begin(role)
            others = {name: _train(session, o, name, watch) for name, o in plan.others.items()}
            plan.train(directory, others, watch)
    return directory


def _found(session: Session, directory: RunDirectory, spec: Spec, role: Role) -> Run:
    log.info("%s: finished before, in %s", role, directory.path)
    if role != "teacher":  # whose weights are read where it teaches
        try:
            read_weights(directory.student)
        except CheckpointError as error:
            log.warning("%s", error)
    if not (directory.page.exists() and directory.table.exists()):
        write_run_page(directory)  # the run was killed between its report and its page
    return Run(directory.path, Report.read(directory.report))


@contextlib.contextmanager
def _computing(spec: Spec) -> Iterator[None]:
    """The spec's number of threads, and convolutions that a GPU does in the same way each time;
    these, and the caller's random state, are put back."""
    cudnn = torch.backends.cudnn
    threads, before = torch.get_num_threads(), (cudnn.deterministic, cudnn.benchmark)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    # Which way a benchmark finds the fastest is not the same each time, nor are the last digits.
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = before


@contextlib.contextmanager
def _disk_errors(directory: RunDirectory) -> Iterator[None]:
    """Says of an error of the disk what it means for the run."""
    try:
        yield
    except OSError as error:
        kept = "the last checkpoint is kept" if directory.checkpoint.exists() else "nothing is lost"
        reason = error.strerror or error
        raise RunError(f"{error.filename or directory.path}: {reason}; {kept}") from error
