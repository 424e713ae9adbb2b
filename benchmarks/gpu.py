"""How long a run takes on one GPU; and images a second of kdzoo's presets beside a plain loop.

    python benchmarks/gpu.py

A run of ``--epochs`` epochs is made from its beginning to its end, with the preset and the largest
batch. What lies between two epochs' ends holds all that there is: steps, curves, the policy, a
checkpoint, TensorBoard. What 240 epochs take is computed from that, not measured.

Then steps alone. The contestants are those of step.py, on the same noise, and take turns as they do
there; how long each took to get ready is said at once:

- plain: a loop as the literature writes it, with its DataLoader's processes; torch's defaults, and
  cuDNN looks for its fastest convolutions. See ``contestants/plain.py``.
- kdzoo: a spec that says nothing of speed.
- preset: the same with ``compile: true`` and ``precision: bf16``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from contestants import engine
from contestants.job import Job, divisor, write_teacher
from contestants.turns import measure, processes, ratio
from result import Cell, Result, add_output, spread, threads_and_gpu

import kdzoo

EPOCHS = 240  # of the literature's recipe
MODULES = {"plain": "plain", "kdzoo": "engine", "preset": "engine"}


def jobs(args: argparse.Namespace, teacher: Path) -> Iterator[Job]:
    """One for each size of a batch, as the plain loop and kdzoo's defaults have it."""
    for batch in args.batches:
        yield Job(
            pair=args.pair,
            method=args.method,
            teacher_file=str(teacher),
            batch=batch,
            samples=args.samples,
            threads=args.threads,
            workers=tuple(args.workers),
            trial=args.trial,
            log_every=divisor((args.skip, args.steps), 10),
            device=args.device,
        )


def preset(job: Job) -> Job:
    """What the documents recommend on a GPU."""
    return replace(job, compile=True, precision="bf16")


def compare(given: list[Job], args: argparse.Namespace, result: Result, logs: Path) -> None:
    """Steps alone, by turns."""
    result.table("images a second", *MODULES, "kdzoo / plain", "preset / plain")
    with processes(MODULES, logs) as contestants:
        for job in given:
            turns = {name: (contestants[name], job) for name in MODULES}
            turns["preset"] = contestants["preset"], preset(job)
            steps = args.steps * max(args.batches) // job.batch  # as many images in each
            measured = measure(turns, args.rounds, args.skip, steps)
            compared = [ratio(measured[name], measured["plain"]) for name in ("kdzoo", "preset")]
            cells = [measured[name].cell() for name in MODULES]
            result.row(f"batches of {job.batch}", *cells, *compared)
            for name, each in measured.items():
                if each.reason:
                    result.say(f"-: {name}: {each.reason}")


def whole_run(job: Job, epochs: int, result: Result, directory: Path) -> None:
    """From the spec to the report."""
    file = directory / "ends.json"
    spec = engine.spec(replace(job, log_every=10))
    spec["train"]["epochs"] = epochs
    # Epochs of the recipe's length: no image is held out.
    spec["data"]["validation"] = 0
    spec["observers"] = [
        "progress",
        "tensorboard",
        "jsonl",
        {"use": "epoch-ends", "file": str(file)},
    ]
    begun = time.perf_counter()
    with engine.installed(directory / "site"):
        kdzoo.run(spec, runs=directory / "runs")
    took = time.perf_counter() - begun
    ends = json.loads(file.read_text())
    each = [later - earlier for earlier, later in itertools.pairwise(ends)]
    computed = took + (EPOCHS - epochs) * statistics.median(each)
    columns = (
        "to the first epoch's end",
        "each further epoch",
        "whole",
        f"{EPOCHS} epochs, computed",
    )
    result.table(f"seconds of a run of {epochs} epochs of {job.samples} images", *columns)
    cells = [Cell(f"{value:.1f}", (value,)) for value in (ends[0] - begun, took, computed)]
    result.row(f"batches of {job.batch}, preset", cells[0], spread(each, 3), *cells[1:])


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description="kdzoo and its presets on one GPU.")
    add = parser.add_argument
    add("--pair", default="resnet32x4:resnet8x4", metavar="TEACHER:STUDENT", help="(%(default)s)")
    add(
        "--method", default="kd", choices=("ce", "kd", "fitnet", "crd", "dkd"), help="(%(default)s)"
    )
    add("--batches", nargs="+", type=int, default=(64, 256), help="images a step (64 256)")
    add("--rounds", type=int, default=3, help="how often each has its turn (%(default)s)")
    add(
        "--steps",
        type=int,
        default=24,
        help="counted steps a round of the largest batch (%(default)s)",
    )
    add("--skip", type=int, default=32, help="steps before them, not counted (%(default)s)")
    add("--workers", "-w", nargs="+", type=int, default=(8, 15), help="of the plain loop (8 15)")
    add("--trial", type=int, default=40, help="steps to try each number of them for (%(default)s)")
    add("--samples", type=int, default=50_000, help="training images (%(default)s)")
    add("--epochs", type=int, default=30, help="of the whole run (%(default)s)")
    add("--threads", type=int, default=1, help="torch's threads (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="where (%(default)s)")
    add_output(parser, "gpu")
    args = parser.parse_args()
    args.pair = tuple(args.pair.split(":"))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU")
    if (args.rounds * (args.skip + args.steps) + 10) * max(args.batches) > args.samples:
        parser.error("an epoch would end within a round: more --samples, or fewer steps")
    return args


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        teacher = directory / "teacher.pt"
        write_teacher(args.pair[0], 100, teacher)
        given = list(jobs(args, teacher))
        result = Result(args, threads_and_gpu(args))
        result.say(
            f"{args.method}, {' -> '.join(args.pair)}, {args.samples} images of 32x32, 100 "
            f"classes; {args.rounds} rounds of {args.steps * max(args.batches)} images after "
            f"{args.skip} steps that do not count: medians over rounds, ratios round by round"
        )
        whole_run(preset(max(given, key=lambda job: job.batch)), args.epochs, result, directory)
        compare(given, args, result, directory)


if __name__ == "__main__":
    main()
