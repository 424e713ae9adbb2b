"""Ctrl-C and SIGTERM while a study runs: the first ends it after the epoch, the second at once."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

from kdzoo.interrupts import INTERRUPTS, put_back
from kdzoo.tuning.workers import Workers

__all__ = ["Interrupts"]

log = logging.getLogger("kdzoo.tuning")


class Interrupts:
    """Those of one process. What was heard once is asked for with :meth:`check`.

    "At once" is not in the middle of a storage's transaction: Optuna leaves it open when a signal
    handler raises there, and the database locked for everybody. So what comes while the storage may
    be in use waits for the next place where it is not; a third signal does not wait.
    """

    def __init__(self) -> None:
        self._heard = 0
        self._deferred = False

    @property
    def stopping(self) -> bool:
        """Whether the study is to end."""
        return self._heard > 0

    def check(self) -> None:
        """End the study here, if it is to end.

        Raises:
            KeyboardInterrupt: a signal was heard.
        """
        if self.stopping:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listen(self, others: Workers | None) -> Iterator[None]:
        """Hear the signals in here; they belong to a process's main thread.

        Args:
            others: who is to hear of it; ``None`` in one of them, which hears of no Ctrl-C itself.
        """

        def hear(number: int, frame: Any) -> None:
            self._heard += 1
            if others is not None:
                others.stop()
                if self._heard == 1:
                    log.info("stopping after this epoch; once more: at once")
            if self._heard > (2 if self._deferred else 1):
                raise KeyboardInterrupt

        with put_back(*((signal.SIGTERM,) if others is None else INTERRUPTS)) as before:
            for number in before:
                signal.signal(number, hear)
            yield

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In here the second one waits."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """In here, within :meth:`deferred`, the second one does not wait."""
        before, self._deferred = self._deferred, False
        try:
            if self._heard > 1:
                raise KeyboardInterrupt
            yield
        finally:
            self._deferred = before
