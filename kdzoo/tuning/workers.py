"""Processes on this machine that do what this one does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from kdzoo.interrupts import put_back

__all__ = ["Workers", "follow_leader"]

_PATIENCE = 20.0  # seconds that a worker has which was told twice to end


class Workers:
    """Processes beside this one, as a context manager: they are started, told to stop, waited for.

    They are new ones and no forks: torch's threads and the GPU do not survive a fork.

    Args:
        count: how many.
        target: what each does; a function of a module.
        arguments: of it.
    """

    def __init__(self, count: int, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = [context.Process(target=target, args=arguments) for _ in range(count)]
        self._told = 0
        self._missed: set[int] = set()

    def __enter__(self) -> Workers:
        # A terminal's Ctrl-C comes to all of its processes; these hear of it from this one alone,
        # or they could not tell the first from the second.
        with put_back(signal.SIGINT) as before:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            for process in self._processes:
                process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            while self._told < (1 if issubclass(kind, KeyboardInterrupt) else 2):
                self.stop()
        try:
            self._join()
        except KeyboardInterrupt:  # the second one; they have been told
            self._join()
            raise

    def stop(self) -> None:
        """Tell all to stop: the first time after the epoch, the second time at once."""
        self._told += 1
        for process in self._processes:
            if process.is_alive():
                process.terminate()

    def lost(self) -> list[str]:
        """What became of those that ended as they should not, once each."""
        found = []
        for number, process in enumerate(self._processes):
            code = process.exitcode
            if not code or self._told or number in self._missed:
                continue
            self._missed.add(number)
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
            found.append(f"worker {number + 2} {how}; the others go on")
        return found

    def _join(self) -> None:
        for process in self._processes:
            process.join(_PATIENCE if self._told > 1 else None)
            if process.is_alive():
                process.kill()
                process.join()


def follow_leader() -> None:
    """In a worker: leave Ctrl-C to the process that started it, and stop when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leader = multiprocessing.parent_process()
    assert leader is not None

    def wait() -> None:
        leader.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
