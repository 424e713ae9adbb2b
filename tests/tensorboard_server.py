"""A real TensorBoard, asked as its pages in a browser ask it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def tensorboard(runs: Path, load_fast: str = "false") -> Iterator[Callable[..., Any]]:
    """A server over these runs; what is yielded asks it for a route.

    A query makes it a GET; ``body``, a POST of JSON.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs)]
        + f"--port {port} --host 127.0.0.1 --reload_interval 1 --load_fast {load_fast}".split(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def get(route: str, body: Any = None, **query: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{route}?{urllib.parse.urlencode(query)}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            said = answer.read()
        return json.loads(said) if answer.headers.get_content_type() == "application/json" else said

    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                get("data/environment")
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        yield get
    finally:
        server.terminate()
        server.wait()
