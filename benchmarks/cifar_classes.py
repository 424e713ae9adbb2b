"""Which classes of CIFAR-100 does plain KD hurt, and does any policy mend it?

    python benchmarks/cifar_classes.py data/cifar100

It trains for hours, two runs at a time on one thread each. All is kept in runs/cifar-classes: it
goes on where it was cut off, and with ``--no-training`` the table shows what is finished.

The images have 16x16 pixels, since that is what two cores can train often enough; a wrn_16_2 of 30
epochs teaches a resnet8 for 20, with the recipe of cifar_short.py. A tenth of the training images
is held out for validation: what a policy reads, what ``oracle`` chooses by, and what the logit
offsets are fitted to. ``bias`` is plain KD with them, and a column has every policy with its own.
Nothing was chosen by looking at a test image.

The hurt classes are the tenth whose accuracy falls most from the baseline to plain KD, on test
images, over all seeds but the one in which they are then looked at: what chance gave a class in one
seed it does not have in the next.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cifar_short import train
from result import Cell, Result, add_output
from ruamel.yaml import YAML
from scipy import stats

import kdzoo

Floats = npt.NDArray[np.float64]

RUNS = Path("runs/cifar-classes")
HURT = 0.1  # of the classes
EARLY = {"start_epoch": 8, "window": 4, "patience": 2}  # of 20 epochs
TLLM: dict[str, Any] = {"use": "tllm", **EARLY}
POLICIES: dict[str, Any] = {
    "all": "all",
    "tllm": TLLM,
    "tllm-validation": TLLM | {"source": "validation"},
    "tllm-residual": TLLM | {"signal": "residual"},
    "tllm-agreement": TLLM | {"signal": "agreement"},
    "tllm-divergence": TLLM | {"signal": "divergence"},
    "tllm-cka": TLLM | {"signal": "cka"},
    "tllm-half-the-teacher": TLLM | {"teacher_weight": 0.5},
    "tllm-no-balance": TLLM | {"balance": False},
    "tllm-column": TLLM | {"scope": "column"},
    "random": {"use": "random", **EARLY},
    "hardest": {"use": "hardest", **EARLY},
    "label-only": {"use": "label-only", **EARLY},
    "label-only-no-balance": {"use": "label-only", "balance": False, **EARLY},
    "oracle": {"use": "oracle"},
}
COLUMNS = (
    "accuracy",
    "less plain KD's",
    "hurt, less baseline's",
    "others, less baseline's",
    "untaught, less plain KD's",
    "taught, less plain KD's",
    "after offsets, less plain KD's",
    "untaught",
)


def spec(root: str, seed: int, name: str, policy: Any) -> dict[str, Any]:
    """One student under one policy."""
    return {
        "name": name,
        "seed": seed,
        "threads": 1,
        "store_gb": 8,
        "data": {"use": "image-folder", "root": root, "size": 16, "crop": 2, "validation": 0.1},
        "teacher": {"use": "wrn_16_2", "seed": 0, "train": train(30)},
        "student": "resnet8",
        "baseline": True,
        "losses": ["ce", "kd"],
        "policy": policy,
        "train": train(20),
        "observers": ["jsonl"],
    }


def run(spec: dict[str, Any]) -> str:
    """Do what a spec says: the run's directory."""
    return str(kdzoo.run(spec, runs=RUNS).directory)


def train_all(root: str, seeds: Sequence[int], policies: Collection[str], at_once: int) -> None:
    """Train what is not finished: plain KD first, which ``oracle`` reads."""
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:

        def begin(seed: int, name: str, policy: Any) -> Future[str]:
            return pool.submit(run, spec(root, seed, name, policy))

        plain = [begin(seed, "all", "all") for seed in seeds]
        directories = [future.result() for future in plain]
        others = [
            begin(seed, name, {**policy, "runs": directories} if name == "oracle" else policy)
            for seed in seeds
            for name, policy in POLICIES.items()
            if name in policies and name != "all"
        ]
        for future in others:
            future.result()


def finished(name: str) -> dict[int, kdzoo.Report]:
    """The reports of a policy's runs, by seed."""
    read = YAML(typ="safe", pure=True).load
    return {
        read(report.with_name("spec.yaml"))["seed"]: kdzoo.Report.read(report)
        for report in RUNS.glob(f"{name}-{'?' * 10}/report.json")
    }


def accuracies(report: kdzoo.Report, name: str = "", *, corrected: bool = False) -> Floats:
    """(C,), of the test images: the student's or the baseline's, also after offsets."""
    score = report.baseline if name == "baseline" else report.student
    assert score is not None
    return np.array(list((score.corrected if corrected else score.classes).values()))


def points(values: Sequence[float]) -> Cell:
    """The mean over seeds and its 90 % interval by Student's t, in points."""
    percent, count = 100 * np.array(values), len(values)
    if count < 2:
        return Cell("".join(f"{value:.2f}" for value in percent), tuple(values))
    half = stats.t.isf(0.05, count - 1) * percent.std(ddof=1) / count**0.5
    return Cell(f"{percent.mean():.2f} (+-{half:.2f})", tuple(values))


def show(result: Result) -> None:
    """What is finished of each policy, beside plain KD and the baseline of the same seeds."""
    plain = finished("all")
    if len(plain) < 2:
        raise SystemExit("two seeds of plain KD must be finished before it is known what it hurts")
    gaps = {seed: accuracies(run) - accuracies(run, "baseline") for seed, run in plain.items()}
    count = max(1, round(HURT * len(gaps[min(gaps)])))
    hurt = {
        seed: np.argsort(np.mean([gaps[other] for other in gaps if other != seed], 0))[:count]
        for seed in gaps
    }
    result.table("points of test accuracy, and how many classes were untaught", *COLUMNS)
    for name in ("baseline", "bias", *POLICIES):
        runs = finished(name) if name in POLICIES else plain
        rows = []
        for seed in sorted(runs.keys() & plain.keys()):
            after = accuracies(runs[seed], name, corrected=True)
            own = after if name == "bias" else accuracies(runs[seed], name)
            taught, taught_after = (
                accuracies(plain[seed], corrected=corrected) for corrected in (False, True)
            )
            change = own - accuracies(plain[seed], "baseline")
            classes = list(runs[seed].student.classes)
            dropped = [classes.index(each) for each in runs[seed].untaught]
            rows.append(
                (
                    own.mean(),
                    (own - taught).mean(),
                    change[hurt[seed]].mean(),
                    np.delete(change, hurt[seed]).mean(),
                    (own - taught)[dropped].mean() if dropped else np.nan,
                    np.delete(own - taught, dropped).mean(),
                    (after - taught_after).mean(),
                    len(dropped),
                    len(set(dropped) & set(hurt[seed])),
                )
            )
        if rows:
            *shares, counts, right = zip(*rows, strict=True)
            cells = [points([value for value in column if value == value]) for column in shares]
            of_them = f"{np.mean(counts):.1f}, {np.mean(right):.1f} of the hurt"
            result.row(f"{name} ({len(rows)} seeds)", *cells, of_them)


def main() -> None:
    """Train what the command line asks for, and show what is finished."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", help="the folder with train/<class>/*.png and test/<class>/*.png")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--at-once", type=int, default=2, help="runs (%(default)s)")
    parser.add_argument("--no-training", action="store_true", help="only show what is finished")
    add_output(parser, "cifar_classes")
    args = parser.parse_args()
    if not args.no_training:
        train_all(args.root, args.seeds, args.policies, args.at_once)
    show(Result(args, "1 thread a run"))


if __name__ == "__main__":
    main()
