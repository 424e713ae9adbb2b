"""Ctrl-C and SIGTERM, where they would come at a wrong moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["held_back"]

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back(*others: signal.Signals) -> Iterator[None]:
    """They wait until this ends: for where other code calls back into Python, and what is raised
    there would be lost, or end the process.

    Args:
        others: signals whose handlers are put back too, whatever is set in here.
    """
    if threading.current_thread() is not threading.main_thread():  # it is the one that gets them
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (*_INTERRUPTS, *others)}
    for number in _INTERRUPTS:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
