"""Which signal of tllm finds what is planted? Precision and recall, on data with clean labels.

    python benchmarks/planted_signals.py > benchmarks/results/planted_signals.txt

The clouds are those of tests/installed/planted.py: ten classes in five pairs of siblings. The
teacher answers the true posterior, but for two planted classes. It also sees what the student does
not: a second draw of each image's features, and the class. For each kind of planting and each of
ten seeds a baseline, plain KD, and tllm with each of its signals are trained. First it is measured
whether plain KD harms the planted classes at all (test images; the interval is that of the mean
over seeds, 95 %); then, which classes each signal has named. One thread; about eight minutes. The
runs are kept in runs/planted-signals: it continues where it was cut off.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

import kdzoo

sys.path.append(str(Path(__file__).parents[1] / "tests" / "installed"))

import planted
from planted import CLASSES, FEATURES, PAIRS, RECIPE, SCALE, centres

RUNS = Path("runs/planted-signals")
PLANTED = tuple(planted.COLLAPSED)
HARD = (planted.HARD, PAIRS[planted.HARD])  # hard for teacher and student, in all kinds
SIGNALS = ("baseline", "residual", "agreement", "divergence", "cka")

Kind = Literal["margin", "unseen", "wrong", "shuffled"]
KINDS: dict[Kind, str] = {
    "margin": "the teacher is right, the sibling's logit just below",
    "unseen": "the teacher is right by features that only it sees",
    "wrong": "the teacher answers the sibling",
    "shuffled": "control: the teacher's outputs shuffled within the class",
}
CONTROLS = ("shuffled",)


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
            elif self.kind == "unseen":
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


def harm(reports: list[kdzoo.Report], names: tuple[str, ...]) -> str:
    """How much better the baseline is on some classes, in points."""
    values = np.array(
        [
            100 * np.mean([r.baseline.classes[n] - r.student.classes[n] for n in names])
            for r in reports
            if r.baseline is not None
        ]
    )
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():6.1f} [{values.mean() - half:5.1f}, {values.mean() + half:5.1f}]"


def main() -> None:
    """Print the harm of each kind, and what each signal has named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS)
    arguments = parser.parse_args()
    kdzoo.register(Clouds, Teacher, Student)
    seeds = range(arguments.seeds)
    print("points that plain KD costs against the baseline, mean over seeds [95 %]")
    print(f"{'kind':<10}{'planted (b, f)':>24}{'hard for both (i, j)':>24}{'others':>24}")
    others = tuple(set(CLASSES) - {*PLANTED, *HARD} - {PAIRS[name] for name in PLANTED})
    for kind in arguments.kinds:
        plain = [run(kind, seed, "all") for seed in seeds]
        harms = "".join(f"{harm(plain, names):>24}" for names in (PLANTED, HARD, others))
        print(f"{kind:<10}{harms}", flush=True)
    print(f"\nclasses named in {len(seeds)} runs: planted ones of {2 * len(seeds)}, others")
    print(f"{'kind':<10}{'signal':<12}{'planted':>8}{'others':>8}{'precision':>11}{'recall':>8}")
    for kind in arguments.kinds:
        for signal in arguments.signals:
            policy = {"use": "tllm", "signal": signal, "max_fraction": 0.5}
            early = {"start_epoch": 4, "window": 4, "patience": 2}
            named = [run(kind, seed, policy | early).untaught for seed in seeds]
            right = sum(name in PLANTED for names in named for name in names)
            wrong = sum(map(len, named)) - right
            shares = f"{right / max(right + wrong, 1):11.2f}{right / (2 * len(seeds)):8.2f}"
            if kind in CONTROLS:
                shares = f"{'-':>11}{'-':>8}"
            elif not right + wrong:
                shares = f"{'-':>11}{0:8.2f}"
            print(f"{kind:<10}{signal:<12}{right:8}{wrong:8}{shares}", flush=True)


if __name__ == "__main__":
    main()
