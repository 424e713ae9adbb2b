"""A step of CRD's contrast alone, forward and backward, as its memory banks grow.

    python benchmarks/crd_bank.py

Three ways to the same loss, each with a batch of 64, 16,384 negatives and 128 dimensions:

- block: kdzoo's; the negatives of a step lie in one block of rows. Drawing them is counted.
- bank: one product with the whole bank, from which each image's scores are gathered.
- vectors: 1 + K vectors are gathered for each image, as the literature's code does.

For the last two the negatives are drawn beforehand, which is not counted. The three take turns; the
table has the median over rounds, least and greatest, and the ratios round by round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from contestants.plain import Contrast
from kdzoo_plugins.losses.crd import CRD
from result import Result, add_output, paired, spread
from torch import Tensor

import kdzoo

BANKS = (50_000, 200_000, 1_281_167)
BATCH, NEGATIVES, FEATURE = 64, 16_384, 64


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


def ways(samples: int, classes: int) -> dict[str, Callable[[], None]]:
    """A step of each."""
    targets = torch.arange(samples) % classes
    features = torch.randn(BATCH, FEATURE, requires_grad=True), torch.randn(BATCH, FEATURE)
    indices = torch.randperm(samples)[:BATCH]
    empty = torch.zeros(BATCH, classes)
    student, teacher = (kdzoo.Outputs(empty, {"penultimate": value}) for value in features)
    batch = kdzoo.Batch(empty, targets[indices], indices, torch.ones(BATCH), progress=0.0)
    shapes = kdzoo.Shapes((classes,), {"penultimate": (FEATURE,)})
    loss = CRD(CRD.Params(negatives=NEGATIVES))
    loss.targets = targets
    loss.setup(shapes, shapes, classes, samples)
    contrast = torch.cat([indices[:, None], torch.randint(samples, (BATCH, NEGATIVES))], 1)
    others = {
        name: kind(FEATURE, FEATURE, samples)
        for name, kind in (("bank", WholeBank), ("vectors", Contrast))
    }
    return {
        "block": lambda: loss(student, teacher, batch).mean().backward(),
        **{
            name: lambda other=other: other(*features, indices, contrast).backward()
            for name, other in others.items()
        },
    }


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
        "CRD's contrast, by rows of a bank", "block, ms", "bank / block", "vectors / block"
    )
    for samples in args.banks:
        steps = ways(samples, 1000 if samples > BANKS[0] else 100)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(-1, args.rounds):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - begun)
        block = seconds["block"]
        result.row(
            f"{samples:,}",
            spread([1000 * value for value in block], 1),
            *(paired(seconds[name], block, 1) for name in ("bank", "vectors")),
        )


if __name__ == "__main__":
    main()
