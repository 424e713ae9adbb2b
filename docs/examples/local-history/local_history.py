"""A run's history in local files, as Weights & Biases keeps it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import kdzoo

log = logging.getLogger("kdzoo")


class LocalHistory(kdzoo.Observer):
    """``history/``: config.yaml, history.jsonl (rows with ``_step``), summary.json (last ones)."""

    name = "local-history"

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        """See :meth:`kdzoo.Observer.start`."""
        (folder := run.directory / "history").mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(run.spec, encoding="utf-8")
        self._rows, self._last = folder / "history.jsonl", folder / "summary.json"
        self._summary: dict[str, Any] = dict(state["summary"]) if state else {}
        self._rows.touch()
        if self._rows.stat().st_size < (done := state["bytes"] if state else 0):
            log.warning("%s: rows are missing; it begins anew", self._rows)
            done = 0
        os.truncate(self._rows, done)  # what lies beyond is told again

    def steps(self, run: kdzoo.RunInfo, first: int, values: Mapping[str, Any]) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        means = {name: float(series.mean()) for name, series in values.items()}
        self._log({"_step": first + len(values["loss/total"]) - 1, **means})

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        classes = zip(run.classes, record.curves.student[-1].tolist(), strict=True)
        seen = {f"class/{name}": value for name, value in classes if value == value}  # no NaN
        self._log({"_step": record.step, "epoch": record.epoch, **record.scalars, **seen})
        self._last.write_text(json.dumps(self._summary, indent=2), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.Observer.state_dict`."""
        with open(self._rows, "ab") as stream:
            os.fsync(stream.fileno())
            return {"bytes": stream.tell(), "summary": dict(self._summary)}

    def _log(self, row: dict[str, Any]) -> None:
        self._summary |= row
        with open(self._rows, "ab") as stream:
            stream.write(json.dumps(row).encode() + b"\n")


@kdzoo.hookimpl
def kdzoo_observers() -> list[type[kdzoo.Observer]]:
    """What this plugin adds."""
    return [LocalHistory]
