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
        # What is ignored has nothing to wait for; what Python did not set it could not put back.
        if before[number] not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for one in came:  # all: a handler may only count them
            signal.raise_signal(one)
