"""Signals that come at a wrong moment wait, and none is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from kdzoo.interrupts import Insistence, held_back


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Which of both came; the handlers are put back."""
    found: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: found.append(number)) for number in numbers]
    yield found
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_all_of_them_are_heard_afterwards(heard: list[int]) -> None:
    """A study tells the first Ctrl-C from the second."""
    with held_back():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
        assert heard == []
    assert heard == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]


def test_one_that_is_ignored_does_not_hide_the_other(heard: list[int]) -> None:
    """A study's worker ignores the terminal's Ctrl-C, and is then told by the first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_back():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_second_one_need_not_wait(heard: list[int]) -> None:
    with held_back(second=False):
        signal.raise_signal(signal.SIGINT)
        assert heard == []
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_what_is_raised_in_there_does_not_lose_it(heard: list[int]) -> None:
    def write() -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"), held_back():
        write()
    assert heard == [signal.SIGINT]


def pressed() -> None:
    """Ctrl-C in code that throws it away."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_was_thrown_away_is_raised_again() -> None:
    interrupts = Insistence()
    with pytest.raises(KeyboardInterrupt), interrupts.watching():  # at its end
        pressed()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_only_heard_is_not_raised(heard: list[int]) -> None:
    """A study goes on to the end of the epoch."""
    interrupts = Insistence()
    with interrupts.watching():
        signal.raise_signal(signal.SIGINT)
        interrupts.check()
    assert heard == [signal.SIGINT]
