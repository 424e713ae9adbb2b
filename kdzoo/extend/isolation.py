"""Other people's modules are loaded in here, so that one cannot spoil the process for the rest."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from kdzoo.errors import PluginError

__all__ = ["TORCH_SETTINGS", "Isolation", "changed_settings"]

T = TypeVar("T")

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]

TORCH_SETTINGS: dict[str, Setting] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of matrix products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
}
"""What holds for the whole process, and decides the numbers of every run: how to get and set it."""

_PROCESS_SETTINGS: dict[str, Setting] = {
    "the working directory": (os.getcwd, os.chdir),
    "the level of all logs": (lambda: logging.root.manager.disable, logging.disable),
}

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def changed_settings(settings: dict[str, Setting]) -> Iterator[list[str]]:
    """Put settings back at the end; the list then names those that had been changed."""
    changed: list[str] = []
    before = {}
    for name, (get, _) in settings.items():
        with contextlib.suppress(OSError):  # a working directory that is gone cannot be kept
            before[name] = get()
    try:
        yield changed
    finally:
        for name, value in before.items():
            get, put = settings[name]
            if get() != value:
                put(value)
                changed.append(name)


class _TookTooLongError(BaseException):
    """No Exception: what waits for a server often catches those, and tries again."""


class Isolation:
    """Around one plugin while it is loaded. It is no sandbox: it holds off accidents, not intent.

    What the plugin prints goes to stderr, where it cannot get between the lines of a JSON answer.
    What it sets for the whole process is put back. It has a limited time, and whatever it raises
    becomes a :class:`PluginError`, ``SystemExit`` and ``KeyboardInterrupt`` too, unless somebody
    did press Ctrl-C.

    Args:
        seconds: how long each call may take. There is no limit outside the main thread, nor on
            systems without timers.

    Attributes:
        deprecations: what warned meanwhile that it will go.
    """

    def __init__(self, seconds: float) -> None:
        self.deprecations: list[warnings.WarningMessage] = []
        self._seconds = seconds

    def call(self, code: Callable[[], T], failed: str) -> T:
        """What ``code`` returns.

        Args:
            code: something of the plugin's.
            failed: the beginning of the message if it fails: ``cannot be imported``.

        Raises:
            PluginError: it failed, or changed what holds for the whole process.
        """
        interrupts: list[int] = []
        try:
            with (
                changed_settings(TORCH_SETTINGS | _PROCESS_SETTINGS) as changed,
                torch.random.fork_rng(devices=[]),
                contextlib.redirect_stdout(sys.stderr),
                self._warnings(),
                _signals(interrupts, changed),
                _time_limit(self._seconds),
            ):
                result = code()
        except PluginError:
            raise
        except _TookTooLongError as error:
            raise PluginError(
                f"{failed}: it took more than {self._seconds:g} s; KDZOO_PLUGIN_SECONDS gives it "
                "longer"
            ) from error
        except BaseException as error:  # one that calls sys.exit() must not end the others
            if interrupts:
                raise
            raise PluginError(f"{failed}: {type(error).__name__}: {_message(error)}") from error
        if changed:
            raise PluginError(
                f"changes {', '.join(changed)} for everybody when it is loaded; leave that to "
                "whoever runs it"
            )
        return result

    @contextlib.contextmanager
    def _warnings(self) -> Iterator[None]:
        """Keep deprecations, pass other warnings on, and undo what is done to the filters."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeprecationWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, DeprecationWarning):
                self.deprecations.append(warning)
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def deprecations_of(self, module: Any) -> tuple[str, ...]:
        """Those that the code of ``module``'s package is to blame for: ``file:line: message``."""
        root = sys.modules.get(str(getattr(module, "__name__", "")).partition(".")[0])
        file = getattr(root, "__file__", None)
        if file is None:
            return ()
        home = Path(file).parent if hasattr(root, "__path__") else Path(file)
        found = [
            f"{Path(warning.filename).name}:{warning.lineno}: {_message(warning.message)}"
            for warning in self.deprecations
            if Path(warning.filename).is_relative_to(home)
        ]
        return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def _signals(interrupts: list[int], changed: list[str]) -> Iterator[None]:
    """Note which signals came in, and put their handlers back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    watched = [number for number in _SIGNALS if callable(before[number])]
    for number in watched:
        signal.signal(number, note)
    try:
        yield
    finally:
        if any(signal.getsignal(number) is not note for number in watched):
            changed.append("what Ctrl-C does")
        for number in watched:
            signal.signal(number, before[number])


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TookTooLongError

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _message(error: object) -> str:
    """In one line, and not without end; there are exceptions that cannot be printed."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        return "(its message cannot be printed)"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


_LONGEST = 500
