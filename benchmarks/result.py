"""What a benchmark has measured: shown as it comes, and kept as text and as JSON.

A result is a head, which says what was run and where, and tables. A cell of a table is a text, or
numbers that were measured together with what is shown of them; the JSON file has the numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """What is shown of some numbers, and the numbers."""

    shown: str
    values: tuple[float, ...] = ()


@dataclass
class Table:
    """A table.

    Attributes:
        title: what it shows.
        columns: the head of each column but the first.
        rows: a label, then a cell for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, tuple[Cell, ...]]] = field(default_factory=list)


class Result:
    """Prints what was measured, and writes it after each row: it outlives a run that is cut off.

    Args:
        args: the command line's, with ``output``: the files' common name, without suffix.
        machine: what of it the numbers depend on, beside what is always said.
    """

    def __init__(self, args: argparse.Namespace, machine: str = "") -> None:
        self._output: Path = args.output
        self._record: dict[str, Any] = {
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "machine": {**_machine(), "more": machine},
            "settings": {key: value for key, value in vars(args).items() if key != "output"},
        }
        self._tables: list[Table] = []
        self._lines: list[str] = []
        about = self._record["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        self.say(self._record["command"])
        self.say(
            f"{about['processor']}, {about['cores']} cores, {about['instructions']}"
            f"{', ' * bool(machine)}{machine}; Python {about['python']}, {versions}"
        )

    def say(self, line: str = "") -> None:
        """Another line of text."""
        print(line, flush=True)
        self._lines.append(line)
        self._write()

    def table(self, title: str, *columns: str) -> None:
        """Begin a table; ``columns`` are all but the first."""
        self._tables.append(Table(title, columns))
        self.say()
        self.say(title)
        self.say(f"{'':<{_LABEL}}" + "".join(f"{column:>{_WIDTH}}" for column in columns))

    def row(self, label: str, *cells: Cell | str) -> None:
        """Another row of the last table."""
        kept = tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells)
        table = self._tables[-1]
        assert len(kept) == len(table.columns)
        table.rows.append((label, kept))
        self.say(f"{label:<{_LABEL}}" + "".join(f"{cell.shown:>{_WIDTH}}" for cell in kept))

    def _write(self) -> None:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.with_suffix(".txt").write_text("\n".join(self._lines) + "\n")
        record = {**self._record, "tables": [asdict(table) for table in self._tables]}
        text = json.dumps(record, indent=1, default=str)
        self._output.with_suffix(".json").write_text(text + "\n")


_LABEL, _WIDTH = 34, 26


def threads_and_gpu(args: argparse.Namespace) -> str:
    """What a result says of the machine where ``--device`` can be a GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if args.device == "cuda" else ""
    return f"{args.threads} threads{gpu}"


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Where a result is kept: ``--output``."""
    said = "where to keep it, without .txt and .json (%(default)s)"
    parser.add_argument("--output", type=Path, default=RESULTS / name, help=said)


def median(values: Sequence[float], digits: int = 1, note: str = "") -> Cell:
    """The median of some numbers, and a note."""
    return Cell(f"{statistics.median(values):.{digits}f}{note}", tuple(values))


def spread(values: Iterable[float], digits: int = 2) -> Cell:
    """Median, and least to greatest."""
    values = tuple(values)
    middle, least, greatest = statistics.median(values), min(values), max(values)
    return Cell(f"{middle:.{digits}f} ({least:.{digits}f}-{greatest:.{digits}f})", values)


def paired(first: Sequence[float], second: Sequence[float], digits: int = 2) -> Cell:
    """The ratios of two measurements that took turns, round by round."""
    return spread((a / b for a, b in zip(first, second, strict=True)), digits)


def share(values: Iterable[float]) -> Cell:
    """Parts of a whole, in percent: the median, and of several the least to the greatest."""
    values = tuple(values)
    shown = f"{statistics.median(values):.0%}"
    if len(values) > 1:
        shown += f" ({min(values):.0%}-{max(values):.0%})"
    return Cell(shown, values)


def _machine() -> dict[str, Any]:
    names = ("torch", "torchvision", "pillow", "numpy", "torchdistill")
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in names
            if importlib.util.find_spec("PIL" if name == "pillow" else name)
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
