"""A short real run: CIFAR-100, a resnet20 teacher of 4 epochs, resnet8 students of 2 epochs.

    python benchmarks/cifar_short.py data/cifar100 > benchmarks/results/cifar_short.txt

The folder holds ``train/<class>/*.png`` and ``test/<class>/*.png``. Each method has its published
weights, over three seeds, under one teacher. Of the literature's 240 epochs so few are left that 2
cores are done within the hour; the learning rate falls along a cosine, and DKD's weight rises over
1 epoch instead of 20. What comes out says that the methods learn, and is not to be put beside a
published table. Two runs are trained at a time, on a thread each, which gets more out of two cores
than one run on both. Methods under one seed see the same views: what the teacher says of them is
computed for kd, and read for dkd. All is kept in runs/cifar-short: it continues where it was cut
off.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

import kdzoo

SEEDS = range(3)
METHODS: dict[str, list[Any]] = {
    "ce": ["ce"],
    "kd": ["ce", "kd"],
    "fitnet": ["ce", "fitnet"],
    "crd": ["ce", "crd"],
    "dkd": ["ce", {"use": "dkd", "warmup_epochs": 1}],
}
TEACHER_EPOCHS, STUDENT_EPOCHS = 4, 2


def train(epochs: int) -> dict[str, Any]:
    """The literature's recipe but for its length."""
    return {
        "epochs": epochs,
        "batch_size": 64,
        "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5.0e-4},
        "schedule": "cosineannealing",
    }


def spec(root: str, name: str, seed: int, **rest: Any) -> dict[str, Any]:
    """What all runs have in common."""
    data = {"use": "image-folder", "root": root, "validation": 0}
    common = {"seed": seed, "data": data, "threads": 1, "store_gb": 1}
    return {"name": f"cifar-short-{name}", **common, **rest}


def teacher(root: str) -> dict[str, Any]:
    """The teacher alone: the run that the students' specs find again."""
    return spec(root, "teacher", 0, student="resnet20", train=train(TEACHER_EPOCHS))


def student(root: str, method: str, seed: int) -> dict[str, Any]:
    """One student."""
    taught = {"teacher": {"use": "resnet20", "seed": 0, "train": train(TEACHER_EPOCHS)}}
    return spec(
        root,
        f"{method}-{seed}",
        seed,
        student="resnet8",
        train=train(STUDENT_EPOCHS),
        losses=METHODS[method],
        **({} if method == "ce" else taught),
    )


def accuracy(spec: dict[str, Any]) -> float:
    """Do what a spec says: the student's test accuracy after the last epoch, in percent."""
    return 100 * kdzoo.run(spec, runs="runs/cifar-short").report.student.accuracy


def main() -> None:
    """Print a row for each method."""
    (root,) = sys.argv[1:]
    begun = time.perf_counter()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        of_teacher = pool.submit(accuracy, teacher(root))
        # In this order the students that need no teacher are trained while it is.
        students = {
            method: [pool.submit(accuracy, student(root, method, seed)) for seed in SEEDS]
            for method in METHODS
        }
        print(f"python benchmarks/cifar_short.py {root}")
        print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
        print(f"teacher resnet20, {TEACHER_EPOCHS} epochs: {of_teacher.result():.2f}")
        title = f"student resnet8, {STUDENT_EPOCHS} epochs"
        print(f"{title:<26}" + "".join(f"  seed {seed}" for seed in SEEDS) + "    mean    sd")
        for method, results in students.items():
            values = [result.result() for result in results]
            columns = "".join(f"{value:8.2f}" for value in values)
            mean, spread = statistics.mean(values), statistics.stdev(values)
            print(f"{method:<26}{columns}{mean:8.2f}{spread:6.2f}")
        print(f"{(time.perf_counter() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
