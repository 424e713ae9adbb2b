"""The packages under docs/examples install, pass their tests and run, as anybody's would."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fresh import Fresh

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PACKAGES = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))


def test_each_is_short() -> None:
    assert len(PACKAGES) == 3
    for package in PACKAGES:
        (module,) = package.glob("*.py")
        assert len(module.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_each_installs_and_passes_its_tests_which_run_its_spec(
    fresh: Fresh, tmp_path: Path
) -> None:
    folders = [Path(shutil.copytree(package, tmp_path / package.name)) for package in PACKAGES]
    fresh.try_packages(folders)
