"""Writes metrics.jsonl: one JSON object a line, without clock times, so that it is reproducible."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

import kdzoo

__all__ = ["JsonLines"]

log = logging.getLogger("kdzoo")


class JsonLines(kdzoo.Observer):
    """``metrics.jsonl``: a line for each look at the losses and a line for each epoch.

    ``{"step": 20, "loss/ce": ...}`` holds means over the steps since the line before.
    """

    name = "jsonl"

    _file: IO[bytes] | None = None

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        """See :meth:`kdzoo.Observer.start`."""
        self._file = open(run.directory / "metrics.jsonl", "a+b")  # noqa: SIM115
        self._file.seek(0)
        # Lines after the checkpoint belong to steps that will be done again.
        lines = self._file.read(state["bytes"] if state else 0).splitlines(keepends=True)
        if state and (not lines or _record(lines[-1]).get("epoch") != run.epoch):
            log.warning(
                "%s: lines up to step %d are missing; the run goes on, it needs none of them",
                self._file.name,
                run.step,
            )
            lines = list(itertools.takewhile(lambda line: _step(line) <= run.step, lines))
        self._file.truncate(sum(map(len, lines)))
        self._file.seek(0, os.SEEK_END)

    def steps(
        self, run: kdzoo.RunInfo, first: int, values: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        last = first + len(next(iter(values.values()))) - 1
        means = {name: float(series.mean(dtype=np.float64)) for name, series in values.items()}
        self._write({"step": last, **means})

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        untaught = [run.classes[c] for c in record.curves.untaught]
        self._write(
            {"epoch": record.epoch, "step": record.step, **record.scalars, "untaught": untaught}
        )

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.Observer.state_dict`."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        """See :meth:`kdzoo.Observer.end`."""
        if self._file is not None:
            self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record).encode() + b"\n")


def _record(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is not whole."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {}


def _step(line: bytes) -> float:
    """The step of a line; infinity where it is not whole."""
    return float(_record(line).get("step", math.inf))


@kdzoo.hookimpl
def kdzoo_observers() -> list[type[kdzoo.Observer]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [JsonLines]
