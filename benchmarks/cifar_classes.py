"""Which classes of CIFAR-100 does plain KD hurt, and does any policy mend it?

    python benchmarks/cifar_classes.py data/cifar100 --compile --bf16 --at-once 14

All is kept in runs/cifar-classes: it goes on where it was cut off, and with ``--no-training`` the
table shows what is finished. One network of this size does not fill a GPU: there the line above has
so many runs at once. Two cores would take days (``--at-once 2``, without the presets).

A wrn_16_2 of 30 epochs teaches a resnet8 for 20, with a learning rate that falls along a cosine. A
tenth of the training images is held out for validation: what a policy reads, what ``oracle``
chooses by, and what the logit offsets are fitted to. ``bias`` is plain KD with them, and a column
has every policy with its own. Nothing was chosen by looking at a test image.

The hurt classes are the tenth whose accuracy falls most from the baseline to plain KD, on test
images, over all seeds but the one in which they are then looked at: what chance gave a class in one
seed it does not have in the next.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from kdzoo_plugins.policies._signals import Reading, Signal, read_signal
from result import Cell, Result, add_output, median, spread
from ruamel.yaml import YAML
from scipy import stats

import kdzoo
from kdzoo.extend.registry import registry
from kdzoo.report.evidence import SEEDS_FOR_A_VERDICT, Verdict, lowest
from kdzoo.report.study import StudyReport
from kdzoo.report.summary import tenth_of
from kdzoo.training.answers_file import read_right_rows
from kdzoo.training.directory import RunDirectory

Floats = npt.NDArray[np.float64]

RUNS = Path("runs/cifar-classes")
TEACHER_EPOCHS, STUDENT_EPOCHS = 30, 20
EARLY = {"start_epoch": 8, "window": 4, "patience": 2}
TLLM: dict[str, Any] = {"use": "tllm", **EARLY}
POLICIES: dict[str, dict[str, Any]] = {  # in the order in which they are trained
    "all": {"use": "all"},
    "tllm": TLLM,
    "random": {"use": "random", **EARLY},
    "hardest": {"use": "hardest", **EARLY},
    "label-only": {"use": "label-only", **EARLY},
    "tllm-validation": TLLM | {"source": "validation"},
    "oracle": {"use": "oracle"},
    "tllm-no-balance": TLLM | {"balance": False},
    "tllm-half-the-teacher": TLLM | {"teacher_weight": 0.5},
    "tllm-column": TLLM | {"scope": "column"},
    "tllm-residual": TLLM | {"signal": "residual"},
    "tllm-agreement": TLLM | {"signal": "agreement"},
    "tllm-divergence": TLLM | {"signal": "divergence"},
    "tllm-cka": TLLM | {"signal": "cka", "source": "validation"},
    "label-only-no-balance": {"use": "label-only", "balance": False, **EARLY},
}
READ: tuple[Signal, ...] = ("baseline", "residual", "agreement", "divergence")  # of plain KD
# They decide by the curves of training samples alone, and without a baseline: see `directories`.
REPLAYED = [name for name, policy in POLICIES.items() if policy.get("signal") in READ]
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


def train(epochs: int, args: argparse.Namespace) -> dict[str, Any]:
    """How a network is trained."""
    return {
        "epochs": epochs,
        "batch_size": 256,
        "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5.0e-4},
        "schedule": "cosineannealing",
        "compile": args.compile,
        "precision": "bf16" if args.bf16 else "fp32",
    }


def network(use: str, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A network on its own: the teacher, or a baseline, which the taught students find again."""
    epochs = TEACHER_EPOCHS if name == "teacher" else STUDENT_EPOCHS
    return {
        "name": name,
        "seed": seed,
        "threads": 1,
        "data": {"use": "image-folder", "root": args.root, "validation": 0.1},
        "student": use,
        "train": train(epochs, args),
        "observers": ["jsonl"],
    }


def taught(policy: str, seed: int, args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """A student under a policy.

    Args:
        policy: its name.
        seed: of the student.
        args: the command line's.
        more: settings of the policy.
    """
    return network("resnet8", policy, seed, args) | {
        "teacher": {"use": "wrn_16_2", "seed": 0, "train": train(TEACHER_EPOCHS, args)},
        "baseline": True,
        "losses": ["ce", "kd"],
        "policy": POLICIES[policy] | more,
        "store_gb": 8,
    }


def run(spec: dict[str, Any]) -> str:
    """Do what a spec says: the run's directory."""
    return str(kdzoo.run(spec, runs=RUNS).directory)


def train_all(args: argparse.Namespace) -> None:
    """Train what is not finished. All seeds of one policy come before the next: what is finished
    when it is cut off can be compared."""
    with ProcessPoolExecutor(args.at_once, multiprocessing.get_context("spawn")) as pool:
        alone = [
            ("wrn_16_2", "teacher", 0),
            *(("resnet8", "baseline", each) for each in args.seeds),
        ]
        for done in [pool.submit(run, network(*each, args)) for each in alone]:
            done.result()
        begun: dict[str, list[Future[str]]] = {}
        for name in (each for each in POLICIES if each in {"all", *args.policies}):
            plain: list[str] = []
            if name == "oracle" or name in REPLAYED:  # they go by plain KD's runs
                plain = [each.result() for each in begun["all"]]
            more = {"runs": plain} if name == "oracle" else {}
            same = as_plain(name, directories("all")) if name in REPLAYED else {}
            begun[name] = [
                pool.submit(run, taught(name, seed, args, **more))
                for seed in args.seeds
                if seed not in same
            ]
        for future in (each for futures in begun.values() for each in futures):
            print(future.result(), file=sys.stderr)


def directories(name: str) -> dict[int, Path]:
    """The directories of a policy's finished runs, by seed. A policy sees nothing but curves: where
    it would have stopped no class of plain KD's run, that run is its own, and is not made again.
    (The kept curves have no learning rate, at whose halving a run begins a window anew: a replay
    looks more often, and so stops no fewer.)"""
    read = YAML(typ="safe", pure=True).load
    found = {
        read(report.with_name("spec.yaml"))["seed"]: report.parent
        for report in RUNS.glob(f"{name}-{'?' * 10}/report.json")
    }
    return found | as_plain(name, directories("all")) if name in REPLAYED else found


def as_plain(name: str, plain: dict[int, Path]) -> dict[int, Path]:
    """Those of plain KD's runs, by seed, in which a policy would have stopped no class in time."""
    return {seed: directory for seed, directory in plain.items() if stops_none(name, directory)}


@functools.cache  # several tables ask, and a finished run stays as it is
def stops_none(name: str, plain: Path) -> bool:
    """Whether a policy would have stopped no class of a finished run of plain KD in time."""
    params = {key: value for key, value in POLICIES[name].items() if key != "use"}
    classes, curves = kdzoo.read_curves(plain / "classes.csv")
    return not any(stopped(params, classes, curves)[:-1])


def stopped(
    params: dict[str, Any], classes: Sequence[str], curves: kdzoo.TeachingCurves
) -> list[int]:
    """How many classes ``tllm`` would have stopped, after each epoch of a run in which none was."""
    policy: kdzoo.ClassPolicy = registry().make("policy", "tllm", params)
    policy.setup(kdzoo.PolicySetting(tuple(classes), True, 0.9, 0.1))
    epochs = range(1, len(curves.student) + 1)
    return [int((policy.update(curves.first(epoch)).teacher != 1).sum()) for epoch in epochs]


def finished(name: str) -> dict[int, kdzoo.Report]:
    """Their reports."""
    return {
        seed: kdzoo.Report.read(each / "report.json") for seed, each in directories(name).items()
    }


def machines() -> str:
    """Where the finished runs were trained: not always where the table is made."""
    environments = (
        json.loads(report.with_name("environment.json").read_text())
        for report in RUNS.glob("*/report.json")
    )
    trained = Counter((each["device"], each["versions"]["torch"]) for each in environments)
    return "; ".join(
        f"{count} runs on {device}, torch {torch}" for (device, torch), count in trained.items()
    )


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


def show_signals(gaps: dict[int, Floats], result: Result) -> None:
    """What a policy can know of plain KD's harm, at its first look and at the end.

    Args:
        gaps: (C,), what plain KD changed on the test images, by seed.
        result: where it is kept.
    """
    curves = {
        seed: kdzoo.read_curves(directory / "classes.csv")[1]
        for seed, directory in directories("all").items()
    }
    window, looks = EARLY["window"], (EARLY["start_epoch"], STUDENT_EPOCHS)

    def readings(signal: Signal, source: str, epoch: int) -> dict[int, Reading]:
        read = {}
        for seed, each in curves.items():
            images = each.validation if source == "validation" else each
            assert images is not None
            read[seed] = read_signal(signal, images.first(epoch), window)
        return read

    result.table(
        "correlation of a signal of plain KD with what it changed in the other seeds, test images",
        *(f"after epoch {epoch}" for epoch in looks),
    )
    # Plain KD asks the teacher nothing about validation images.
    for signal, source in (*((signal, "training") for signal in READ), ("baseline", "validation")):
        found = [
            [
                np.corrcoef(reading.value, elsewhere(gaps, seed))[0, 1]
                for seed, reading in readings(signal, source, epoch).items()
            ]
            for epoch in looks
        ]
        result.row(f"{signal}, {source} images", *map(spread, found))
    own = [np.corrcoef(gap, elsewhere(gaps, seed))[0, 1] for seed, gap in gaps.items()]
    result.row("what it changed, test images", "", spread(own))
    first = readings("baseline", "training", looks[0]).values()
    values = np.array([reading.value for reading in first])
    deviations = {
        "over classes": values.mean(0).std(ddof=1),
        "of a class over seeds": np.sqrt(values.var(0, ddof=1).mean()),
        "told by the images": np.sqrt(np.mean([reading.error**2 for reading in first])),
    }
    result.table(f"baseline, training images, epoch {looks[0]}: points", *deviations)
    result.row("standard deviation", *(median([100 * float(d)]) for d in deviations.values()))


def show_validation(result: Result) -> None:
    """The policies on validation images, by which a default is chosen: all that is in this table is
    of them, the hurt classes too."""

    def last(name: str, of: str = "student") -> dict[int, Floats]:
        found = {}
        for seed, directory in directories(name).items():
            validation = kdzoo.read_curves(directory / "classes.csv")[1].validation
            assert validation is not None
            found[seed] = getattr(validation, of)[-1]
        return found

    plain, alone = last("all"), last("all", "baseline")
    hurt = hurt_classes({seed: plain[seed] - alone[seed] for seed in plain})
    result.table("points of validation accuracy", *COLUMNS[:4])
    for name in ("baseline", *POLICIES):
        runs = alone if name == "baseline" else last(name)
        rows = []
        for seed in sorted(runs.keys() & plain.keys()):
            rows.append(compared(runs[seed], plain[seed], alone[seed], hurt[seed]))
        if rows:
            result.row(f"{name} ({len(rows)} seeds)", *map(points, zip(*rows, strict=True)))


def show_evidence(result: Result) -> None:
    """What ``kdzoo report`` says of each policy's seeds."""
    verdicts = get_args(Verdict)
    result.table(
        "verdicts over seeds, against the baseline, test images: how many classes",
        *verdicts,
        "expected harm, points",
    )
    for name in POLICIES:
        runs = list(map(RunDirectory, directories(name).values()))
        if len(runs) >= SEEDS_FOR_A_VERDICT:
            (setting,) = StudyReport.of(runs).settings
            assert setting.harm is not None
            counts = map(setting.count, verdicts)
            result.row(name, *map(str, counts), f"{100 * setting.harm:.0f}")


def show_null(classes: Sequence[str], result: Result) -> None:
    """How many classes ``tllm`` names where there is nothing to find: one baseline is compared with
    that of another seed, on all training images, held out or not. CIFAR-100 has as many of each
    class, and folders of images come class by class."""
    right = []
    for directory in directories("baseline").values():
        bits = np.unpackbits(read_right_rows(RunDirectory(directory)), axis=1)
        right.append(bits[:, : bits.shape[1] // len(classes) * len(classes)])
    named = []
    for student, baseline in itertools.permutations(right, 2):
        shares = [
            each.reshape(len(each), len(classes), -1).mean(2)
            for each in (student, baseline, student & baseline)
        ]
        samples = np.full_like(shares[0], student.shape[1] / len(classes))
        ones = np.ones_like(samples)
        curves = kdzoo.TeachingCurves(
            samples=samples,
            student=shares[0],
            teacher=ones,
            agreement=ones,
            divergence=ones,
            predicted=samples,
            teacher_weight=ones,
            label_weight=ones,
            baseline=shares[1],
            both_right=shares[2],
        )
        named.append(stopped(EARLY, classes, curves)[-1])
    result.table(
        "two baselines compared, one of them taken for a student: pairs in which tllm names",
        "no class",
        "one",
        "more",
        "in all",
    )
    counts = (named.count(0), named.count(1), sum(each > 1 for each in named), sum(named))
    result.row(f"{len(named)} pairs", *map(str, counts))


def elsewhere(gaps: dict[int, Floats], seed: int) -> Floats:
    """(C,), what plain KD changed on average in all seeds but one."""
    mean: Floats = np.mean([gap for other, gap in gaps.items() if other != seed], 0)
    return mean


def hurt_classes(gaps: dict[int, Floats]) -> dict[int, Floats]:
    """Of each seed, as weights (C,): the tenth of the classes that plain KD hurt most in the
    others."""
    count = tenth_of(len(gaps[min(gaps)]))
    return {seed: lowest(elsewhere(gaps, seed), count) for seed in gaps}


def compared(own: Floats, plain: Floats, alone: Floats, hurt: Floats) -> Floats:
    """The first four columns of one run.

    Args:
        own: (C,), its accuracies.
        plain: plain KD's.
        alone: the baseline's.
        hurt: (C,), which plain KD hurt, as weights.
    """
    change = own - alone
    parts = [np.average(change, weights=weights) for weights in (hurt, 1 - hurt)]
    return np.array([own.mean(), (own - plain).mean(), *parts])


def show(result: Result) -> None:
    """What is finished of each policy, beside plain KD and the baseline of the same seeds."""
    plain = finished("all")
    if len(plain) < 2:
        raise SystemExit("two seeds of plain KD must be finished before it is known what it hurts")
    gaps = {seed: accuracies(run) - accuracies(run, "baseline") for seed, run in plain.items()}
    hurt = hurt_classes(gaps)
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
            alone = accuracies(plain[seed], "baseline")
            classes = list(runs[seed].student.classes)
            dropped = [classes.index(each) for each in runs[seed].untaught]
            rows.append(
                (
                    *compared(own, taught, alone, hurt[seed]),
                    (own - taught)[dropped].mean() if dropped else np.nan,
                    np.delete(own - taught, dropped).mean(),
                    (after - taught_after).mean(),
                    len(dropped),
                    hurt[seed][dropped].sum(),
                )
            )
        if rows:
            *shares, counts, right = zip(*rows, strict=True)
            cells = [points([value for value in column if value == value]) for column in shares]
            of_them = f"{np.mean(counts):.1f}, {np.mean(right):.1f} of the hurt"
            result.row(f"{name} ({len(rows)} seeds)", *cells, of_them)
    show_evidence(result)
    show_validation(result)
    show_signals(gaps, result)
    show_null(list(plain[min(plain)].student.classes), result)


def main() -> None:
    """Train what the command line asks for, and show what is finished."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("root", help="the folder with train/<class>/*.png and test/<class>/*.png")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    add("--compile", action="store_true", help="compile the steps")
    add("--bf16", action="store_true", help="compute them in bfloat16")
    add("--at-once", type=int, default=2, help="runs (%(default)s)")
    add("--no-training", action="store_true", help="only show what is finished")
    add_output(parser, "cifar_classes")
    args = parser.parse_args()
    if not args.no_training:
        train_all(args)
    show(Result(args, machines()))


if __name__ == "__main__":
    main()
