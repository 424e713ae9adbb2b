"""The house: which way imports run, what the wheel's entry points name, what loads lazily."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

import kdzoo.testing

ROOT = Path(__file__).parents[1]
# From the ground up: a module imports from its own room and from those before it.
ROOMS = [
    "errors",
    "seeds",
    "words",
    "interrupts",
    "torchrun",
    "extend",
    "spec",
    "data",
    "distill",
    "training",
    "report",
    "pipeline",
    "tuning",
    "testing",
    "cli",
]
MODULES = sorted((ROOT / "kdzoo").rglob("*.py"))


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the room"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "kdzoo" and len(parts) > 1 else None


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(module: Path) -> None:
    here = module.relative_to(ROOT / "kdzoo").parts[0].removesuffix(".py")
    names = imported(module)
    assert not any(name.split(".")[0] == "kdzoo_plugins" for name in names)
    if here in ("__init__", "__main__"):
        return
    for name in names:
        other = room(name)
        # `import kdzoo` inside a command of the cli is the public surface itself.
        if other is not None:
            assert ROOMS.index(other) <= ROOMS.index(here), f"{here} imports {name}"


def test_every_room_is_in_the_order() -> None:
    found = {p.relative_to(ROOT / "kdzoo").parts[0].removesuffix(".py") for p in MODULES}
    assert found - {"__init__", "__main__"} == set(ROOMS)


def test_bundled_plugins_reach_the_engine_by_its_public_names() -> None:
    for module in (ROOT / "plugins").rglob("*.py"):
        for name in imported(module):
            assert not name.startswith("kdzoo."), f"{module.name} imports {name}"


def test_every_bundled_file_has_its_entry_point() -> None:
    root = ROOT / "plugins" / "kdzoo_plugins"
    files = {
        f"kdzoo_plugins.{path.parent.name}.{path.stem}"
        for path in root.glob("*/*.py")
        if not path.name.startswith("_")
    }
    named = {
        entry.value
        for entry in metadata.entry_points(group="kdzoo")
        if entry.dist is not None and entry.dist.name == "kdzoo"
    }
    assert named == files


def test_the_wheel_has_every_file(tmp_path: Path) -> None:
    build = f"import hatchling.build; hatchling.build.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    rooms = {ROOT / "kdzoo": ROOT, ROOT / "plugins" / "kdzoo_plugins": ROOT / "plugins"}
    files = {
        path.relative_to(above).as_posix()
        for room, above in rooms.items()
        for path in room.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['kdzoo', *{arguments!r}]\n"
        "from kdzoo.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_every_public_name_loads() -> None:
    for name in kdzoo.__all__:
        assert getattr(kdzoo, name) is not None
    assert set(kdzoo.__all__) <= set(dir(kdzoo))
    with pytest.raises(AttributeError, match="no attribute 'Los'"):
        kdzoo.Los  # noqa: B018
    assert kdzoo.testing.__all__ == ["Result", "conformance", "run_checks"]


@pytest.mark.parametrize("use", ["kdzoo.Ancient", "from kdzoo import Ancient"])
def test_a_name_that_is_to_go_still_works_and_warns(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kdzoo._DEPRECATED, "Ancient", ("Params", "0.3"))
    found: dict[str, object] = {"kdzoo": kdzoo}
    for _ in range(2):  # each use warns, not the first alone
        with pytest.warns(DeprecationWarning, match="Ancient") as warned:
            exec(compile(use if " " in use else f"Ancient = {use}", "theirs.py", "exec"), found)
        assert found["Ancient"] is kdzoo.Params
        said = {(str(warning.message), warning.filename) for warning in warned}
        wanted = "kdzoo.Ancient is kdzoo.Params now; the old name goes in version 0.3"
        assert said == {(wanted, "theirs.py")}
    assert "Ancient" not in kdzoo.__all__
    for new, end in kdzoo._DEPRECATED.values():
        assert new in kdzoo.__all__
        assert re.fullmatch(r"\d+\.\d+", end)


def test_type_checkers_see_the_public_names() -> None:
    """The lazily loaded names and those under TYPE_CHECKING are the same, from the same homes."""
    tree = ast.parse((ROOT / "kdzoo" / "__init__.py").read_text())
    (guard,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == kdzoo._HOME_OF
