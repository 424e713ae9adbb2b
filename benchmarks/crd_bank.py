"""A step of CRD's contrast alone, forward and backward, as its memory banks grow.

    python benchmarks/crd_bank.py

Three ways to the same loss, each with a batch of 64, 16,384 negatives and 128 dimensions:

- block: kdzoo's; the negatives of a step lie in one block of rows. Drawing them is counted.
- bank: one product with the whole bank, from which each image's scores are gathered.
- vectors: 1 + K vectors are gathered for each image, as the literature's code does.

For the last two the negatives are drawn beforehand, which is not counted. The three take turns; the
table has the median over rounds, least and greatest, and the ratios round by round. Before that the
first is alone: the table has what it holds in memory at peak, from when its banks are made until it
has done some steps (sampled as in memory.py).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from contestants.plain import Contrast
from kdzoo_plugins.losses.crd import CRD
from memory import Peak
from result import Cell, Result, add_output, paired, spread
from torch import Tensor

import kdzoo

BANKS = (50_000, 200_000, 1_281_167)
BATCH, NEGATIVES, FEATURE = 64, 16_384, 64
Step = Callable[[], None]


class WholeBank(Contrast):
    """Scores of the whole bank, gathered."""

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor, contrast: Tensor) -> Tensor:
        """As :class:`Contrast`; the memories take nothing in, which is no part of the question."""
        student, teacher = self.embed_student(student), self.embed_teacher(teacher)
        total = student.new_zeros(())
        for embedded, memory in ((student, self.memory_teacher), (teacher, self.memory_student)):
            score = (embedded @ memory.T).gather(1, contrast).div(self.temperature).exp()
            total = total + self._against_noise(score / (score.detach().mean() * len(memory)))
        return total


def block(features: tuple[Tensor, Tensor], indices: Tensor, targets: Tensor) -> Step:
    """A step of kdzoo's, with banks for the samples that the targets are of."""
    samples, classes = len(targets), int(targets.max()) + 1
    empty = torch.zeros(BATCH, classes)
    student, teacher = (kdzoo.Outputs(empty, {"penultimate": value}) for value in features)
    batch = kdzoo.Batch(empty, targets[indices], indices, torch.ones(BATCH), progress=0.0)
    shapes = kdzoo.Shapes((classes,), {"penultimate": (FEATURE,)})
    loss = CRD(CRD.Params(negatives=NEGATIVES))
    loss.targets = targets
    loss.setup(shapes, shapes, classes, samples)
    return lambda: loss(student, teacher, batch).mean().backward()


def others(features: tuple[Tensor, Tensor], indices: Tensor, samples: int) -> dict[str, Step]:
    """A step of each of the others."""
    contrast = torch.cat([indices[:, None], torch.randint(samples, (BATCH, NEGATIVES))], 1)
    made = {
        name: kind(FEATURE, FEATURE, samples)
        for name, kind in (("bank", WholeBank), ("vectors", Contrast))
    }
    return {
        name: lambda other=other: other(*features, indices, contrast).backward()
        for name, other in made.items()
    }


def peak(features: tuple[Tensor, Tensor], indices: Tensor, targets: Tensor) -> float:
    """MB at peak of kdzoo's, more than before."""
    with Peak(os.getpid()) as watched:
        step = block(features, indices, targets)
        for _ in range(3):
            step()
    return watched.megabytes


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="A step of CRD's contrast as its banks grow.")
    add = parser.add_argument
    add("--banks", nargs="+", type=int, default=BANKS, help="rows of a bank (%(default)s)")
    add("--rounds", type=int, default=7, help="turns of each (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add_output(parser, "crd_bank")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    result = Result(args, f"{args.threads} threads")
    result.table(
        "CRD's contrast, by rows of a bank",
        *("block, ms", "bank / block", "vectors / block", "block, MB at peak"),
    )
    for samples in args.banks:
        targets = torch.arange(samples) % (1000 if samples > BANKS[0] else 100)
        features = torch.randn(BATCH, FEATURE, requires_grad=True), torch.randn(BATCH, FEATURE)
        indices = torch.randperm(samples)[:BATCH]
        megabytes = peak(features, indices, targets)
        steps = {
            "block": block(features, indices, targets),
            **others(features, indices, samples),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(-1, args.rounds):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - begun)
        ours = seconds["block"]
        result.row(
            f"{samples:,}",
            spread([1000 * value for value in ours], 1),
            *(paired(seconds[name], ours, 1) for name in ("bank", "vectors")),
            Cell(f"{megabytes:.0f}", (megabytes,)),
        )


if __name__ == "__main__":
    main()
