"""A run directory: its files, its lock, and writes that are whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from kdzoo.errors import CheckpointError, LockedError, RunError, SpecError
from kdzoo.spec.document import Document

__all__ = ["RunDirectory"]

log = logging.getLogger("kdzoo")


class RunDirectory:
    """All that one run leaves behind.

    Attributes:
        path: the directory.
        spec: the spec as resolved.
        environment: versions, device, threads.
        checkpoint: everything needed to go on exactly.
        classes: the teaching curves.
        right: without a teacher, which training rows the student was right on in each epoch.
        student: the trained weights.
        answers: what the student answered to each test image.
        report: what came out; written when the run is finished.
        page: the same to be read in a browser.
        table: the same, class by class, as CSV.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.yaml"
        self.environment = path / "environment.json"
        self.checkpoint = path / "checkpoint.pt"
        self.classes = path / "classes.csv"
        self.right = path / "right.safetensors"
        self.student = path / "student.safetensors"
        self.answers = path / "answers.safetensors"
        self.report = path / "report.json"
        self.page = path / "report.html"
        self.table = path / "report.csv"

    @classmethod
    def at(cls, runs: Path, name: str, identity: str) -> RunDirectory:
        """The directory of the run with this identity, whatever its name was when it began."""
        named = runs / f"{name}-{identity}"
        others = sorted(path for path in runs.glob(f"*-{identity}") if path.is_dir())
        return cls(named if named.is_dir() or not others else others[0])

    @property
    def finished(self) -> bool:
        """Whether the run is through."""
        return all(
            file.exists() for file in (self.report, self.answers, self.classes, self.student)
        )

    @property
    def trained(self) -> bool:
        """Whether nothing is left to do but to read the test images."""
        return all(file.exists() for file in (self.student, self.classes, self.checkpoint))

    @property
    def unfinished(self) -> str:
        """Why there is nothing to report on where the run is not through."""
        if self.report.exists() and not self.checkpoint.exists():
            return "is a report on several runs and no run; name the runs themselves"
        return "holds no finished run; `kdzoo run` finishes one"

    def kept_spec(self) -> dict[str, Any]:
        """The plain data of the spec as resolved.

        Raises:
            CheckpointError: the file is damaged, or gone.
        """
        try:
            return Document.read(self.spec).data
        except SpecError as error:
            raise CheckpointError(
                f"{self.path}: the spec that it was run with cannot be read ({error}); the same "
                "spec with --fresh makes it again, and trains again"
            ) from error

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[None]:
        """Create the directory and keep every other process out of it.

        Args:
            wait: wait for another process to leave rather than raise.

        Raises:
            LockedError: another process is in it.
            RunError: it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not wait:
                    raise LockedError(
                        f"{self.path}: another process is working on this run; wait for it, or "
                        "stop it first"
                    ) from None
                log.info("waiting for another process to finish %s", self.path)
                lock.acquire()
            for left in self.path.glob(_partial(self.checkpoint, "*")):  # of a run that was killed
                left.unlink()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be used as run directory: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def write(self, file: Path, content: bytes) -> None:
        """Replace one of the directory's files, atomically and durably.

        Raises:
            RunError: the disk is full or refuses; the file is as it was.
        """
        with self.replacing(file) as stream:
            stream.write(content)

    @contextlib.contextmanager
    def replacing(self, file: Path) -> Iterator[BinaryIO]:
        """A stream for what is to be in one of the files, which is replaced as in :meth:`write`.

        Raises:
            RunError: as there.
        """
        # Two commands may finish one study, or report on it, at the same time.
        partial = file.with_name(_partial(file, os.getpid()))
        try:
            with open(partial, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise RunError(f"{file}: cannot be written: {error.strerror}") from error

    def clear(self) -> None:
        """Remove everything but the lock."""
        self.report.unlink(missing_ok=True)  # first: from here on the run is unfinished
        for path in self.path.iterdir():
            if path.name == ".lock":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _partial(file: Path, process: int | str) -> str:
    """The name of a file while a process writes it."""
    return f".{file.name}.{process}.partial"
