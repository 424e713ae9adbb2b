"""Two processes that form a group, kept for all checks that need them."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import pickle
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import distributed

from kdzoo.extend.isolation import TORCH_SETTINGS, changed_settings
from kdzoo.testing.checks import ContractError, NotApplicable

__all__ = ["in_two_processes"]

P = ParamSpec("P")
T = TypeVar("T")

_STARTING = 120.0
"""Seconds in which two processes must be there."""

_ANSWERING = 120.0
"""Seconds in which they must have done what they were asked."""


def in_two_processes(
    work: Callable[Concatenate[int, P], T], *args: P.args, **kwargs: P.kwargs
) -> list[T]:
    """What ``work`` answers in each of two processes of one gloo group, its rank given first.

    The processes are started by the first call, and end with this one.

    Raises:
        NotApplicable: there can be no such group here, or what is given cannot be sent to it.
        ContractError: it failed in a process, or the two do not come to an end.
    """
    if not (distributed.is_available() and distributed.is_gloo_available()):
        raise NotApplicable("torch was built without gloo")
    try:
        job = pickle.dumps((work, args, kwargs))
    except Exception as error:
        raise NotApplicable(
            f"it cannot be sent to another process: define it at the top of a module ({error})"
        ) from error
    return _pair().do(job)


class _Pair:
    """Two processes that wait for work."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = Path(tempfile.mkdtemp())
        self.ours: list[Connection] = []
        self.processes = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, str(self.folder / "store"), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.ours.append(ours)
            self.processes.append(process)
        self.ready = False

    def do(self, job: bytes) -> list[Any]:
        try:
            if not self.ready:
                self._answers(_STARTING)
                self.ready = True
            for connection in self.ours:
                connection.send_bytes(job)
            return self._answers(_ANSWERING)
        except BaseException:  # one of them may be waiting for the other
            self.end()
            raise

    def _answers(self, seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        answers: dict[int, Any] = {}
        failure = ""
        while len(answers) < 2 and time.monotonic() < deadline:
            for rank, connection in enumerate(self.ours):
                if rank in answers or not connection.poll(0.02):
                    continue
                try:
                    answers[rank], said = pickle.loads(connection.recv_bytes())
                except EOFError:
                    answers[rank], said = None, "the process died"
                if said and not failure:
                    failure = said
                    deadline = min(deadline, time.monotonic() + 1)  # the other may wait in vain
        if failure:
            raise ContractError(f"in one of two processes: {failure}")
        if len(answers) < 2:
            raise ContractError(
                f"two processes do not come to an end within {seconds:g} s. One may wait for what "
                "the other never sends: every process must take part in every exchange. Or this "
                "machine has too much else to do"
            )
        return [answers[rank] for rank in range(2)]

    def end(self) -> None:
        global _started
        for process in self.processes:
            process.kill()
            process.join()
        for connection in self.ours:
            connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        _started = None


_started: _Pair | None = None


def _pair() -> _Pair:
    global _started
    if _started is None:
        _started = _Pair()
        atexit.register(_started.end)
    return _started


def _serve(rank: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=_STARTING),
    )
    connection.send_bytes(pickle.dumps((None, "")))
    with contextlib.suppress(EOFError):
        while True:
            work, args, kwargs = pickle.loads(connection.recv_bytes())
            try:
                with changed_settings(TORCH_SETTINGS):  # the next one's are its own
                    answer, failure = work(rank, *args, **kwargs), ""
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                answer = None
                failure = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            connection.send_bytes(pickle.dumps((answer, failure)))
