"""The whole suite, one measurement after the other; each keeps its results by itself.

    python benchmarks/all.py
    python benchmarks/all.py startup memory --output elsewhere

On two cores it takes some hours, in which nothing else should run. These are the commands that the
tables in docs/benchmarks.md were made with. What trains for accuracy and not for time is no part of
it (cifar_classes.py, cifar_short.py, cifar100_table.py, label_weight.py, planted_signals.py), nor
is what needs a GPU (gpu.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "step": "step.py --pairs resnet56:resnet20 --steps 10 --skip 5 --threads 1 --workers 0 1",
    "step_wide": "step.py --pairs resnet32x4:resnet8x4 --steps 4 --skip 1 --rounds 3 --trial 2 "
    "--workers 0 1 --threads 1",
    "epoch": "step.py --epochs --pairs resnet20:resnet8 --steps 50 --rounds 3 --workers 0 1 "
    "--threads 1",
    "growth": "growth.py --axes batch classes taps --threads 1",
    "growth_processes": "growth.py --axes processes --threads 1 --rounds 3",
    "growth_processes_wide": "growth.py --axes processes --threads 1 --pair resnet32x4:resnet8x4 "
    "--rounds 2 --steps 6 --skip 1",
    "crd_bank": "crd_bank.py --threads 1 --rounds 5",
    "crd_run": "crd_run.py",
    "memory": "memory.py --threads 1",
    "startup": "startup.py --rounds 3",
    "anatomy": "anatomy.py --threads 1",
    "limit": "limit.py --threads 1 --rounds 20",
    "overhead": "overhead.py",
    "stored_teacher": "stored_teacher.py --images 4544",
    "streaming": "streaming.py",
}


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description="kdzoo's benchmarks, one after the other: all of them take some hours.",
        epilog="torchdistill is compared with where it is installed: pip install torchdistill",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or of {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="show the commands only")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results"),
        help="the folder for the results, from the project's own on (%(default)s)",
    )
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = []
    for name in args.parts or PARTS:
        script, *rest = PARTS[name].split()
        print(f"\n# {name}: python benchmarks/{script} {' '.join(rest)}", flush=True)
        if args.list:
            continue
        begun = time.perf_counter()
        output = ["--output", str(args.output / name)]
        done = subprocess.run(
            [sys.executable, f"benchmarks/{script}", *rest, *output], cwd=HERE.parent
        )
        print(f"# {(time.perf_counter() - begun) / 60:.0f} min", flush=True)
        failed += [name] if done.returncode else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
