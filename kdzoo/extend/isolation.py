"""Other people's modules are loaded in here, so that one cannot spoil the process for the rest."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import operator
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from pydantic.errors import PydanticSchemaGenerationError

from kdzoo.errors import PluginError
from kdzoo.interrupts import INTERRUPTS, put_back

__all__ = ["TORCH_SETTINGS", "Isolation", "changed_settings"]

T = TypeVar("T")

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]

# Where torch has two ways to allow TF32 the older one is put back first: it sets the newer one too.
_FLAGS = (
    *("mkldnn.enabled", "mkldnn.deterministic"),
    *("cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic"),
    *("cudnn.allow_tf32", "cuda.matmul.allow_tf32"),
    *("cudnn.conv.fp32_precision", "cuda.matmul.fp32_precision", "cudnn.fp32_precision"),
    *("mkldnn.conv.fp32_precision", "mkldnn.matmul.fp32_precision", "fp32_precision"),
)


def _flag(path: str) -> Setting:
    owner, _, name = path.rpartition(".")
    return (
        lambda: operator.attrgetter(path)(torch),
        lambda value: setattr(operator.attrgetter(owner)(torch), name, value),
    )


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
    **{f"torch.backends.{flag}": _flag(f"backends.{flag}") for flag in _FLAGS},
    # Nobody answers this one, but it holds for Python's own numbers too.
    "torch's treatment of denormal numbers": (
        lambda: sys.float_info.min / 2 == 0,
        torch.set_flush_denormal,
    ),
    "torch's detection of anomalies": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda before: torch.set_anomaly_enabled(*before),
    ),
}
"""What holds for the whole process, and decides the numbers of every run: how to get and set it."""

_ENVIRONMENT = ("OMP_", "MKL_", "OPENBLAS_", "CUBLAS_", "CUDA_VISIBLE_", "KDZOO_", "PYTHON")
"""What variables begin with that decide how this process and its children compute. Others are set
by many libraries when they are imported (OpenCV its LD_LIBRARY_PATH), and harm nobody."""


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}


def _set_variables(before: dict[str, str]) -> None:
    for name in _variables().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _excepthook() -> Any:
    """The backport of exception groups sets one, and many libraries import it on Python 3.10."""
    hook = sys.excepthook
    backport = str(getattr(hook, "__module__", "")).startswith("exceptiongroup")
    return sys.__excepthook__ if backport else hook


_PROCESS_SETTINGS: dict[str, Setting] = {
    "the working directory": (os.getcwd, os.chdir),
    "the level of all logs": (lambda: logging.root.manager.disable, logging.disable),
    # Whoever asks without allow_none settles it at the default.
    "how processes are started": (
        lambda: (
            multiprocessing.get_start_method(allow_none=True)
            or multiprocessing.get_all_start_methods()[0]
        ),
        lambda before: multiprocessing.set_start_method(before, force=True),
    ),
    "environment variables": (_variables, _set_variables),
    "the permissions of new files": (_umask, os.umask),
    "what NumPy does about errors": (np.geterr, lambda before: np.seterr(**before)),
    "garbage collection": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "sys.excepthook": (_excepthook, lambda before: setattr(sys, "excepthook", before)),
}

_DEPTH: dict[str, Setting] = {
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
}
"""Put back before all else, which may need more depth than a plugin has left."""


def _imports() -> dict[str, Setting]:
    """How modules are found, and those that are there already. New ones are nobody's harm, nor are
    folders that are looked into last: setuptools has some, and brings a distutils of its own."""
    modules = [name for name in sys.modules if name.partition(".")[0] != "distutils"]
    folders = len(sys.path)

    def put_modules(before: dict[str, Any]) -> None:
        sys.modules.update({name: was for name, was in before.items() if was is not _ABSENT})

    return {
        "sys.path": (
            lambda: sys.path[:folders],
            lambda before: sys.path.__setitem__(slice(None), before),
        ),
        "modules of others": (
            lambda: {name: sys.modules.get(name, _ABSENT) for name in modules},
            put_modules,
        ),
    }


_ABSENT = object()


@contextlib.contextmanager
def changed_settings(settings: dict[str, Setting]) -> Iterator[list[str]]:
    """Put settings back at the end; the list then names those that had been changed."""
    changed: list[str] = []
    before = _read(settings)
    try:
        yield changed
    finally:
        now = _read(settings)
        for name in before:
            if name not in now or now[name] != before[name]:
                changed.append(name)
                _, put = settings[name]
                with contextlib.suppress(OSError, RuntimeError):
                    put(before[name])


def _read(settings: dict[str, Setting]) -> dict[str, Any]:
    """The values of those that can be read: not of a working directory that is gone, of a flag that
    this torch does not have, or of one that was set in two ways that contradict each other."""
    values = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to ask is no use that anybody should change
        for name, (get, _) in settings.items():
            with contextlib.suppress(AttributeError, OSError, RuntimeError):
                values[name] = get()
    return values


class _TookTooLongError(BaseException):
    """No Exception: what waits for a server often catches those, and tries again."""


class _ExitsError(BaseException):
    """No Exception, for the same reason."""


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Python's and NumPy's generators go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Isolation:
    """Around one plugin while it is loaded. It is no sandbox: it holds off accidents, not intent.

    What the plugin and its C code print goes to stderr, where it cannot get between the lines of a
    JSON answer. What it sets for the whole process is put back. It has a limited time, and whatever
    it raises becomes a :class:`PluginError`, ``SystemExit`` and ``KeyboardInterrupt`` too, unless
    somebody did press Ctrl-C. So does ``os._exit``; a crash of C code cannot be caught.

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
                _signals(interrupts) as handlers,  # first: Ctrl-C is nobody's mistake in here
                changed_settings(TORCH_SETTINGS | _PROCESS_SETTINGS | _imports()) as changed,
                torch.random.fork_rng(devices=[]),
                _drawing(),
                _stdout_to_stderr(),
                self._warnings(),
                _daemons() as threads,
                _time_limit(self._seconds),
                _no_exit(),
                changed_settings(_DEPTH) as depth,
            ):
                result = code()
        except PluginError:
            raise
        except _TookTooLongError as error:
            raise PluginError(
                f"{failed}: it took more than {self._seconds:g} s; KDZOO_PLUGIN_SECONDS gives it "
                "longer"
            ) from error
        except _ExitsError as error:
            raise PluginError(f"{failed}: it ends the process (os._exit)") from error
        except BaseException as error:  # one that calls sys.exit() must not end the others
            if interrupts:
                raise
            raise PluginError(f"{failed}: {type(error).__name__}: {_message(error)}") from error
        if staying := [thread.name for thread in threads if thread.is_alive()]:
            raise PluginError(
                f"starts threads when it is loaded ({', '.join(staying)}), and no command would "
                "end before them; start them where they are used, or as daemons"
            )
        if changed := [*depth, *handlers, *changed]:
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
def _signals(interrupts: list[int]) -> Iterator[list[str]]:
    """Note which signals came in, and put their handlers back. The list says so at the end if they
    were others by then."""
    changed: list[str] = []
    watched = [number for number in INTERRUPTS if callable(signal.getsignal(number))]
    with put_back(*watched) as before:

        def note(number: int, frame: FrameType | None) -> None:
            interrupts.append(number)
            handler = before[signal.Signals(number)]
            assert callable(handler)
            handler(number, frame)

        for number in before:
            signal.signal(number, note)
        try:
            yield changed
        finally:
            if any(signal.getsignal(number) is not note for number in before):
                changed.append("what Ctrl-C does")


@contextlib.contextmanager
def _daemons() -> Iterator[list[threading.Thread]]:
    """No thread that is started in here keeps the process from ending. The list has those that
    would have."""
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(self: threading.Thread) -> None:
        if not self.daemon:
            self.daemon = True
            threads.append(self)
        start(self)

    threading.Thread.start = noted  # type: ignore[method-assign]
    try:
        yield threads
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """For Python and for whoever writes to the file descriptor."""
    with contextlib.ExitStack() as stack:
        _flush(sys.stdout)
        with contextlib.suppress(OSError):
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
            stack.callback(_flush, sys.stdout)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _flush(stream: Any) -> None:
    """What is printed waits in Python's buffer, or in that of C."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or none at all
        stream.flush()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Windows has no such handle
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """``os._exit`` would end the command without a word; a child process may end so."""
    leave, process, here = os._exit, os.getpid(), True

    def stopped(status: int) -> NoReturn:
        if here and os.getpid() == process:
            raise _ExitsError
        leave(status)

    os._exit = stopped
    try:
        yield
    finally:
        here = False
        os._exit = leave


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
        text = " ".join(_PYDANTICS_LINK.sub("", str(error)).split())
        if isinstance(error, PydanticSchemaGenerationError):  # its advice is for other programs
            text = f"{text.partition('. ')[0]}; a param is what YAML can hold: numbers, text, lists"
    except Exception:
        return "(its message cannot be printed)"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


_LONGEST = 500
_PYDANTICS_LINK = re.compile(r"For further information visit \S+")
