"""What the processor could do at best in a step of kd, beside what is reached.

    python benchmarks/limit.py

The processor's limit is the fastest product of two large matrices, of many that are made between
the other measurements, since a machine is not equally fast at all times. The operations of a
network are those of its convolutions and linear layers, as torch counts them: once for the
teacher, which only runs forward, three times for the student. All else that a step does (batch
norms, ReLUs, sums, losses, the optimizer) counts as no operation: a student cannot reach 100 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from result import Result, add_output, median, share, spread
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import kdzoo
from kdzoo.training.weights import NetworkRecipe

PAIRS = ("resnet56:resnet20", "resnet32x4:resnet8x4")


def network(name: str) -> torch.nn.Module:
    """As the engine has it, with its channels last in memory."""
    recipe = NetworkRecipe(name, {}, (3, 32, 32), list(map(str, range(100))), [0.5] * 3, [0.25] * 3)
    made, _ = recipe.build(0)
    made.prefer_channels_last(torch.rand(2, 3, 32, 32))
    return made


def seconds(action: Callable[[], object], rounds: int) -> list[float]:
    """How long it takes, a number a round; the first two are not counted."""
    took = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        action()
        took.append(time.perf_counter() - begun)
    return took[2:]


def operations(action: Callable[[], object]) -> int:
    """Additions and multiplications in products and convolutions, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def peak(rounds: int) -> float:
    """Operations a second of the fastest product of two matrices of 2048 x 2048."""
    a, b = torch.rand(2, 2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b, rounds))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="A step of kd beside the processor's limit.")
    parser.add_argument(
        "--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT", help="which"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (%(default)s)")
    add_output(parser, "limit")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = torch.rand(args.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(100, (args.batch,))
    limits = [peak(args.rounds)]
    rows: list[tuple[str, int, list[float]]] = []
    for pair in args.pairs:
        teacher, student = map(network, pair.split(":"))
        distiller = kdzoo.Distiller(
            teacher,
            student,
            kdzoo.terms(["ce", "kd"]),
            example=images[:2],
            classes=list(map(str, range(100))),
            num_samples=args.batch,
        )
        distiller.fold_teacher(images[:4])

        def teach(teacher: torch.nn.Module = teacher) -> Tensor:
            with torch.no_grad():
                return teacher(images)

        def learn(student: torch.nn.Module = student) -> None:
            cross_entropy(student(images), targets).backward()

        for label, action in zip(pair.split(":"), (teach, learn), strict=True):
            rows.append((label, operations(action), seconds(action, args.rounds)))
            limits.append(peak(args.rounds))
    limit = max(limits)
    result = Result(args, f"{args.threads} threads")
    result.table(
        f"limit: {limit / 1e9:.0f} GFLOPS", "GFLOP", "ms", "GFLOPS reached", "of the limit"
    )
    for label, work, took in rows:
        reached = [work / second for second in took]
        result.row(
            label,
            median([work / 1e9]),
            spread([1e3 * second for second in took], 0),
            median([each / 1e9 for each in reached], 0),
            share(each / limit for each in reached),
        )


if __name__ == "__main__":
    main()
