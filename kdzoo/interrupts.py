"""Ctrl-C and SIGTERM, where they come at a wrong moment and where they are thrown away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["INTERRUPTS", "Insistence", "held_back", "put_back"]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], object] | int | None


@contextlib.contextmanager
def put_back(*numbers: signal.Signals) -> Iterator[dict[signal.Signals, Handler]]:
    """The handlers of these signals, which are put back at the end whatever is set in here.

    Signals come to the main thread alone, and it alone may set them: there are none in another.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if main}
    try:
        yield before
    finally:
        for number, handler in before.items():
            if handler is not None:  # it was not set from Python
                signal.signal(number, handler)


@contextlib.contextmanager
def held_back(*others: signal.Signals, second: bool = True) -> Iterator[None]:
    """They wait until this ends: for where other code calls back into Python, and what is raised
    there would be lost, or end the process, or leave a lock that a thread waits for.

    Args:
        others: signals whose handlers are put back too, whatever is set in here.
        second: whether the second one waits as well; where this may take long, it should not.
    """
    came: list[int] = []
    try:
        with put_back(*INTERRUPTS, *others) as before:

            def hear(number: int, frame: FrameType | None) -> None:
                handler = before[signal.Signals(number)]
                if came and not second and callable(handler):
                    handler(number, frame)
                else:
                    came.append(number)

            for number in INTERRUPTS:
                # Nothing waits for what is ignored; what Python did not set it could not put back.
                if before.get(number) not in (signal.SIG_IGN, None):
                    signal.signal(number, hear)
            yield
    finally:
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
        watched = [number for number in INTERRUPTS if callable(signal.getsignal(number))]
        with put_back(*watched) as before:

            def hear(number: int, frame: FrameType | None) -> None:
                handler = before[signal.Signals(number)]
                assert callable(handler)
                try:
                    handler(number, frame)
                except KeyboardInterrupt:
                    self._raised = True
                    raise

            for number in before:
                signal.signal(number, hear)
            yield
        self.check()
