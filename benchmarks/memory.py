"""Memory at peak: kdzoo's engine beside other loops, each method.

    python benchmarks/memory.py

What the process of a contestant of step.py has in memory, sampled every 10 ms from when it is given
the job until it has done some steps, less what it had before (Python, torch and what else is
imported). Memory that processes share is counted in parts (Linux's proportional set size). Loaders
have no processes of their own here: each would add to the others' numbers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from pathlib import Path

from contestants.job import Job, write_teacher
from contestants.turns import Contestant
from result import Result, add_output, median, paired
from step import METHODS, PAIRS, present

_PAUSE = 0.01  # seconds between two samples


class Peak:
    """Samples what a process has, in a thread, as a context manager: ``megabytes`` at peak."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/smaps_rollup")
        self._before = self._now()
        self._highest = self._before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        """At peak, more than before."""
        return (self._highest - self._before) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(_PAUSE):
            self._highest = max(self._highest, self._now())

    def _now(self) -> float:
        lines = self._file.read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(module: str, job: Job, steps: int, log: Path) -> list[float]:
    """Megabytes at peak; none where a contestant cannot do the job."""
    contestant = Contestant(module, log)
    try:
        with Peak(contestant.pid) as peak:
            said, _ = contestant.start(job)
            if said == "failed":
                return []
            contestant.round(1, steps)
            contestant.finish()
        return [peak.megabytes]
    finally:
        contestant.close()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Memory at peak, kdzoo beside other loops.")
    add = parser.add_argument
    add("--pair", default=PAIRS[0], metavar="TEACHER:STUDENT", help="which (%(default)s)")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="which (all)")
    add("--rounds", type=int, default=3, help="a new process in each (%(default)s)")
    add("--steps", type=int, default=6, help="of each (%(default)s)")
    add("--batch", type=int, default=64, help="images a step (%(default)s)")
    add("--samples", type=int, default=50_000, help="training images (%(default)s)")
    add("--negatives", type=int, default=16_384, help="of crd, an image (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add_output(parser, "memory")
    args = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        parser.error("needs /proc/PID/smaps_rollup (Linux)")
    teacher, student = args.pair.split(":")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    modules = present()
    names = list(modules)
    result = Result(args, f"{args.threads} threads")
    result.table(
        f"{teacher} -> {student}, batch {args.batch}, {args.samples} images of 32x32; MB at peak",
        *names,
        *(f"kdzoo / {name}" for name in names[1:]),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.pt"
        write_teacher(teacher, 100, file)
        for method in args.methods:
            job = Job(
                pair=(teacher, student),
                method=method,
                teacher_file=str(file),
                batch=args.batch,
                samples=args.samples,
                negatives=args.negatives,
                threads=args.threads,
            )
            peaks: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(args.rounds):
                for name, module in modules.items():
                    peaks[name] += measure(module, job, args.steps, Path(folder) / "log")
            shown = [median(values, 0) if values else "-" for values in peaks.values()]
            ratios = [
                paired(peaks["kdzoo"], peaks[name]) if peaks[name] else "-" for name in names[1:]
            ]
            result.row(method, *shown, *ratios)
    result.say()
    result.say("Medians over rounds; ratios round by round: median (least-greatest).")


if __name__ == "__main__":
    main()
