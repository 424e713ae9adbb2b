"""The whole suite, one measurement after the other; each keeps its results by itself.

    python benchmarks/all.py
    python benchmarks/all.py startup memory

On two cores it takes about two hours, in which nothing else should run. What trains for accuracy
and not for time is no part of it (cifar_classes.py, cifar_short.py, cifar100_table.py,
label_weight.py, planted_signals.py), nor is what needs a GPU (gpu.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "step": "step.py --pairs resnet56:resnet20 --steps 10 --output {results}/step",
    "step_wide": "step.py --pairs resnet32x4:resnet8x4 --steps 5 --rounds 3 "
    "--output {results}/step_wide",
    "epoch": "step.py --epochs --pairs resnet20:resnet8 --steps 100 --rounds 3 "
    "--output {results}/epoch",
    "growth": "growth.py",
    "growth_processes_wide": "growth.py --axes processes --pair resnet32x4:resnet8x4 --rounds 2 "
    "--steps 6 --skip 1 --output {results}/growth_processes_wide",
    "crd_bank": "crd_bank.py",
    "crd_run": "crd_run.py",
    "memory": "memory.py",
    "startup": "startup.py",
    "anatomy": "anatomy.py",
    "limit": "limit.py --rounds 20",
    "overhead": "overhead.py",
    "stored_teacher": "stored_teacher.py",
    "streaming": "streaming.py",
}


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description="kdzoo's benchmarks, one after the other.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or of {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="show the commands only")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = []
    for name in args.parts or PARTS:
        script, *rest = PARTS[name].format(results="benchmarks/results").split()
        print(f"\n# {name}: python benchmarks/{script} {' '.join(rest)}", flush=True)
        if args.list:
            continue
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, f"benchmarks/{script}", *rest], cwd=HERE.parent)
        print(f"# {(time.perf_counter() - begun) / 60:.0f} min", flush=True)
        failed += [name] if done.returncode else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
