"""Contestants in processes of their own, which take turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result import Cell, median, paired

from contestants.job import Job, serve


class Contestant:
    """A process that trains, and waits when it is not its turn.

    Args:
        module: its loop, a module of :mod:`contestants`.
        log: a file for what it prints.
    """

    def __init__(self, module: str, log: Path) -> None:
        # A process of its own imports torch once and is forked, before it ever had a thread.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload(["kdzoo.pipeline.runs", "torchvision", "tensorboard"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(module, theirs, str(log)))
        self._process.start()
        theirs.close()
        self._log = log

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    def start(self, job: Job) -> tuple[Any, ...]:
        """Set a job up and do its first step: ``("ready", about)``, or ``("failed", why)``."""
        self._connection.send(job)
        return self._heard()

    def round(self, skip: int, steps: int) -> tuple[Any, ...]:
        """``("seconds", s)`` of some steps after others, or ``("failed", why)``."""
        self._connection.send(("round", skip, steps))
        return self._heard()

    def finish(self) -> None:
        """Leave the job."""
        self._connection.send(("done",))
        self._heard()

    def close(self) -> None:
        """End the process, wherever it is."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join()

    def _heard(self) -> tuple[Any, ...]:
        try:
            heard: tuple[Any, ...] = self._connection.recv()
        except EOFError:
            tail = self._log.read_text()[-2000:]
            raise SystemExit(f"a contestant's process died; it printed:\n{tail}") from None
        return heard


@dataclass
class Measured:
    """How one contestant did.

    Attributes:
        images_per_second: one number a round.
        about: what it said of itself (its number of loader workers).
        reason: why there are no numbers; empty otherwise.
    """

    images_per_second: list[float]
    about: Mapping[str, Any]
    reason: str = ""

    def cell(self) -> Cell | str:
        """For a table: the median, and the number of loader workers where there are any."""
        if self.reason:
            return "-"
        workers = self.about.get("workers")
        return median(self.images_per_second, note="" if workers is None else f" [{workers}]")


def measure(
    contestants: Mapping[str, tuple[Contestant, Job]], rounds: int, skip: int, steps: int
) -> dict[str, Measured]:
    """Let some contestants take turns."""
    results: dict[str, Measured] = {}
    for name, (contestant, job) in contestants.items():
        begun = time.perf_counter()
        said, what = contestant.start(job)
        print(f"{name}: {said} after {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        results[name] = Measured([], {}, what) if said == "failed" else Measured([], what)
    for number in range(rounds):
        going = [name for name, result in results.items() if not result.reason]
        for name in going if number % 2 == 0 else reversed(going):
            contestant, job = contestants[name]
            said, what = contestant.round(skip, steps)
            if said == "failed":
                results[name] = Measured([], {}, what)
            else:
                results[name].images_per_second.append(steps * job.batch / what)
    for name, result in results.items():
        if not result.reason:
            contestants[name][0].finish()
    return results


def ratio(first: Measured, second: Measured, digits: int = 2) -> Cell | str:
    """Of their images a second, round by round; for a table."""
    if first.reason or second.reason:
        return "-"
    return paired(first.images_per_second, second.images_per_second, digits)


@contextlib.contextmanager
def processes(modules: Mapping[str, str], logs: Path) -> Iterator[dict[str, Contestant]]:
    """A process for each contestant, in here.

    Args:
        modules: each one's loop.
        logs: a folder for what they print.
    """
    there = {name: Contestant(module, logs / name) for name, module in modules.items()}
    try:
        yield there
    finally:
        for contestant in there.values():
            contestant.close()
