"""A step of CRD's contrast alone, forward and backward, as its memory banks grow.

    python benchmarks/crd_bank.py > benchmarks/results/crd_bank.txt

Three ways to the same loss, each with a batch of 64, 16,384 negatives and 128 dimensions:

- block: kdzoo's; the negatives of a step lie in one block of rows. Drawing them is counted.
- bank: one product with the whole bank, from which each image's scores are gathered.
- vectors: 1 + K vectors are gathered for each image, as the literature's code does.

For the last two the negatives are drawn beforehand, which is not counted. The three take turns; the
table has the median over rounds, least and greatest, and the ratios round by round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from contestants.plain import Contrast
from kdzoo_plugins.losses.crd import CRD
from torch import Tensor

import kdzoo

BANKS = ((50_000, 100), (200_000, 1000), (1_281_167, 1000))  # samples, classes
BATCH, NEGATIVES, FEATURE, THREADS, ROUNDS = 64, 16_384, 64, 2, 7


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
    """Print a row for each size of the bank."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {THREADS} threads"
    )
    print(f"{'rows of a bank':>14}{'block, ms':>24}{'bank / block':>24}{'vectors / block':>24}")
    for samples, classes in BANKS:
        steps = ways(samples, classes)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(-1, ROUNDS):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - begun)
        columns = [[1000 * value for value in seconds["block"]]] + [
            [a / b for a, b in zip(seconds[name], seconds["block"], strict=True)]
            for name in ("bank", "vectors")
        ]
        print(
            f"{samples:>14,}" + "".join(f"{spread(column):>24}" for column in columns), flush=True
        )


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    digits = 0 if math.log10(max(values)) > 2 else 1
    median, least, greatest = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f}-{greatest:.{digits}f})"


if __name__ == "__main__":
    main()
