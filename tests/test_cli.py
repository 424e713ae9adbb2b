"""The commands, as a person types them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_newcomers_first_minute(tmp_path: Path, kdzoo_command: Callable[..., Any]) -> None:
    made = kdzoo_command("init", "digits")
    assert made.returncode == 0
    assert "kdzoo run digits.yaml" in made.stdout
    again = kdzoo_command("init", "digits")
    assert again.returncode == 1
    assert "digits.yaml: exists already" in again.stderr
    assert kdzoo_command("validate", "digits.yaml").returncode == 0
    search = ("--set", "tune={space: default, sampler: tpee}")
    assert 'did you mean "tpe"' in kdzoo_command("validate", "digits.yaml", *search).stderr
    short = ("--set", "train.epochs=2", "--set", "teacher.train.epochs=2")
    done = kdzoo_command("run", "digits.yaml", *short, env={"COLUMNS": "40"})
    assert done.returncode == 0, done.stderr
    for word in ("teacher", "baseline", "student", "worst class", "One seed: no verdict"):
        assert word in done.stdout
    assert "No longer taught: " in done.stdout
    (directory,) = tmp_path.glob("runs/digits-tllm-??????????")
    assert f"Run directory:  runs/{directory.name}" in done.stdout
    assert "tensorboard --logdir runs" in done.stdout
    for role in ("teacher", "baseline", "student"):
        # Progress, where no bar can be drawn.
        assert re.search(rf"^{role:<8} .*  loader \d+ %$", done.stderr, re.MULTILINE)
    repeated = kdzoo_command("run", "digits.yaml", *short, *search)
    assert repeated.stdout == done.stdout
    assert "finished before" in repeated.stderr
    assert "`tune` is passed over" in repeated.stderr
    said = kdzoo_command("evaluate", f"runs/{directory.name}")
    report = json.loads((directory / "report.json").read_text())
    assert f"{100 * report['student']['accuracy']:.2f} %" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.yaml"], "no.yaml: cannot be read: No such file or directory"),
        (["validate", "no.yaml"], "no.yaml: cannot be read"),
        (["init", "digit"], 'there is no spec "digit" to start from; did you mean "digits"?'),
        (["init", "planted"], 'there is no spec "planted" to start from'),
        (["init", "digits", "-o", "no/such/folder.yaml"], "cannot be written: No such file"),
        (["evaluate", "nowhere"], "a finished run's directory (runs/NAME-HASH)"),
    ],
)
def test_errors_are_one_message(
    kdzoo_command: Callable[..., Any], arguments: list[str], message: str
) -> None:
    done = kdzoo_command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("kdzoo: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--debug", "run"], ["run", "--debug"]])
def test_debug_shows_where_an_error_came_from(
    kdzoo_command: Callable[..., Any], arguments: list[str]
) -> None:
    done = kdzoo_command(*arguments, "no.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_of_several_processes_the_first_does_what_is_no_training(
    kdzoo_command: Callable[..., Any],
) -> None:
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    first, second = (
        kdzoo_command("init", "digits", env={**os.environ, **torchrun, "RANK": rank})
        for rank in "01"
    )
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "Wrote digits.yaml" in first.stdout
    assert second.stdout == second.stderr == ""


def test_the_plugins_are_listed(kdzoo_command: Callable[..., Any]) -> None:
    assert kdzoo_command("plugins", "--check").returncode == 0
    listed = json.loads(kdzoo_command("plugins", "--json").stdout)
    kd = next(record for record in listed if record["name"] == "losses.kd")
    assert kd["adds"] == {"loss": ["kd"]}
    assert (kd["status"], kd["distribution"]) == ("active", "kdzoo")


def test_a_broken_plugin_is_a_warning_unless_it_is_needed(
    tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    from conftest import HERE, install

    install(tmp_path / "site", HERE / "bad_plugins" / "import_error.py")
    (tmp_path / "site" / "torn-1.0.dist-info").mkdir()  # an interrupted installation
    torn = tmp_path / "site" / "torn-1.0.dist-info" / "entry_points.txt"
    torn.write_text("[kdzoo]\nfoo = no_such_module\n")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    kdzoo_command("init", "digits")
    short = ("--set", "train.epochs=1", "--set", "teacher.train.epochs=1")
    done = kdzoo_command("run", "digits.yaml", *short, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is broken and was left out: cannot be imported") == 2
    assert 'plugin "foo" of unknown unknown is broken' in done.stderr
    needed = ("--set", "losses.kd.use=import-error")
    done = kdzoo_command("run", "digits.yaml", *needed, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert 'unknown loss "import-error"' in done.stderr
    assert "cannot be imported: ModuleNotFoundError" in done.stderr
