"""Test plugins are installed as anybody's would be: as distributions with entry points."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from fresh import Fresh
from warm import Warm

HERE = Path(__file__).parent


def install(site: Path, source: Path, name: str | None = None, version: str = "1.0") -> None:
    """Make a module look installed in ``site``: a distribution with an entry point."""
    name = name or source.stem.replace("_", "-")
    site.mkdir(parents=True, exist_ok=True)
    (site / source.name).write_bytes(source.read_bytes())
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[kdzoo]\n{name} = {source.stem}\n")


def entry_points(site: Path) -> list[metadata.EntryPoint]:
    """The entry points of what is installed in ``site`` alone."""
    found = []
    for distribution in metadata.distributions(path=[str(site)]):
        found += [entry for entry in distribution.entry_points if entry.group == "kdzoo"]
    return sorted(found, key=lambda entry: entry.name)


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugins of tests/installed, for this process and for its children."""
    import torch  # here: the process that only hands out tests needs neither, nor waits for them

    from kdzoo.extend.registry import registry

    site = tmp_path_factory.mktemp("site")
    for source in sorted((HERE / "installed").glob("*.py")):
        install(site, source)
    sys.path.insert(0, str(site))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), before]))
    registry.cache_clear()
    torch.set_num_threads(1)  # the tests' networks are tiny: a second thread only waits
    yield site
    sys.path.remove(str(site))


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """A shell's background ignores Ctrl-C, and so would the tests there, and their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def hasty() -> Iterator[None]:
    """Nobody waits until the disk has a file: a power cut alone would show it. Commands do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Runs modules in processes of their own, which do not import torch each anew."""
    warm = Warm()
    yield warm
    warm.end()


@pytest.fixture
def kdzoo_command(warm: Warm, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own, in ``tmp_path``."""

    def command(
        *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return warm.run("kdzoo", *arguments, cwd=tmp_path, env=env)

    return command


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """An environment that has what is installed here, for packages of anybody's."""
    return Fresh(tmp_path_factory.mktemp("fresh"))


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A complete spec that runs in a second: teacher, baseline, student, policy."""
    return {
        "name": "tiny",
        "data": {"use": "planted", "per_class": 12},
        "teacher": {"use": "mlp", "widths": [16], "train": {"epochs": 2}},
        "student": {"use": "mlp", "widths": [8]},
        "baseline": True,
        "train": {
            "epochs": 4,
            "batch_size": 16,
            "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
            "schedule": {"use": "multistep", "milestones": [2]},
        },
        "losses": [{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9}],
        "policy": {"use": "tllm", "start_epoch": 1, "patience": 1, "window": 1, "margin": 0.0},
        "observers": ["jsonl"],
    }
