"""Processes that find torch imported: each is a fork of one that has done so, and waits."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# What a run needs of others and takes a while; torch would import its _dynamo with an optimizer.
IMPORTED = ("torch._dynamo", "scipy.stats", "sklearn.datasets", "tensorboard.summary", "typer")


class Warm:
    """Starts modules as ``python -m`` does, and scripts as ``python`` does.

    What comes before their first line is done once for all of them: Python's start and the
    import of what a run needs of others, which takes longer than most commands. kdzoo is imported
    by each.
    """

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=theirs,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
                start_new_session=True,  # Ctrl-C is not for it
            )

    def start(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, merged: bool = False
    ) -> Command:
        """A module or a script, in a session of its own; ``merged`` puts stderr into stdout."""
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "env": {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        }
        command = Command(arguments, merged)
        command.give(self._orders, json.dumps(order).encode())
        return command

    def run(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """What it says, and its status."""
        command = self.start(*arguments, cwd=cwd, env=env)
        try:
            said = command.communicate(timeout)
        finally:
            command.kill()
        return subprocess.CompletedProcess(arguments, command.wait(), *said)

    def end(self) -> None:
        self._orders.close()
        self._server.kill()
        self._server.wait()


class Command:
    """One of these processes, with what :class:`subprocess.Popen` has."""

    def __init__(self, arguments: tuple[str, ...], merged: bool) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._err = self._out if merged else tempfile.TemporaryFile("w+")  # noqa: SIM115

    def give(self, orders: socket.socket, order: bytes) -> None:
        """Have it started."""
        reading, writing = os.pipe()
        socket.send_fds(orders, [order], [writing, self._out.fileno(), self._err.fileno()])
        os.close(writing)
        self._status = open(reading)  # noqa: SIM115
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.arguments), timeout or 0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it has said once it has ended; the second is empty where they are merged."""
        self.wait(timeout)
        said = []
        for file in dict.fromkeys([self._out, self._err]):
            file.seek(0)
            said.append(file.read())
        return said[0], "".join(said[1:])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve() -> None:
    """Fork for each order."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # what is here stays, and stays shared
    del sys.path[0]  # this file's folder
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who keeps a command is not waited for
    orders = socket.socket(fileno=0)
    while True:
        order, files, _, _ = socket.recv_fds(orders, 1 << 20, 3)
        if not order:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(json.loads(order), *files)
        for file in files:
            os.close(file)


def _keep(order: dict[str, Any], status: int, *files: int) -> NoReturn:
    """Start a command, and say which process it is and, later, how it ended."""
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _run(**order, files=files)
    try:
        os.write(status, f"{pid}\n".encode())
        _, ended = os.waitpid(pid, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    finally:
        os._exit(0)


def _run(arguments: list[str], cwd: str, env: dict[str, str], files: tuple[int, ...]) -> NoReturn:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate([nothing, *files]):
        os.dup2(file, number)
    for file in {nothing, *files}:
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    script = arguments[0].endswith(".py")
    first = os.path.dirname(arguments[0]) if script else cwd
    sys.path[:0] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = list(arguments)
    status: Any = None
    try:
        if script:
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # The end of Python but for tearing all modules down, which takes longer than what was run.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    _serve()
