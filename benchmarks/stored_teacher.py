"""A study of short trials, with and without stored teacher outputs, paired trial by trial.

    python benchmarks/stored_teacher.py > benchmarks/results/stored_teacher.txt

Each trial (another weight and temperature of kd) is a whole run, from putting the networks together
to the test, done once without a store and once with one; the order is reversed from trial to trial.
The teacher is trained before, and counts for neither. The first trial fills the store. The images
are noise of 32x32 pixels, since no time depends on what they show, and few, so that it is over
after some minutes. That is hard on the store: a run's beginning and end, and the first batch of an
epoch, which is always computed, weigh more than with 50,000 images. Of the trials fewer are done
than a study has: what 20 take is the first one's time and 19 times the median of the others. That
both students are the same is looked at, too. Last, what it costs that the teacher sees its images
in chunks of one size, which it does with and without a store.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contestants.engine import StepImages
from limit import network, seconds

import kdzoo
from kdzoo.extend.registry import registry
from kdzoo.training.teacher_store import chunk_size


def trial(number: int, args: argparse.Namespace) -> dict[str, Any]:
    """The spec of a trial."""
    teacher, student = args.pair.split(":")
    train = {"epochs": args.epochs, "batch_size": args.batch}
    kd = {"use": "kd", "weight": 0.5 + number / 10, "temperature": 1 + number / 2}
    data = {"use": "step-images", "samples": args.images, "classes": 10, "validation": 0.1}
    return {
        "name": "trial",
        "data": data,
        "teacher": {"use": teacher, "train": {"epochs": 1, "batch_size": args.batch}},
        "student": student,
        "losses": ["ce", kd],
        "train": train,
        "observers": ["jsonl"],
        "threads": args.threads,
    }


def measure(spec: dict[str, Any], store_gb: float, runs: Path) -> tuple[float, bytes]:
    """Seconds of a run, and its student."""
    begun = time.perf_counter()
    run = kdzoo.run({**spec, "store_gb": store_gb}, runs=runs)
    took = time.perf_counter() - begun
    return took, (run.directory / "student.safetensors").read_bytes()


def chunked(args: argparse.Namespace) -> list[float]:
    """How much longer the teacher takes for a batch in chunks than whole, in turns."""
    images = torch.rand(args.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    teacher, student = map(network, args.pair.split(":"))
    classes = list(map(str, range(100)))
    distiller = kdzoo.Distiller(
        teacher,
        student,
        kdzoo.terms(["kd"]),
        example=images[:2],
        classes=classes,
        num_samples=args.batch,
    )
    distiller.fold_teacher(images[:4])
    took: dict[str, list[float]] = {"whole": [], "in chunks": []}
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        for _ in range(args.rounds):
            took["whole"] += seconds(lambda: teacher(images), 1)
            assert distiller.chunk_teacher(images[: chunk_size(args.batch)])
            took["in chunks"] += seconds(lambda: distiller.teach(images), 1)
    return [b / a for a, b in zip(took["whole"], took["in chunks"], strict=True)]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="A study with and without stored outputs.")
    parser.add_argument("--pair", default="resnet110:resnet20", metavar="TEACHER:STUDENT")
    parser.add_argument("--trials", type=int, default=4, help="at least 2")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=2272, help="a tenth of them for validation")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9, help="of the comparison of chunks")
    args = parser.parse_args()
    took: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder, registry().lent(StepImages):
        runs = {name: Path(folder) / name for name in took}
        first = trial(-1, args)
        kdzoo.run({**first, "train": {**first["train"], "epochs": 1}}, runs=runs["without"])
        shutil.copytree(runs["without"], runs["with"])  # the teacher
        for number in range(args.trials):
            students = set()
            for name in sorted(took, reverse=number % 2 == 0):
                store_gb = 4.0 if name == "with" else 0.0
                lasted, student = measure(trial(number, args), store_gb, runs[name])
                took[name].append(lasted)
                students.add(student)
            if len(students) > 1:
                raise SystemExit(f"trial {number}: the students differ")
        size = sum(file.stat().st_size for file in runs["with"].glob(".cache/teacher/*/*.rows"))
    ratios = [a / b for a, b in zip(took["without"], took["with"], strict=True)]
    print(
        f"{args.pair}, {args.trials} trials of {args.epochs} epochs of {args.images} images, batch "
        f"{args.batch}, {args.threads} threads, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}); the students of each pair are the same\n"
    )
    later = {name: statistics.median(times[1:]) for name, times in took.items()}
    for name, times in took.items():
        print(f"{name:<10}the first trial {times[0]:.2f} s, a later one {later[name]:.2f} s")
    span = f"{min(ratios[1:]):.2f}-{max(ratios[1:]):.2f}"
    print(f"a later one with it: {statistics.median(ratios[1:]):.2f} ({span}) times as fast")
    without, stored = (took[name][0] + 19 * later[name] for name in ("without", "with"))
    print(f"20 trials with it: {without / stored:.2f} times as fast")
    print(f"the store: {size / 1e6:.2f} MB")
    ratios = chunked(args)
    span = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(
        f"a batch in chunks of {chunk_size(args.batch)} takes the teacher "
        f"{statistics.median(ratios):.2f} ({span}) times as long as whole"
    )


if __name__ == "__main__":
    main()
