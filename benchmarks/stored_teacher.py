"""A study of short trials, with and without stored teacher outputs.

    python benchmarks/stored_teacher.py

`kdzoo tune` searches the weight and the temperature of kd twice, each time from an empty directory
but for the teacher: once as it does by itself, once with ``store_gb: 0``. Both studies draw the
same settings. A trial's time is Optuna's, from its beginning to its value; the first one fills the
store. The images are noise of 32x32 pixels, since no time depends on what they show, and few, so
that it is over after some minutes. That is hard on the store: a run's beginning and end, and the
first batch of an epoch, which is always computed, weigh more than with 50,000 images. That all
students are the same is looked at, too. Last, what it costs that the teacher sees its images in
chunks of one size, which it does with and without a store.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from contestants.engine import StepImages
from limit import network, seconds
from result import Result, add_output, median, spread

import kdzoo
from kdzoo.extend.registry import registry
from kdzoo.training.teacher_store import chunk_size


def study(args: argparse.Namespace) -> dict[str, Any]:
    """The spec of the study."""
    teacher, student = args.pair.split(":")
    data = {"use": "step-images", "samples": args.images, "classes": 10, "validation": 0.1}
    return {
        "name": "study",
        "data": data,
        "teacher": {"use": teacher, "train": {"epochs": 1, "batch_size": args.batch}},
        "student": student,
        "losses": ["ce", "kd"],
        "train": {"epochs": args.epochs, "batch_size": args.batch},
        "observers": ["jsonl"],
        "threads": args.threads,
        "tune": {
            "space": {
                "losses.kd.temperature": {"low": 1, "high": 10},
                "losses.kd.weight": {"low": 0.1, "high": 2, "log": True},
            },
            "pruner": "nop",
            "trials": args.trials,
        },
    }


def measure(spec: dict[str, Any], runs: Path) -> tuple[list[float], list[bytes]]:
    """Each trial's seconds, and its student."""
    done = kdzoo.tune(spec, runs=runs)
    took, students = [], []
    for trial in done.study.get_trials():
        assert trial.duration is not None
        took.append(trial.duration.total_seconds())
        (name,) = trial.user_attrs["runs"]
        students.append((runs / name / "student.safetensors").read_bytes())
    return took, students


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
    parser.add_argument(
        "--pair",
        default="resnet110:resnet20",
        metavar="TEACHER:STUDENT",
        help="which (%(default)s)",
    )
    parser.add_argument("--trials", type=int, default=20, help="of each study (%(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="of a trial (%(default)s)")
    parser.add_argument("--images", type=int, default=2272, help="a tenth of them for validation")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of the comparison of chunks")
    add_output(parser, "stored_teacher")
    args = parser.parse_args()
    took: dict[str, list[float]] = {}
    students = []
    with tempfile.TemporaryDirectory() as folder, registry().lent(StepImages):
        taught = Path(folder) / "taught"
        alone = {key: value for key, value in study(args).items() if key != "tune"}
        kdzoo.run(alone, runs=taught)  # the teacher
        for name, extra in (("without", {"store_gb": 0}), ("with", {})):
            runs = Path(folder) / name
            runs.mkdir()
            for teacher in taught.glob("study-teacher-*"):
                shutil.copytree(teacher, runs / teacher.name)
            took[name], trained = measure({**study(args), **extra}, runs)
            students.append(trained)
        size = sum(file.stat().st_size for file in runs.glob(".cache/teacher/*/*.rows"))
    if students[0] != students[1]:
        raise SystemExit("the students differ")
    result = Result(args, f"{args.threads} threads")
    result.say(f"the students of both studies are the same; the store: {size / 1e6:.2f} MB")
    result.table(
        f"{args.pair.replace(':', ' -> ')}, {args.trials} trials of {args.epochs} epochs of "
        f"{args.images} images",
        "the first trial, s",
        "a later one, s",
        "all, s",
    )
    for name, times in took.items():
        result.row(name, median(times[:1]), median(times[1:], 2), median([sum(times)], 0))
    first, *later = (a / b for a, b in zip(took["without"], took["with"], strict=True))
    whole = sum(took["without"]) / sum(took["with"])
    result.row("times as fast", median([first], 2), spread(later), median([whole], 2))
    result.table("the teacher's time for a batch", "in chunks / whole")
    result.row(f"a batch in chunks of {chunk_size(args.batch)}", spread(chunked(args)))


if __name__ == "__main__":
    main()
