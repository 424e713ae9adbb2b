"""Where a step of kdzoo's engine spends its time, and what the processor could do at best.

    python benchmarks/anatomy.py

For each pair and method: the parts of a step by kind of operator, as torch's profiler sees them;
the operations of its convolutions and products, and the bytes that all its operators read and
write, counted in one step of their own. The processor's limits are the fastest product of two large
matrices and the fastest copy of a large one, both made between the other measurements. A tensor
that is still in a cache is read faster than that copy, so the bytes can come out above 100 %.

- convolutions, norms: forward and backward.
- products: linear layers, CRD's scores.
- others: ReLUs, sums, losses, the optimizer, crops, copies.
- Python: what is left of the step; while being profiled more than otherwise.

A share of a profiled step is that of all of them together. Milliseconds, and what is reached of a
limit, are the median over the timed steps, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contestants import engine
from contestants.job import FinishedError, Job, Watch, write_teacher
from limit import peak, seconds
from result import Result, add_output, median, share, spread
from step import METHODS, PAIRS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("convolutions", "norms", "products", "others", "Python")
_PRODUCTS = {"aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"}
_LOOKS_UP = {"index", "index_select", "gather", "embedding"}  # read what they answer, not all


class ByteCounter(TorchDispatchMode):
    """Counts what operators read and write; a view does neither."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        aliases = [each.alias_info for each in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            return answer
        written = _bytes(answer)
        looks_up = func.overloadpacket.__name__ in _LOOKS_UP
        self.total += written + (written if looks_up else _bytes((args, kwargs)))
        return answer


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


class AnatomyWatch(Watch):
    """Counts one step, then profiles some, then ends the training.

    Attributes:
        operations: of a step.
        bytes: of a step.
        milliseconds: a step's, by part.
        seconds: of each step while nobody looks.
    """

    def __init__(self, skip: int, steps: int) -> None:
        self._plan = iter(
            [None] * skip
            + [self._time] * steps
            + [self._timed, self._counted, self._profile]
            + [None] * (steps - 1)
            + [self._profiled]
        )
        self._steps = steps
        self._ends: list[float] = []
        self._operations = FlopCounterMode(display=False)
        self._bytes = ByteCounter()
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def tick(self, steps: int = 1) -> None:
        """See :meth:`Watch.tick`; one step at a time."""
        assert steps == 1
        action: Callable[[], None] | None = next(self._plan)
        if action is not None:
            action()

    def _time(self) -> None:
        self._ends.append(time.perf_counter())

    def _timed(self) -> None:
        self._time()
        self.seconds = [later - before for before, later in itertools.pairwise(self._ends)]
        self._operations.__enter__()
        self._bytes.__enter__()

    def _counted(self) -> None:
        self._bytes.__exit__(None, None, None)
        self._operations.__exit__(None, None, None)
        self.operations = self._operations.get_total_flops()
        self.bytes = self._bytes.total

    def _profile(self) -> None:
        self._profiler.start()
        self._begun = time.perf_counter()

    def _profiled(self) -> None:
        whole = 1000 * (time.perf_counter() - self._begun) / self._steps
        self._profiler.stop()
        self.milliseconds = dict.fromkeys(PARTS, 0.0)
        for event in self._profiler.key_averages():
            if event.key.startswith(("aten::", "mkldnn::")):
                took = event.self_cpu_time_total / 1000 / self._steps
                self.milliseconds[_part(event.key)] += took
        self.milliseconds["Python"] = max(whole - sum(self.milliseconds.values()), 0.0)
        raise FinishedError


def _part(operator: str) -> str:
    if "convolution" in operator:
        return "convolutions"
    if "batch_norm" in operator:
        return "norms"
    return "products" if operator in _PRODUCTS else "others"


def bandwidth(rounds: int) -> float:
    """Bytes a second, read and written, of the fastest copy of a matrix of 256 MiB."""
    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), rounds))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Where a step of kdzoo's engine spends its time.")
    add = parser.add_argument
    add("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT", help="which (%(default)s)")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="which (all)")
    add("--steps", type=int, default=10, help="to be timed, and to be profiled (%(default)s)")
    add("--skip", type=int, default=5, help="steps before them (%(default)s)")
    add("--batch", type=int, default=64, help="images a step (%(default)s)")
    add("--samples", type=int, default=50_000, help="training images (%(default)s)")
    add("--negatives", type=int, default=16_384, help="of crd, an image (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add_output(parser, "anatomy")
    args = parser.parse_args()
    if (args.skip + 2 * args.steps + 2) * args.batch > args.samples:
        parser.error("an epoch would end too early: more --samples are needed")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    result = Result(args, f"{args.threads} threads")
    rates, copies = [peak(10)], [bandwidth(10)]
    with tempfile.TemporaryDirectory() as folder:
        for pair in args.pairs:
            teacher, student = pair.split(":")
            file = Path(folder) / f"{teacher}.pt"
            write_teacher(teacher, 100, file)
            watches: dict[str, AnatomyWatch] = {}
            for method in args.methods:
                job = Job(
                    pair=(teacher, student),
                    method=method,
                    teacher_file=str(file),
                    batch=args.batch,
                    samples=args.samples,
                    negatives=args.negatives,
                    threads=args.threads,
                )
                watches[method] = watch = AnatomyWatch(args.skip, args.steps)
                try:
                    engine.run(job, watch)
                except FinishedError:
                    rates.append(peak(5))
                    copies.append(bandwidth(5))
            rate, copy = max(rates), max(copies)
            parts(f"{teacher} -> {student}, share of a profiled step", watches, result)
            result.table(
                f"{teacher} -> {student}, a step beside {rate / 1e9:.0f} GFLOPS and "
                f"{copy / 1e9:.1f} GB/s",
                *("ms a step", "GFLOP", "of the limit", "GB", "of the copy"),
            )
            for method, watch in watches.items():
                result.row(
                    method,
                    spread((1000 * second for second in watch.seconds), 0),
                    median([watch.operations / 1e9]),
                    share(watch.operations / rate / second for second in watch.seconds),
                    median([watch.bytes / 1e9], 2),
                    share(watch.bytes / copy / second for second in watch.seconds),
                )


def parts(title: str, watches: dict[str, AnatomyWatch], result: Result) -> None:
    """The table of where the time goes."""
    result.table(title, *PARTS)
    for method, watch in watches.items():
        whole = sum(watch.milliseconds.values())
        result.row(method, *(share([watch.milliseconds[part] / whole]) for part in PARTS))


if __name__ == "__main__":
    main()
