"""Writes a whole package around a new component, from the templates beside this file."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdzoo.errors import PluginError, RunError, SpecError, did_you_mean
from kdzoo.extend.describe import PLACES
from kdzoo.extend.registry import registry

__all__ = ["write_package"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")
_LONGEST = 30
_TAKEN = {"conftest", "hatch_build", "setup", "test", "tests"}  # tools look for such modules
_VALUES = {"false", "null", "true"}  # YAML does not read them as names

_WORDS = {
    "adapter": "feature adapter",
    "dataset": "data source",
    "loss": "loss",
    "model": "model",
    "observer": "observer",
    "policy": "class policy",
}


def write_package(name: str, kind: str, into: Path) -> Path:
    """A package with one component, which installs, passes its tests and runs.

    Args:
        name: of the distribution and of the component; with underscores, of the module.
        kind: of the component: ``loss``, ``adapter``, ...
        into: where the folder ``name`` is made.

    Returns:
        The folder.

    Raises:
        SpecError: there is no such kind, or the name cannot be used.
        PluginError: the name is taken.
        RunError: there is such a folder, or it cannot be written.
    """
    if kind not in _WORDS:
        raise SpecError(f'there is no kind "{kind}"{did_you_mean(kind, _WORDS)}')
    module = _module(name)
    folder = into / name
    if folder.exists():
        raise RunError(f"{folder}: exists already; choose another name, or move it")
    if name in registry().names(kind):
        owner = registry().owner(registry().find(kind, name))
        raise PluginError(f'{kind} "{name}" is already added by {owner}; choose another name')
    if _is_distribution(name):
        raise PluginError(f'"{name}" would replace the package of that name; choose another name')
    if module in sys.stdlib_module_names or _is_module(module):
        raise PluginError(
            f'"{name}" would hide the module {module}, which is installed; choose another name'
        )
    files = _files(name, kind, module)
    try:
        folder.mkdir()
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _module(name: str) -> str:
    module = name.replace("-", "_").lower()
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise SpecError(
            f'"{name}" cannot name a package: use up to {_LONGEST} letters (a to z), digits, '
            "single dashes and underscores, beginning with a letter"
        )
    if module in _TAKEN | _VALUES or keyword.iskeyword(module):
        raise SpecError(f'"{name}" means something else already; choose another name')
    return module


def _is_distribution(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _is_module(name: str) -> bool:
    """Whether a module is installed: one that lies here (``python -m`` looks here too) is not."""
    here = Path.cwd()
    path = [entry for entry in sys.path if Path(entry).resolve() != here]
    return PathFinder.find_spec(name, path) is not None


def _files(name: str, kind: str, module: str) -> dict[str, str]:
    """The package's files, by their paths in it."""
    word = _WORDS[kind]
    article = "An" if word[0] in "aeiou" else "A"
    parts = re.split("[-_]", name)
    cls = "".join(part[0].upper() + part[1:] for part in parts)
    known = {
        "article": article,
        "cls": cls if cls.endswith(kind.capitalize()) else cls + kind.capitalize(),
        "description": f"{article} {word} for kdzoo.",
        "kdzoo": _range(),
        "kind": kind,
        "module": module,
        "name": name,
        "place": PLACES[kind].format(name),
        "word": word,
    }
    templates = Environment(
        loader=PackageLoader("kdzoo.extend"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    sources = {
        ".github/workflows/test.yml": "test.yml",
        ".gitignore": "gitignore",
        "README.md": "README.md",
        "digits.yaml": "digits.yaml",
        "pyproject.toml": "pyproject.toml",
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"test_{kind}.py",
    }
    return {
        path: templates.get_template(f"{source}.jinja").render(known)
        for path, source in sources.items()
    }


def _range() -> str:
    """From this version up to the first one that may break plugins: see docs/compatibility.md."""
    major, minor = map(int, metadata.version("kdzoo").split(".")[:2])
    end = f"{major + 1}" if major else f"0.{minor + 1}"
    return f"kdzoo>={major}.{minor},<{end}"
