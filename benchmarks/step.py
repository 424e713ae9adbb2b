"""Images a second of whole training steps: kdzoo's engine beside other loops, paired.

    python benchmarks/step.py
    python benchmarks/step.py --epochs --pairs resnet20:resnet8 --steps 100
    python benchmarks/step.py --device cuda --workers 4 8 16 --steps 100 --skip 20

Each contestant has a process of its own and trains the same networks on the same noise (50,000
images of 32x32 pixels, 100 classes). They take turns: while one does a round of steps the others
wait, and the order is reversed from round to round. The first steps of a round are not counted: in
them a loader uses up what it fetched while it waited.

- kdzoo: ``kdzoo.run`` with a spec and all default observers. An observer takes the time, at every
  look at the losses; so ``log_every`` is the greatest number up to 10 (its default) that divides
  both ``--skip`` and ``--steps``.
- tllm: the same with this class policy, which reads the residual (no baseline is trained here).
- plain: a loop as the literature writes it, see ``contestants/plain.py``.
- torchdistill: the package of that name (1.1.5 was tried), if it is installed; it is optional. See
  ``contestants/torchdistill_loop.py``.

The other two read their images through a DataLoader. Each pair and method of theirs gets the number
of worker processes (0, 1 or 2) with which it is fastest in a short trial here, as anybody would
choose it; any fixed number would be unfair to somebody. kdzoo has no workers.

With ``--epochs`` an epoch is as long as what a round counts, so that each round has the end of one
in it: for kdzoo its curves, the policy's decision and a checkpoint, for the others what a loader
costs that is started anew.

With ``--device cuda`` all of them train on the GPU, each as it would be written for one; it is
waited for before the time is taken. ``--compile`` and ``--bf16`` are kdzoo's presets for it, and
gpu.py has a shorter way to compare them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from contestants.job import Job, divisor, write_teacher
from contestants.turns import Measured, measure, processes, ratio
from result import Result, add_output, threads_and_gpu

METHODS = ("ce", "kd", "fitnet", "crd", "dkd")
PAIRS = ("resnet56:resnet20", "resnet32x4:resnet8x4")
TLLM = {"use": "tllm", "signal": "residual"}
MODULES = {"kdzoo": "engine", "plain": "plain", "torchdistill": "torchdistill_loop"}


def compare(args: argparse.Namespace, jobs: list[Job], result: Result, logs: Path) -> None:
    """The rows of kdzoo beside the others."""
    modules = present()
    if modules.keys() < MODULES.keys():
        result.say("torchdistill is not installed: its column is left out.")
    others = list(modules)[1:]
    columns = ["kdzoo", "tllm", *others, "tllm / kdzoo", *(f"kdzoo / {name}" for name in others)]
    notes: dict[str, None] = {}
    with processes({**modules, "tllm": modules["kdzoo"]}, logs) as contestants:
        for pair in dict.fromkeys(job.pair for job in jobs):
            result.table(f"{' -> '.join(pair)}, images a second", *columns)
            for job in (job for job in jobs if job.pair == pair):
                turns = {name: (contestant, job) for name, contestant in contestants.items()}
                turns["tllm"] = contestants["tllm"], replace(job, policy=TLLM)
                if job.method == "ce":
                    del turns["tllm"]
                measured = measure(turns, args.rounds, args.skip, args.steps)
                measured.setdefault("tllm", Measured([], {}, "there is no teacher"))
                speeds = [measured[name].cell() for name in ("kdzoo", "tllm", *others)]
                policy = ratio(measured["tllm"], measured["kdzoo"], digits=3)
                compared = [ratio(measured["kdzoo"], measured[name]) for name in others]
                result.row(job.method, *speeds, policy, *compared)
                for name, each in measured.items():
                    if each.reason:
                        notes[f"{job.method}, {name}: {each.reason}"] = None
    result.say()
    result.say("Medians over rounds; ratios round by round: median (least-greatest).")
    result.say("[n]: loader processes, the fastest of " + ", ".join(map(str, args.workers)) + ".")
    for note in notes:
        result.say(f"-: {note}")


def present() -> dict[str, str]:
    """The contestants and their modules; torchdistill only where it is installed."""
    there = importlib.util.find_spec("torchdistill") is not None
    return {name: module for name, module in MODULES.items() if name != "torchdistill" or there}


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description="Images a second of whole training steps, kdzoo beside other loops."
    )
    add = parser.add_argument
    add("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT", help="which (%(default)s)")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="which (all)")
    add("--rounds", type=int, default=5, help="how often each has its turn (%(default)s)")
    add("--steps", type=int, default=20, help="counted steps a round (%(default)s)")
    add("--skip", type=int, default=5, help="steps before them, not counted (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where (%(default)s)")
    add("--compile", action="store_true", help="kdzoo compiles its steps")
    add("--bf16", action="store_true", help="kdzoo's networks compute in bfloat16")
    add("--batch", type=int, default=64, help="images a step (%(default)s)")
    add("--samples", type=int, default=50_000, help="training images (%(default)s)")
    add("--classes", type=int, default=100, help="of the images (%(default)s)")
    add("--negatives", type=int, default=16_384, help="of crd, an image (%(default)s)")
    add(
        *("--workers", "-w"),
        nargs="+",
        type=int,
        default=(0, 1, 2),
        help="numbers of loader processes to try, of the others (%(default)s)",
    )
    add("--trial", type=int, default=6, help="steps to try each for (%(default)s)")
    add("--epochs", action="store_true", help="an epoch has as many steps as a round counts")
    add_output(parser, "step")
    args = parser.parse_args()
    args.pairs = [tuple(pair.split(":")) for pair in args.pairs]
    if any(len(pair) != 2 for pair in args.pairs):
        parser.error("a pair is TEACHER:STUDENT")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda is asked for, and torch finds none; use cpu")
    if args.skip < 1 or args.steps < 1:
        parser.error("--skip and --steps must be 1 at least")
    if args.epochs:
        args.samples = args.steps * args.batch
        return args
    wanted = (args.rounds * (args.skip + args.steps) + 10) * args.batch
    if wanted > args.samples:
        parser.error(f"an epoch would end within a round: {wanted} samples are needed")
    return args


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory)
        files = {pair[0]: logs / f"{pair[0]}.pt" for pair in args.pairs}
        for name, file in files.items():
            write_teacher(name, args.classes, file)
        log_every = divisor((args.skip, args.steps), 10)
        jobs = [
            Job(
                pair=pair,
                method=method,
                teacher_file=str(files[pair[0]]),
                batch=args.batch,
                samples=args.samples,
                classes=args.classes,
                negatives=args.negatives,
                threads=args.threads,
                workers=tuple(args.workers),
                trial=args.trial,
                log_every=log_every,
                device=args.device,
                compile=args.compile,
                precision="bf16" if args.bf16 else "fp32",
            )
            for pair in args.pairs
            for method in args.methods
        ]
        result = Result(args, threads_and_gpu(args))
        result.say(
            f"batch {args.batch}, {args.samples} images of 32x32, {args.classes} classes; "
            f"{args.rounds} rounds of {args.steps} steps after {args.skip} that do not count; "
            f"kdzoo: log_every {log_every}"
        )
        compare(args, jobs, result, logs)


if __name__ == "__main__":
    main()
