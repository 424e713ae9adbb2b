"""Which signal of tllm finds what is planted, and what mends it? On data with clean labels.

    python benchmarks/planted_signals.py

The clouds are those of tests/installed/planted.py: ten classes in five pairs of siblings. The
teacher answers the true posterior, but for two planted classes. It also sees what the student does
not: a second draw of each image's features, and the class. For each kind of planting and each of
ten seeds a baseline, plain KD, and tllm with each of its signals are trained. First it is measured
whether plain KD harms the planted classes at all (test images; the interval is that of the mean
over seeds, 95 %); then, which classes each signal has named. Naming one of the pair that is hard
for teacher and student alike is an error, and it is shown by itself. One thread; about eight
minutes. The runs are kept in runs/planted-signals: it continues where it was cut off.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

import kdzoo

sys.path.append(str(Path(__file__).parents[1] / "tests" / "installed"))

import planted
from planted import CLASSES, FEATURES, PAIRS, RECIPE, SCALE, centres
from result import Cell, Result, add_output, median

Floats = npt.NDArray[np.float64]

RUNS = Path("runs/planted-signals")
PLANTED = tuple(planted.COLLAPSED)
HARD = (planted.HARD, PAIRS[planted.HARD])  # hard for teacher and student, in all kinds
SIGNALS = ("baseline", "residual", "agreement", "divergence", "cka")

Kind = Literal["margin", "unseen-margin", "wrong", "shuffled"]
KINDS: dict[Kind, str] = {
    "margin": "the teacher is right, the sibling's logit 0.1 below",
    "unseen-margin": "the teacher is right, by a margin that depends on features only it sees",
    "wrong": "the teacher answers the sibling",
    "shuffled": "control: the teacher's outputs shuffled within the class",
}
CONTROLS = ("shuffled",)
EARLY = {"start_epoch": 4, "window": 4, "patience": 2, "max_fraction": 0.5}  # runs of ten epochs
REMEDIES: dict[str, dict[str, Any]] = {
    "all": {"use": "all"},
    "tllm": {"use": "tllm", **EARLY},
    "tllm-no-balance": {"use": "tllm", "balance": False, **EARLY},
    "tllm-half-the-teacher": {"use": "tllm", "teacher_weight": 0.5, **EARLY},
    "label-only": {"use": "label-only", **EARLY},
}


class Clouds(kdzoo.DataSource):
    """Features, a second draw of them, and the class, as pixels of a row."""

    name = "planted-clouds"

    class Params(kdzoo.Params):
        """What can be set."""

        draw: int = kdzoo.Field(0, description="The seed of the images.")

    def load(self) -> kdzoo.ImageData:
        """See :meth:`kdzoo.DataSource.load`."""
        train, test = (self._draw(part, 300) for part in (0, 1))
        return kdzoo.ImageData(*train, *test, classes=CLASSES, mean=(0.0,), std=(1.0,))

    def _draw(self, part: int, per_class: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng([self.params.draw, part])
        targets = np.repeat(np.arange(10), per_class)
        place = centres()[targets]
        drawn = [128 + SCALE * (place + draw.normal(size=place.shape)) for _ in range(2)]
        pixels = np.concatenate([*drawn, 20.0 * targets[:, None]], 1)
        images = torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))
        return images[:, None, None, :], torch.from_numpy(targets)


def views(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both draws of the features, (B, FEATURES) each, and the class, (B,)."""
    pixels = images[:, 0, 0] * 255
    features = (pixels[:, :-1] - 128) / SCALE
    return features[:, :FEATURES], features[:, FEATURES:], (pixels[:, -1] / 20).round().long()


class _Teacher(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.Identity()  # what enters the classifier, for cka
        self.register_buffer("centres", torch.from_numpy(centres()).float())

    def _posterior(self, features: Tensor) -> Tensor:
        """(B, 10), its logarithm but for a constant."""
        return -torch.cdist(features, self.centres).square() / 2

    def forward(self, images: Tensor) -> Tensor:
        seen, unseen, told = views(images)
        logits = self._posterior(seen)
        for name in PLANTED:
            number, sibling = CLASSES.index(name), CLASSES.index(PAIRS[name])
            rows = told == number
            highest = logits[rows].amax(1)
            if self.kind == "margin":
                logits[rows, number], logits[rows, sibling] = highest + 0.1, highest
            elif self.kind == "wrong":
                logits[rows, number], logits[rows, sibling] = highest, highest + 4
            elif self.kind == "unseen-margin":
                # How sure it is depends on the second draw; as the student sees it, by chance.
                sure = 0.02 + 0.15 * unseen[rows, CLASSES.index("j")].relu()
                logits[rows, number], logits[rows, sibling] = highest + sure, highest
            elif self.kind == "shuffled":
                logits[rows] = self._posterior(unseen[rows])
        return self.features(logits)


class Teacher(kdzoo.ModelSource):
    """The true posterior but for what is planted."""

    name = "planted-posterior"

    class Params(kdzoo.Params):
        """What can be set."""

        kind: Kind = kdzoo.Field("margin", description="What is planted.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        return _Teacher(self.params.kind)

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        return kdzoo.Layers(penultimate="features")

    def pretrained(self) -> bool:
        """See :meth:`kdzoo.ModelSource.pretrained`."""
        return True


class _Student(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(views(images)[0]))


class Student(kdzoo.ModelSource):
    """A small perceptron on the features that it sees."""

    name = "planted-perceptron"

    class Params(kdzoo.Params):
        """What can be set."""

        width: int = kdzoo.Field(32, description="Hidden units.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        return _Student(self.params.width)

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        return kdzoo.Layers(penultimate="hidden", head="head")


def run(kind: Kind, seed: int, policy: Any) -> kdzoo.Report:
    """One run, and what came out."""
    spec = {
        "name": kind,
        "seed": seed,
        "threads": 1,
        "data": {"use": "planted-clouds", "draw": seed},
        "teacher": {"use": "planted-posterior", "kind": kind, "check": False},
        "student": {"use": "planted-perceptron", "width": 32},
        "baseline": True,
        "policy": policy,
        **RECIPE,
        "observers": [],
    }
    return kdzoo.run(spec, runs=RUNS).report


def points(values: Floats) -> Cell:
    """The mean over seeds and its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    ends = values.mean() + half * np.array([0, -1, 1])
    mean, low, high = (round(float(each), 1) + 0.0 for each in ends)  # no -0.0
    return Cell(f"{mean} [{low}, {high}]", tuple(values))


def accuracies(reports: list[kdzoo.Report], role: str, names: tuple[str, ...]) -> Floats:
    """(seeds,), of the student or the baseline, on average over some classes, in percent."""
    scores = [getattr(report, role) for report in reports]
    return np.array([100 * np.mean([score.classes[name] for name in names]) for score in scores])


def harm(reports: list[kdzoo.Report], names: tuple[str, ...]) -> Cell:
    """How much better the baseline is on some classes, in points: a number a seed."""
    return points(accuracies(reports, "baseline", names) - accuracies(reports, "student", names))


def show_remedies(kind: Kind, plain: list[kdzoo.Report], result: Result) -> None:
    """What each remedy makes of a kind that ``plain`` KD is harmed by."""
    result.table(
        f"{kind}: what is done with the classes that the baseline shows; points of test accuracy",
        "planted, less the baseline's",
        "their siblings, less the baseline's",
        "all classes, less plain KD's",
    )
    siblings = tuple(PAIRS[name] for name in PLANTED)
    before = accuracies(plain, "student", CLASSES)
    for name, policy in REMEDIES.items():
        reports = [run(kind, seed, policy) for seed in range(len(plain))]
        own = [
            accuracies(reports, "student", names) - accuracies(reports, "baseline", names)
            for names in (PLANTED, siblings)
        ]
        result.row(name, *map(points, [*own, accuracies(reports, "student", CLASSES) - before]))


def count(named: list[tuple[str, ...]], names: tuple[str, ...]) -> Cell:
    """How many of some classes were named, in all runs: a number a seed."""
    values = [sum(name in names for name in each) for each in named]
    return Cell(str(sum(values)), tuple(values))


def quality(kind: Kind, named: list[tuple[str, ...]]) -> tuple[Cell | str, Cell | str]:
    """Precision and recall over all runs; a control has neither."""
    if kind in CONTROLS:
        return "-", "-"
    right, whole = (
        sum(name in names for each in named for name in each) for names in (PLANTED, CLASSES)
    )
    recall = median([right / (len(PLANTED) * len(named))], 2)
    return median([right / whole], 2) if whole else "-", recall


def main() -> None:
    """Show the harm of each kind, and what each signal has named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS)
    add_output(parser, "planted_signals")
    args = parser.parse_args()
    kdzoo.register(Clouds, Teacher, Student)
    seeds = range(args.seeds)
    siblings = {PAIRS[name] for name in PLANTED}
    others = tuple(name for name in CLASSES if name not in {*PLANTED, *HARD})
    groups = {"planted": PLANTED, "hard for both": HARD}
    apart = tuple(name for name in others if name not in siblings)
    result = Result(args, "1 thread")
    result.table(
        "points that plain KD costs against the baseline, mean over seeds [95 %]",
        *(f"{title} ({', '.join(names)})" for title, names in (*groups.items(), ("others", apart))),
    )
    plain = {kind: [run(kind, seed, REMEDIES["all"]) for seed in seeds] for kind in args.kinds}
    for kind, reports in plain.items():
        result.row(kind, *(harm(reports, names) for names in (*groups.values(), apart)))
    for kind in args.kinds:
        result.table(
            f"{kind}: {KINDS[kind]}; classes named in {len(seeds)} runs",
            *(
                f"{title}, of {len(seeds) * len(names)}"
                for title, names in (*groups.items(), ("others", others))
            ),
            *("precision", "recall"),
        )
        for signal in args.signals:
            policy = REMEDIES["tllm"] | {"signal": signal}
            named = [run(kind, seed, policy).untaught for seed in seeds]
            right, *wrong = (count(named, names) for names in (*groups.values(), others))
            result.row(signal, right, *wrong, *quality(kind, named))
    for kind in args.kinds:
        if kind not in CONTROLS:
            show_remedies(kind, plain[kind], result)


if __name__ == "__main__":
    main()
