"""What the README shows is what happens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import install
from ruamel.yaml import YAML

from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry
from kdzoo.spec.read import read_study

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_spec_shown_is_the_starter() -> None:
    shown, _ = blocks("yaml")
    yaml = YAML(typ="safe", pure=True)
    starters = registry().find(DataSource.kind, "digits").starters
    assert yaml.load(shown) == yaml.load(starters["digits"])


def test_the_keys_for_several_runs_are_read_as_shown() -> None:
    yaml = YAML(typ="safe", pure=True)
    starter, several = (yaml.load(block) for block in blocks("yaml"))
    del starter["seed"]
    assert len(read_study({**starter, **several})) == 5 * 2 * 2


def test_the_twenty_lines_of_a_loss_work_as_shown(
    tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    (code,) = (code for code in blocks("python") if "LogitMSE" in code)
    (tmp_path / "logit_mse.py").write_text(code)
    install(tmp_path / "site", tmp_path / "logit_mse.py")
    (entry,) = re.findall(r"Then a spec can say `losses: (\[.*\])`", README)
    kdzoo_command("init", "digits")
    short = ("--set", "train.epochs=1", "--set", "teacher.train.epochs=1")
    done = kdzoo_command(
        "run",
        "digits.yaml",
        *short,
        "--set",
        f"losses={entry}",
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.glob("runs/digits-tllm-??????????/metrics.jsonl")
    assert '"loss/logit-mse"' in metrics.read_text()


def test_every_command_is_named() -> None:
    for command in ("run", "validate", "schema", "init", "plugins", "evaluate", "report"):
        assert f"`kdzoo {command}" in README
