"""The literature's table: eleven pairs on CIFAR-100, 240 epochs, beside the published numbers.

    python benchmarks/cifar100_table.py --root data --seeds 0 1 2
    python benchmarks/cifar100_table.py --root data --pairs resnet32x4:resnet8x4 --methods kd
    python benchmarks/cifar100_table.py --root data --device cuda --compile --bf16 --batch 256

The specs are those that ``kdzoo init`` writes; teachers are trained once, unless ``--teachers``
names a folder of published checkpoints (``resnet32x4.pth``, ...). Each run is an ordinary one in
runs/cifar100-table: what was cut off goes on, what is finished is found again.

The last line above is the preset for one GPU. What it gains there is in docs/benchmarks.md; what it
does to the accuracies was not measured. ``--batch`` scales each learning rate linearly, with the
batch beside the recipe's 64, and ``--epochs`` shortens the recipe in proportion. What comes out of
another batch or length is not to be put beside the published numbers, and their columns are left
out.

The published numbers are test accuracies after the last epoch: ce, kd, fitnet and crd from the
tables of Tian et al. (Contrastive Representation Distillation, ICLR 2020), dkd from those of Zhao
et al. (Decoupled Knowledge Distillation, CVPR 2022).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kdzoo_plugins.datasets._cifar100_pairs import CIFAR100_PAIRS, PAIRS
from ruamel.yaml import YAML

import kdzoo

RUNS = Path("runs/cifar100-table")
METHODS = ("ce", "kd", "fitnet", "crd", "dkd")
EPOCHS, BATCH = 240, 64  # of the recipe
PUBLISHED: dict[tuple[str, str], tuple[float, ...]] = {  # in the order of METHODS
    ("resnet56", "resnet20"): (69.06, 70.66, 69.21, 71.16, 71.97),
    ("resnet110", "resnet32"): (71.14, 73.08, 71.06, 73.48, 74.11),
    ("resnet32x4", "resnet8x4"): (72.50, 73.33, 73.50, 75.51, 76.32),
    ("wrn_40_2", "wrn_16_2"): (73.26, 74.92, 73.58, 75.48, 76.24),
    ("wrn_40_2", "wrn_40_1"): (71.98, 73.54, 72.24, 74.14, 74.81),
    ("vgg13", "vgg8"): (70.36, 72.98, 71.02, 73.94, 74.68),
    ("resnet32x4", "ShuffleV1"): (70.50, 74.07, 73.59, 75.11, 76.45),
    ("wrn_40_2", "ShuffleV1"): (70.50, 74.83, 73.73, 76.05, 76.70),
    ("vgg13", "MobileNetV2"): (64.60, 67.37, 64.14, 69.73, 69.71),
    ("ResNet50", "MobileNetV2"): (64.60, 67.35, 63.16, 69.11, 70.35),
    ("resnet32x4", "ShuffleV2"): (71.82, 74.45, 73.54, 75.65, 77.07),
}
BETAS = {(teacher, student): beta for teacher, student, beta in PAIRS}  # of dkd


def spec(pair: tuple[str, str], method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The pair's bundled spec, with another method, seed and data."""
    teacher, student = pair
    name = f"cifar100-{teacher}-{student}"
    made: dict[str, Any] = YAML(typ="safe").load(CIFAR100_PAIRS[name])
    for train in (made["train"], made["teacher"]["train"]):
        steps = train["schedule"]["milestones"]
        train["schedule"]["milestones"] = [-(-step * args.epochs // EPOCHS) for step in steps]
        train["optimizer"]["lr"] *= args.batch / BATCH
        train |= {"epochs": args.epochs, "batch_size": args.batch, "compile": args.compile}
        train |= {"precision": "bf16" if args.bf16 else "fp32"}
    if args.teachers is not None:
        made["teacher"] = {"use": teacher, "checkpoint": str(args.teachers / f"{teacher}.pth")}
    if method == "ce":
        del made["teacher"]
    term = {"use": "dkd", "beta": BETAS[pair]} if method == "dkd" else method
    return made | {
        "name": f"{name}-{method}",
        "seed": seed,
        "device": args.device,
        "data": data(args.root, args.download),
        "losses": ["ce"] if method == "ce" else ["ce", term],
    }


def teacher_alone(taught: dict[str, Any]) -> dict[str, Any]:
    """The run of a spec's teacher, which the spec finds when it is its turn."""
    teacher = dict(taught["teacher"])
    train, seed = teacher.pop("train"), teacher.pop("seed")
    kept = {key: taught[key] for key in ("device", "data")}
    name = f"cifar100-{teacher['use']}"
    return {**kept, "name": name, "seed": seed, "student": teacher, "train": train}


def data(root: Path, download: bool) -> dict[str, Any]:
    """CIFAR-100 as torchvision stores it, or as folders of images; all of it is trained on."""
    if (root / "train").is_dir():
        return {"use": "image-folder", "root": str(root), "validation": 0}
    return {
        "use": "torchvision",
        "dataset": "CIFAR100",
        "root": str(root),
        "download": download,
        "validation": 0,
    }


def train(made: dict[str, Any]) -> tuple[float, float | None]:
    """The student's test accuracy, in percent, and how many minutes its training took; ``None``
    where the run, or a part of it, was done before."""
    if "train" in made.get("teacher", {}):
        print(f"its teacher, {made['teacher']['use']}", file=sys.stderr)
        kdzoo.run(teacher_alone(made), runs=RUNS)
    begun = time.time()
    run = kdzoo.run(made, runs=RUNS)
    whole = (run.directory / "environment.json").stat().st_mtime >= begun
    return 100 * run.report.student.accuracy, (time.time() - begun) / 60 if whole else None


def rows(args: argparse.Namespace) -> Iterator[str]:
    """The table, line by line."""
    other = (args.epochs, args.batch) != (EPOCHS, BATCH)
    published = "" if other else f"{'published':>11}{'difference':>12}"
    yield f"{'teacher -> student':<26}{'method':<8}{'mean':>7}{'sd':>6}{published}{'minutes':>9}"
    for pair in args.pairs:
        for number, method in enumerate(METHODS):
            if method not in args.methods:
                continue
            done = []
            for seed in args.seeds:
                print(f"{' -> '.join(pair)}, {method}, seed {seed}", file=sys.stderr)
                done.append(train(spec(pair, method, seed, args)))
            accuracies = [accuracy for accuracy, _ in done]
            minutes = [took for _, took in done if took is not None]
            mean, known = statistics.mean(accuracies), PUBLISHED[pair][number]
            yield "".join(
                (
                    f"{' -> '.join(pair):<26}{method:<8}{mean:7.2f}",
                    f"{statistics.stdev(accuracies):6.2f}" if len(done) > 1 else f"{'-':>6}",
                    "" if other else f"{known:>11.2f}{mean - known:>+12.2f}",
                    f"{statistics.median(minutes):9.1f}" if minutes else f"{'-':>9}",
                )
            )


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description="CIFAR-100's table beside the published one.")
    add = parser.add_argument
    add("--root", type=Path, required=True, help="where CIFAR-100 is: torchvision's, or folders")
    add("--download", action="store_true", help="let torchvision download it")
    add("--pairs", nargs="+", metavar="TEACHER:STUDENT", help="which (all eleven)")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="which (all five)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="which (0 1 2)")
    add("--epochs", type=int, default=EPOCHS, help="of each training (%(default)s)")
    add("--batch", type=int, default=BATCH, help="images a step (%(default)s)")
    add("--teachers", type=Path, help="a folder of published checkpoints, TEACHER.pth each")
    add("--device", default="auto", help="as in a spec (%(default)s)")
    add("--compile", action="store_true", help="compile the steps")
    add("--bf16", action="store_true", help="compute them in bfloat16")
    args = parser.parse_args()
    names = {":".join(pair): pair for pair in PUBLISHED}
    unknown = [name for name in args.pairs or () if name not in names]
    if unknown:
        parser.error(f"no pair {unknown[0]}; there are {', '.join(names)}")
    args.pairs = [names[name] for name in args.pairs or names]
    return args


def main() -> None:
    """Train what the command line asks for, and print the table."""
    args = arguments()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    recipe = f"{args.epochs} epochs, batch {args.batch}, seeds {args.seeds}"
    print(f"{recipe}, {device}, torch {torch.__version__}")
    for line in rows(args):
        print(line, flush=True)
    print("Test accuracy after the last epoch. Minutes: the median of the seeds whose run was made")
    print("in one go; the training of its teacher is not in it.")


if __name__ == "__main__":
    main()
