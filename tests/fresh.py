"""A fresh environment for packages that are installed for real, without a network."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

CHECKS = ("ruff check .", "ruff format --check .", "mypy")
_LEFT = {"PYTHONPATH"}  # the plugins of the running tests


class Fresh:
    """A virtual environment that sees the packages of the running one, and installs its own.

    Args:
        path: where it is made.
    """

    def __init__(self, path: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        self.python = path / "bin" / "python"
        here = {"base": str(path), "platbase": str(path)}
        packages = Path(sysconfig.get_path("purelib", vars=here))
        seen = dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()])
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in seen]
        (packages / "running.pth").write_text("".join(lines))
        command = path / "bin" / "kdzoo"
        command.write_text(f"#!{self.python}\nfrom kdzoo.cli import main\n\nmain()\n")
        command.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if key not in _LEFT}
        self.environment = {
            **kept,
            "PATH": os.pathsep.join([str(path / "bin"), kept["PATH"]]),
            # Not the folder that a program runs in: what was installed is meant (Python 3.11 on).
            "PYTHONSAFEPATH": "1",
            "MYPY_CACHE_DIR": str(path / "mypy"),
            "OMP_NUM_THREADS": "1",
            # What a package is built with and needs is there.
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def __call__(self, line: str, cwd: Path) -> str:
        """What a line of a shell says, which must succeed."""
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def try_packages(self, folders: Sequence[Path]) -> None:
        """Install packages, and do what the CI of each does: of the same settings, so for all at
        once."""
        where = folders[0].parent
        names = " ".join(f"./{folder.name}" for folder in folders)
        modules = {folder: _module(folder) for folder in folders}
        (settings,) = {_settings(folder, module) for folder, module in modules.items()}
        assert 'files = ["MODULE.py", "tests"]' in settings
        self(f"python -m pip install -q {names}", where)
        listed = json.loads(self("kdzoo plugins --json", where))
        active = {record["name"] for record in listed if record["status"] == "active"}
        assert active >= {folder.name for folder in folders}
        lint, layout, types = CHECKS
        self(f"python -m {lint}; python -m {layout}", where)
        files = " ".join(f"{f.name}/{module}.py {f.name}/tests" for f, module in modules.items())
        self(f"python -m {types} --config-file {folders[0].name}/pyproject.toml {files}", where)
        rules = f"-c {folders[0].name}/pyproject.toml --rootdir ."
        said = self(f"python -m pytest {rules} {names}", where)
        for folder, module in modules.items():
            assert re.search(rf"{folder.name}/tests/test_{module}.py [.s]*[.]", said), said


def _module(folder: Path) -> str:
    (module,) = folder.glob("*.py")
    return module.stem


def _settings(folder: Path, module: str) -> str:
    """Of pytest, ruff and mypy, in a package's pyproject.toml."""
    text = (folder / "pyproject.toml").read_text()
    return text[text.index("[tool.pytest") :].replace(module, "MODULE")
