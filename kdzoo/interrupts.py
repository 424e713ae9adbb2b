"""Ctrl-C and SIGTERM, where they come at a wrong moment and where they are thrown away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Insistence", "held_back"]

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back(*others: signal.Signals, second: bool = True) -> Iterator[None]:
    """They wait until this ends: for where other code calls back into Python, and what is raised
    there would be lost, or end the process, or leave a lock that a thread waits for.

    Args:
        others: signals whose handlers are put back too, whatever is set in here.
        second: whether the second one waits as well; where this may take long, it should not.
    """
    if threading.current_thread() is not threading.main_thread():  # it is the one that gets them
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (*_INTERRUPTS, *others)}

    def hear(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if came and not second and callable(handler):
            handler(number, frame)
        else:
            came.append(number)

    for number in _INTERRUPTS:
        # What is ignored has nothing to wait for; what Python did not set it could not put back.
        if before[number] not in (signal.SIG_IGN, None):
            signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for one in came:  # all: a handler may only count them
            signal.raise_signal(one)


class Insistence:
    """An interrupt that was raised, and of which nothing came, is raised again.

    A handler's KeyboardInterrupt comes wherever the main thread happens to be, and some code throws
    away whatever is raised in it: ``except:``, what is called back for a deleted object, a C
    extension that looks up a name (as numpy does where an array is compared with an enum's member).
    """

    def __init__(self) -> None:
        self._raised = False

    def check(self) -> None:
        """Raise it here, if it was raised in :meth:`watching`.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self._raised:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notice in here what the handlers raise, and check at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = ((number, signal.getsignal(number)) for number in _INTERRUPTS)
        watched = {number: handler for number, handler in handlers if callable(handler)}

        def hear(number: int, frame: FrameType | None) -> None:
            try:
                watched[signal.Signals(number)](number, frame)
            except KeyboardInterrupt:
                self._raised = True
                raise

        for number in watched:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in watched.items():
                signal.signal(number, handler)
        self.check()
