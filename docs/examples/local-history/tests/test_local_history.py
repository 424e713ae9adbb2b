"""Whether LocalHistory keeps kdzoo's contract, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import kdzoo
import pytest
from kdzoo.testing import conformance

from local_history import LocalHistory


@conformance(LocalHistory)
class TestLocalHistory:
    """Each check is a test."""


def test_the_spec_runs(tmp_path: Path) -> None:
    spec = Path(__file__).parents[1] / "digits.yaml"
    done = kdzoo.run(spec, ["train.epochs=2", "teacher.train.epochs=1"], runs=tmp_path)
    history = done.directory / "history"
    assert (history / "config.yaml").read_text() == (done.directory / "spec.yaml").read_text()
    rows = [json.loads(line) for line in (history / "history.jsonl").read_text().splitlines()]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(steps)
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2]
    last = rows[-1]
    assert 0 <= last["class/3"] <= 1
    assert json.loads((history / "summary.json").read_text()).items() >= last.items()


def test_rows_that_are_gone_are_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "history.jsonl").write_text("half a row")
    info = kdzoo.RunInfo("a", "student", tmp_path, ("x",), 1, 1, 0, 0, "name: a\n")
    LocalHistory().start(info, {"bytes": 20, "summary": {}})
    assert "history.jsonl: rows are missing; it begins anew" in caplog.text
    assert (tmp_path / "history" / "history.jsonl").read_bytes() == b""
