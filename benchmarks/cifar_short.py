"""A short real run: CIFAR-100, a resnet20 teacher of 10 epochs, resnet8 students of 10 epochs.

    python benchmarks/cifar_short.py data/cifar100 > benchmarks/results/cifar_short.txt

The folder holds ``train/<class>/*.png`` and ``test/<class>/*.png``. Each method has its published
weights, over three seeds, under one teacher. The schedule is the literature's 240 epochs shortened
to 10 (x0.1 after epochs 6, 8 and 9), and the warm-up of DKD from 20 epochs to 1: what comes out
says that the methods learn, and is not to be put beside a published table. About an hour a seed on
2 cores; the runs are kept in runs/cifar-short: it continues where it was cut off.
"""

from __future__ import annotations

import statistics
import sys
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
TRAIN = {
    "epochs": 10,
    "batch_size": 64,
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5.0e-4},
    "schedule": {"use": "multistep", "milestones": [6, 8, 9], "gamma": 0.1},
}


def run(root: str, method: str, seed: int) -> kdzoo.Report:
    """One student; the teacher is trained by the first that needs it."""
    teacher = {"use": "resnet20", "seed": 0, "train": TRAIN}
    spec = {
        "name": f"cifar-short-{method}-{seed}",
        "seed": seed,
        "data": {"use": "image-folder", "root": root, "validation": 0},
        **({} if method == "ce" else {"teacher": teacher}),
        "student": "resnet8",
        "train": TRAIN,
        "losses": METHODS[method],
        "threads": 2,
    }
    return kdzoo.run(spec, runs="runs/cifar-short").report


def main() -> None:
    """Print a row for each method: test accuracy after the last epoch, in percent."""
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 2 threads")
    reports: dict[str, list[kdzoo.Report]] = {method: [] for method in METHODS}
    for seed in SEEDS:
        for method in METHODS:
            reports[method].append(run(sys.argv[1], method, seed))
    (teacher,) = {report.teacher.accuracy for report in reports["kd"] if report.teacher}
    print(f"teacher resnet20: {100 * teacher:.2f}")
    print(
        f"{'student resnet8':<16}" + "".join(f"  seed {seed}" for seed in SEEDS) + "    mean    sd"
    )
    for method, done in reports.items():
        values = [100 * report.student.accuracy for report in done]
        columns = "".join(f"{value:8.2f}" for value in values)
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"{method:<16}{columns}{mean:8.2f}{spread:6.2f}")


if __name__ == "__main__":
    main()
