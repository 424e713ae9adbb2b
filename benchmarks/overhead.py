"""What kdzoo's own parts of a step cost: the curves, the observers, the class policy.

    python benchmarks/overhead.py

They do not depend on the networks, so they are profiled in a run of tiny ones on the digits, with
the default observers looking at every step. Beside whole steps of resnet56 teaching resnet20, where
two measurements of the same thing differ by more than that, they could not be seen. Being profiled
makes each of them slower than it is.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path

import kdzoo

PARTS = {  # what is shown, and the function in whose time it is
    "curves: the counts of a batch": ("curves.py", "record"),
    "losses brought to the host, three observers": ("loop.py", "_log"),
    "an epoch's end: curves, the decision of tllm": ("distiller.py", "end_epoch"),
}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="What kdzoo's own parts of a step cost.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    spec = {
        "name": "overhead",
        "data": "digits",
        "teacher": {"use": "mlp", "train": {"epochs": 1}},
        "student": "mlp",
        "losses": ["ce", "kd"],
        "policy": {"use": "tllm", "signal": "residual", "start_epoch": 1},
        "train": {"epochs": args.epochs},
        "log_every": 1,
        "threads": args.threads,
    }
    with tempfile.TemporaryDirectory() as runs:
        kdzoo.run(spec, ["train.epochs=2"], runs=Path(runs))  # the teacher, and what is imported
        with cProfile.Profile() as profile:
            kdzoo.run(spec, runs=Path(runs))
    calls = {
        (Path(file).name, function): (count, seconds)
        for (file, _, function), (_, count, _, seconds, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if "kdzoo" in file
    }
    steps = calls["curves.py", "record"][0]
    print(f"{steps} steps; ms a step")
    for part, function in PARTS.items():
        print(f"{part:<48}{1e3 * calls[function][1] / steps:>8.2f}")


if __name__ == "__main__":
    main()
