"""A package that kdzoo writes: its files, its name, its range; tests/test_packages.py uses it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import kdzoo
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.scaffold import write_package

KINDS = [base.kind for base in HOOKS.values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["k", "ResNet_8x4", "a" * 30])
def test_what_is_written_is_clean_whatever_the_name(tmp_path: Path, kind: str, name: str) -> None:
    folder = write_package(name, kind, tmp_path)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    for file in folder.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")


def test_the_range_begins_at_this_version_and_ends_at_the_next_that_may_break(
    tmp_path: Path,
) -> None:
    text = (write_package("mine", "loss", tmp_path) / "pyproject.toml").read_text()
    (wanted,) = re.findall(r'dependencies = \["(.*)"\]', text)
    specifier = Requirement(wanted).specifier
    now = Version(kdzoo.__version__)
    assert specifier.contains(kdzoo.__version__)
    assert not specifier.contains(f"{now.major + 1}.0" if now.major else f"0.{now.minor + 1}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", '"" cannot name a package'),
        ("2fast", "beginning with a letter"),
        ("my loss", '"my loss" cannot name a package'),
        ("my--loss", "single dashes"),
        ("-loss", "cannot name a package"),
        ("größe", "letters (a to z)"),
        ("../loss", "cannot name a package"),
        ("loss.py", "cannot name a package"),
        ("a" * 31, "up to 30 letters"),
        ("lambda", "means something else already"),
        ("tests", "means something else already"),
        ("Null", "means something else already"),
        ("scikit-learn", "would replace the package of that name"),
        ("json", "would hide the module json, which is installed"),
        ("Torch", "would replace the package"),
        ("sklearn", "would hide the module sklearn"),
        ("kdzoo", "would replace the package"),
        ("kd", 'loss "kd" is already added by plugin "losses.kd" of kdzoo'),
        ("there", "there: exists already"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(kdzoo.KdzooError, match=re.escape(message)):
        write_package(name, "loss", tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_module_of_the_same_name_may_lie_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (write_package("mine", "loss", Path()) / "mine.py").is_file()


def test_a_name_of_another_kind_is_free(tmp_path: Path) -> None:
    assert (write_package("kd", "policy", tmp_path) / "kd.py").is_file()


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(kdzoo.RunError, match="cannot be written: No such file or directory"):
        write_package("mine", "loss", tmp_path / "nowhere")


def test_the_command(tmp_path: Path, kdzoo_command: Callable[..., Any]) -> None:
    wrong = kdzoo_command("plugins", "new", "mine", "--kind", "los")
    assert wrong.returncode == 1
    assert wrong.stderr == 'kdzoo: there is no kind "los"; did you mean "loss"?\n'
    done = kdzoo_command("plugins", "new", "mine", "--kind", "loss")
    assert done.returncode == 0, done.stderr
    assert "cd mine" in done.stdout
    assert sorted(os.listdir(tmp_path / "mine"))[-4:] == [
        *("digits.yaml", "mine.py", "pyproject.toml", "tests")
    ]
