"""How long the command line takes to do nothing much, beside importing torch.

    python benchmarks/startup.py

The commands take turns; whole processes, files in the system's cache. The finished run is one of
the digits, which the command finds and shows again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result import Result, add_output, paired, spread

KDZOO = ("-m", "kdzoo")
COMMANDS = {
    "import torch": ("-c", "import torch"),
    "kdzoo --help": (*KDZOO, "--help"),
    "kdzoo plugins": (*KDZOO, "plugins"),
    "kdzoo plugins show dkd": (*KDZOO, "plugins", "show", "dkd"),
    "kdzoo validate digits.yaml": (*KDZOO, "validate", "digits.yaml"),
    "kdzoo run digits.yaml (finished)": (*KDZOO, "run", "digits.yaml"),
}


def seconds(arguments: tuple[str, ...], folder: Path) -> float:
    """Of a Python process."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return took


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="How long the command line takes to start.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (%(default)s)")
    add_output(parser, "startup")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        seconds((*KDZOO, "init", "digits"), folder)
        text = (folder / "digits.yaml").read_text()
        short = ("--set", "train.epochs=1", "--set", "teacher.train.epochs=1")
        run = (*COMMANDS["kdzoo run digits.yaml (finished)"], *short)
        commands = {**COMMANDS, "kdzoo run digits.yaml (finished)": run}
        assert "epochs" in text
        took: dict[str, list[float]] = {label: [] for label in commands}
        seconds(run, folder)  # trains; everything else is read once, too
        for arguments in commands.values():
            seconds(arguments, folder)
        for _ in range(args.rounds):
            for label, arguments in commands.items():
                took[label].append(seconds(arguments, folder))
    result = Result(args)
    result.table("seconds of a command", "s", "of importing torch")
    base = took["import torch"]
    for label, values in took.items():
        result.row(label, spread(values), "" if values is base else paired(values, base))


if __name__ == "__main__":
    main()
