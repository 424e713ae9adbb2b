"""How a step of kdzoo's engine grows: with the batch, the classes, the taps, the processes.

    python benchmarks/growth.py

All sizes of a row of tables take turns, each in a process of its own, with the networks and images
of step.py. How a step grows with the number of training images, which only CRD's banks notice, is
what crd_bank.py measures.

- batch: kd; images a step.
- classes: kd under the class policy tllm, which watches every class's curves.
- taps: fitnet with so many pairs of stages, each with its regressor.
- processes: kd, so many processes with so many threads each, started by torchrun; whole epochs, as
  an observer sees them end, of which the first does not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from contestants.engine import spec
from contestants.job import Job, write_teacher
from contestants.turns import measure, processes
from result import Cell, Result, add_output, median, paired

HERE = Path(__file__).parent
AXES = ("batch", "classes", "taps", "processes")
PROCESSES = ("1x1", "1x2", "2x1")  # how many, and the threads of each


def variants(axis: str, job: Job, args: argparse.Namespace) -> dict[str, Job]:
    """A job for each size along an axis."""
    if axis == "batch":
        return {f"{size} images": replace(job, batch=size) for size in args.batches}
    if axis == "taps":
        jobs = (replace(job, method="fitnet", taps=count) for count in args.taps)
        return {f"{made.taps} taps": made for made in jobs}
    made = {}
    for count in args.classes:
        file = Path(job.teacher_file).with_name(f"teacher-{count}.pt")
        write_teacher(job.pair[0], count, file)
        policy = {"use": "tllm", "signal": "residual"}
        changes: dict[str, Any] = {"classes": count, "teacher_file": str(file), "policy": policy}
        made[f"{count} classes"] = replace(job, **changes)
    return made


def grow(axis: str, job: Job, args: argparse.Namespace, result: Result, folder: Path) -> None:
    """The table of one axis."""
    jobs = variants(axis, job, args)
    with processes(dict.fromkeys(jobs, "engine"), folder) as contestants:
        turns = {label: (contestants[label], each) for label, each in jobs.items()}
        measured = measure(turns, args.rounds, args.skip, args.steps)
    failed = [f"{label}: {each.reason}" for label, each in measured.items() if each.reason]
    if failed:
        raise SystemExit("\n".join(failed))
    seconds = {
        label: [jobs[label].batch / speed for speed in each.images_per_second]
        for label, each in measured.items()
    }
    speeds = {label: each.images_per_second for label, each in measured.items()}
    show(axis, seconds, speeds, result)


def cut(text: str) -> str:
    """A number of processes and the threads of each, if that is what it says."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not NxTHREADS, such as 2x1")
    return text


def grow_processes(job: Job, args: argparse.Namespace, result: Result, folder: Path) -> None:
    """The table of the processes."""
    steps = args.skip + args.steps
    seconds: dict[str, list[float]] = {label: [] for label in args.processes}
    for number in range(args.rounds):
        for label in args.processes if number % 2 == 0 else reversed(args.processes):
            count, threads = map(int, label.split("x"))
            took = epochs(count, replace(job, threads=threads), steps, folder / f"{number}-{label}")
            seconds[label] += [second / steps for second in took]
    speeds = {label: [job.batch / second for second in took] for label, took in seconds.items()}
    show("processes x threads", seconds, speeds, result)


def epochs(count: int, job: Job, steps: int, folder: Path) -> list[float]:
    """How long each epoch took, without the first, with so many processes."""
    folder.mkdir()
    ends = folder / "ends.json"
    content = {
        **spec(replace(job, samples=steps * job.batch)),
        "observers": [{"use": "epoch-ends", "file": str(ends)}],
    }
    content["train"]["epochs"] = 4
    (folder / "spec.yaml").write_text(json.dumps(content))  # JSON is YAML, too
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    plugin = HERE / "contestants" / "engine.py"
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "kdzoo", "run", "spec.yaml", "--plugin", str(plugin)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": str(job.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    at: list[float] = json.loads(ends.read_text())
    return [later - before for before, later in itertools.pairwise(at)]


def show(
    axis: str,
    seconds: Mapping[str, list[float]],
    speeds: Mapping[str, list[float]],
    result: Result,
) -> None:
    """A row for each size."""
    result.table(f"growth with the {axis}", "ms a step", "images a second", "step, of the first")
    first = next(iter(seconds.values()))
    for label, took in seconds.items():
        growth: Cell | str = "" if took is first else paired(took, first)
        milliseconds = [1000 * second for second in took]
        result.row(label, median(milliseconds), median(speeds[label]), growth)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="How a step of kdzoo's engine grows.")
    add = parser.add_argument
    add("--axes", nargs="+", default=AXES, choices=AXES, help="which (all)")
    add("--pair", default="resnet20:resnet8", metavar="TEACHER:STUDENT", help="which (%(default)s)")
    add("--batches", nargs="+", type=int, default=[16, 64, 256], help="images (%(default)s)")
    add("--classes", nargs="+", type=int, default=[10, 100, 1000], help="how many (%(default)s)")
    add("--taps", nargs="+", type=int, default=[1, 2, 3], help="how many (%(default)s)")
    add(
        "--processes",
        nargs="+",
        type=cut,
        default=PROCESSES,
        metavar="NxTHREADS",
        help=" ".join(PROCESSES),
    )
    add("--rounds", type=int, default=5, help="how often each has its turn (%(default)s)")
    add("--steps", type=int, default=20, help="counted steps a round (%(default)s)")
    add("--skip", type=int, default=5, help="steps before them, not counted (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add_output(parser, "growth")
    args = parser.parse_args()
    teacher, student = args.pair.split(":")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    result = Result(args, f"{args.threads} threads")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        file = folder / "teacher.pt"
        write_teacher(teacher, 100, file)
        largest = max(64, *args.batches)
        job = Job(
            pair=(teacher, student),
            method="kd",
            teacher_file=str(file),
            batch=64,
            samples=largest * (args.rounds * (args.skip + args.steps) + 10),
            threads=args.threads,
        )
        for axis in args.axes:
            if axis == "processes":
                grow_processes(job, args, result, folder)
            else:
                grow(axis, job, args, result, folder)


if __name__ == "__main__":
    main()
