"""Images a second of whole training steps: kdzoo's engine beside other loops, paired.

    python benchmarks/step.py --policy
    python benchmarks/step.py --profile --pairs resnet32x4:resnet8x4 --methods crd

Each contestant has a process of its own and trains the same networks on the same noise (50,000
images of 32x32 pixels, 100 classes). They take turns: while one does a round of steps the others
wait, and the order is reversed from round to round. The first steps of a round are not counted: in
them a loader uses up what it fetched while it waited.

- kdzoo: ``kdzoo.run`` with a spec and all default observers. An observer takes the time, at every
  look at the losses; so ``log_every`` is the greatest number up to 10 (its default) that divides
  both ``--skip`` and ``--steps``.
- plain: a loop as the literature writes it, see ``contestants/plain.py``.
- torchdistill: the package of that name (1.1.5 was tried), if it is installed; it is optional. See
  ``contestants/torchdistill_loop.py``.

The other two read their images through a DataLoader. Each pair and method of theirs gets the number
of worker processes (0, 1 or 2) with which it is fastest in a short trial here, as anybody would
choose it; any fixed number would be unfair to somebody. kdzoo has no workers.

With ``--policy`` kdzoo runs against itself: without a policy twice, to see the noise of the
method; with ten classes untaught; and with every step's losses looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import engine
from contestants.job import FinishedError, Job, Watch, divisor, serve, write_teacher

import kdzoo
from kdzoo.extend.contracts import PolicySetting
from kdzoo.extend.registry import registry

METHODS = ("ce", "kd", "fitnet", "crd", "dkd")
PAIRS = ("resnet56:resnet20", "resnet32x4:resnet8x4")
MODULES = {"kdzoo": "engine", "plain": "plain", "torchdistill": "torchdistill_loop"}
RESULTS = Path(__file__).parent / "results" / "step"


class Contestant:
    """A process that trains, and waits when it is not its turn.

    Args:
        module: its loop, a module of :mod:`contestants`.
        log: a file for what it prints.
    """

    def __init__(self, module: str, log: Path) -> None:
        # A process of its own imports torch once and is forked, before it ever had a thread.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload(["kdzoo.pipeline", "torchvision", "tensorboard"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(module, theirs, str(log)))
        self._process.start()
        theirs.close()
        self._log = log

    def start(self, job: Job) -> tuple[Any, ...]:
        """Set a job up and do its first step: ``("ready", about)``, or ``("failed", why)``."""
        self._connection.send(job)
        return self._heard()

    def round(self, skip: int, steps: int) -> tuple[Any, ...]:
        """``("seconds", s)`` of some steps after others, or ``("failed", why)``."""
        self._connection.send(("round", skip, steps))
        return self._heard()

    def finish(self) -> None:
        """Leave the job."""
        self._connection.send(("done",))
        self._heard()

    def close(self) -> None:
        """End the process, wherever it is."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join()

    def _heard(self) -> tuple[Any, ...]:
        try:
            heard: tuple[Any, ...] = self._connection.recv()
        except EOFError:
            tail = self._log.read_text()[-2000:]
            raise SystemExit(f"a contestant's process died; it printed:\n{tail}") from None
        return heard


@dataclass
class Measured:
    """How one contestant did.

    Attributes:
        images_per_second: one number a round.
        about: what it said of itself (its number of loader workers).
        reason: why there are no numbers; empty otherwise.
    """

    images_per_second: list[float]
    about: Mapping[str, Any]
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return "-"
        return f"{statistics.median(self.images_per_second):.1f}"


def measure(
    contestants: Mapping[str, tuple[Contestant, Job]], rounds: int, skip: int, steps: int
) -> dict[str, Measured]:
    """Let some contestants take turns."""
    results: dict[str, Measured] = {}
    for name, (contestant, job) in contestants.items():
        said, what = contestant.start(job)
        results[name] = Measured([], {}, what) if said == "failed" else Measured([], what)
    for number in range(rounds):
        going = [name for name, result in results.items() if not result.reason]
        for name in going if number % 2 == 0 else reversed(going):
            contestant, job = contestants[name]
            said, what = contestant.round(skip, steps)
            if said == "failed":
                results[name] = Measured([], {}, what)
            else:
                results[name].images_per_second.append(steps * job.batch / what)
    for name, result in results.items():
        if not result.reason:
            contestants[name][0].finish()
    return results


def ratios(first: Measured, second: Measured) -> list[float]:
    """Of their images a second, round by round; empty where one has none."""
    if first.reason or second.reason:
        return []
    pairs = zip(first.images_per_second, second.images_per_second, strict=True)
    return [a / b for a, b in pairs]


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and least to greatest."""
    if not values:
        return "-"
    median, least, greatest = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f}-{greatest:.{digits}f})"


class Table:
    """What was measured, shown at once and kept in two files.

    Args:
        output: the files' common name, without ``.txt`` and ``.json``.
        settings: what was asked for.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.output = output
        self.record: dict[str, Any] = {
            "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
            "machine": machine(),
            "settings": dict(settings),
            "rows": [],
        }
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """Another line."""
        print(line, flush=True)
        self.lines.append(line)

    def add(self, row: Mapping[str, Any], results: Mapping[str, Measured], **more: Any) -> None:
        """Another row for the JSON file."""
        measured = {name: asdict(result) for name, result in results.items()}
        self.record["rows"].append({**row, "contestants": measured, **more})
        self.write()

    def write(self) -> None:
        """Write both files, after each row: what was measured outlives a run that is cut off."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.with_suffix(".txt").write_text("\n".join(self.lines) + "\n")
        self.output.with_suffix(".json").write_text(json.dumps(self.record, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in ("torch", "torchvision", "pillow", "numpy", "torchdistill")
            if importlib.util.find_spec("PIL" if name == "pillow" else name)
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def compare(args: argparse.Namespace, jobs: list[Job], table: Table, logs: Path) -> None:
    """The rows of kdzoo beside the others."""
    names = [name for name in MODULES if name != "torchdistill" or installed()]
    if not installed():
        table.say("torchdistill is not installed: its column is left out.\n")
    others = names[1:]
    contestants = {name: Contestant(MODULES[name], logs / name) for name in names}
    notes: dict[str, None] = {}
    try:
        for pair in dict.fromkeys(job.pair for job in jobs):
            table.say(f"{' -> '.join(pair)}, images a second")
            head = "".join(f"{name:>14}" for name in names)
            table.say(f"{'method':<8}{head}" + "".join(f"{f'kdzoo / {n}':>24}" for n in others))
            for job in jobs:
                if job.pair != pair:
                    continue
                turns = {name: (contestants[name], job) for name in names}
                results = measure(turns, args.rounds, args.skip, args.steps)
                compared = {name: ratios(results["kdzoo"], results[name]) for name in others}
                table.say(
                    f"{job.method:<8}"
                    + "".join(f"{_with_workers(results[name]):>14}" for name in names)
                    + "".join(f"{spread(compared[name]):>24}" for name in others)
                )
                for name, result in results.items():
                    if result.reason:
                        notes[f"{job.method}, {name}: {result.reason}"] = None
                row = {"pair": pair, "method": job.method}
                table.add(row, results, ratios=compared)
            table.say()
    finally:
        for contestant in contestants.values():
            contestant.close()
    table.say("Medians over rounds; ratios round by round: median (least-greatest).")
    table.say("[n]: loader processes, the fastest of " + ", ".join(map(str, args.workers)) + ".")
    for note in notes:
        table.say(f"-: {note}")
    table.say()


def _with_workers(result: Measured) -> str:
    workers = result.about.get("workers")
    return str(result) if workers is None else f"{result} [{workers}]"


def installed() -> bool:
    """Whether torchdistill is."""
    return importlib.util.find_spec("torchdistill") is not None


def compare_policies(args: argparse.Namespace, jobs: list[Job], table: Table, logs: Path) -> None:
    """The rows of kdzoo beside itself: kd, as it is by default against something that may cost."""
    skip, steps = (-(-number // 10) * 10 for number in (args.skip, args.steps))
    untaught = [str(number) for number in range(max(args.classes // 10, 1))]
    labels = {
        "policy all, log_every 10": {},
        "the same again": {},
        "policy fixed": {"policy": {"use": "fixed", "classes": untaught}},
        "log_every 1": {"log_every": 1},
    }
    contestants = {label: Contestant("engine", logs / label) for label in labels}
    base, *others = labels
    try:
        for job in jobs:
            table.say(f"{' -> '.join(job.pair)}, kd, kdzoo beside itself, {steps} steps a round")
            turns = {
                label: (contestants[label], replace(job, **{"log_every": 10, **changes}))
                for label, changes in labels.items()
            }
            results = measure(turns, args.rounds, skip, steps)
            compared = {label: ratios(results[label], results[base]) for label in others}
            table.say(f"{'':<28}{'images a second':>16}{'of the first':>26}")
            for label, result in results.items():
                share = spread(compared[label], 3) if label != base else ""
                table.say(f"{label:<28}{result!s:>16}{share:>26}")
                if result.reason:
                    table.say(f"-: {result.reason}")
            table.say()
            row = {"pair": job.pair, "method": "kd", "of": base}
            table.add(row, results, ratios=compared)
    finally:
        for contestant in contestants.values():
            contestant.close()
    table.say(
        f"tllm's own decision, once an epoch, takes {1000 * decision_seconds(args.classes):.2f} ms "
        f"({args.classes} classes, 240 epochs of made-up curves with a baseline)."
    )
    table.say()


def decision_seconds(classes: int, epochs: int = 240) -> float:
    """What ``tllm`` needs to look at made-up curves once; the median of twenty."""
    random = np.random.default_rng(0)
    curves = kdzoo.TeachingCurves(*random.random((9, epochs, classes)))
    names = tuple(str(number) for number in range(classes))
    policy = registry().make("policy", "tllm", {})
    policy.setup(PolicySetting(names, has_baseline=True, teacher_weight=0.9, label_weight=0.1))
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        policy.update(curves)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


class ProfileWatch(Watch):
    """Records the steps after the first few instead of timing them."""

    def __init__(self, skip: int, steps: int) -> None:
        self._left = [skip, steps]
        self._steps = steps
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def tick(self, steps: int = 1) -> None:
        """See :meth:`Watch.tick`."""
        if self._left[0] > 0:
            self._left[0] -= steps
            if self._left[0] <= 0:
                self._profile.start()
                self._begun = time.perf_counter()
            return
        self._left[1] -= steps
        if self._left[1] <= 0:
            seconds = time.perf_counter() - self._begun
            self._profile.stop()
            averages = self._profile.key_averages()
            print(averages.table(sort_by="self_cpu_time_total", row_limit=30))
            print(f"{1000 * seconds / self._steps:.1f} ms a step, while being recorded")
            raise FinishedError


def profile(args: argparse.Namespace, job: Job) -> None:
    """Where the time of kdzoo's step goes, operator by operator."""
    print(f"{' -> '.join(job.pair)}, {job.method}, kdzoo, {args.steps} steps")
    try:
        engine.run(job, ProfileWatch(args.skip, args.steps))
    except FinishedError:
        return


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description="Images a second of whole training steps, kdzoo beside other loops."
    )
    add = parser.add_argument
    add("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT", help="%(default)s")
    add("--methods", nargs="*", default=METHODS, choices=METHODS, help="%(default)s")
    add("--rounds", type=int, default=5, help="how often each has its turn (%(default)s)")
    add("--steps", type=int, default=20, help="counted steps a round (%(default)s)")
    add("--skip", type=int, default=5, help="steps before them, not counted (%(default)s)")
    add("--threads", type=int, default=2, help="torch's threads (%(default)s)")
    add("--batch", type=int, default=64, help="images a step (%(default)s)")
    add("--samples", type=int, default=50_000, help="training images (%(default)s)")
    add("--classes", type=int, default=100, help="(%(default)s)")
    add("--negatives", type=int, default=16_384, help="of crd, an image (%(default)s)")
    add(
        *("--workers", "-w"),
        nargs="+",
        type=int,
        default=(0, 1, 2),
        help="numbers of loader processes to try, of the others (%(default)s)",
    )
    add("--trial", type=int, default=6, help="steps to try each for (%(default)s)")
    add("--policy", action="store_true", help="also kdzoo beside itself: policies, observers")
    add(
        "--profile",
        action="store_true",
        help="instead: the operators of kdzoo's step, first pair and method",
    )
    add("--output", type=Path, default=RESULTS, help="where to keep it, without .txt and .json")
    args = parser.parse_args()
    args.pairs = [tuple(pair.split(":")) for pair in args.pairs]
    if any(len(pair) != 2 for pair in args.pairs):
        parser.error("a pair is TEACHER:STUDENT")
    if args.skip < 1 or args.steps < 1:
        parser.error("--skip and --steps must be 1 at least")
    most = args.rounds * (args.skip + args.steps + 20 * args.policy) + 10  # rounded up to tens
    wanted = most * args.batch
    if wanted > args.samples:
        parser.error(f"an epoch would end within a round: {wanted} samples are needed")
    return args


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory)
        files = {pair[0]: logs / f"{pair[0]}.pt" for pair in args.pairs}
        for name, file in files.items():
            write_teacher(name, args.classes, file)
        log_every = divisor((args.skip, args.steps), 10)
        jobs = [
            Job(
                pair=pair,
                method=method,
                teacher_file=str(files[pair[0]]),
                batch=args.batch,
                samples=args.samples,
                classes=args.classes,
                negatives=args.negatives,
                threads=args.threads,
                workers=tuple(args.workers),
                trial=args.trial,
                log_every=log_every,
            )
            for pair in args.pairs
            for method in (*args.methods, *(("policy",) if args.policy else ()))
        ]
        if args.profile:
            profile(args, jobs[0])
            return
        shown = {key: value for key, value in vars(args).items() if key not in ("output",)}
        table = Table(args.output, {**shown, "log_every": log_every})
        about = table.record["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        table.say(table.record["command"])
        table.say(
            f"{about['processor']}, {about['cores']} cores, {about['instructions']}, "
            f"{args.threads} threads; Python {about['python']}, {versions}"
        )
        table.say(
            f"batch {args.batch}, {args.samples} images of 32x32, {args.classes} classes; "
            f"{args.rounds} rounds of {args.steps} steps after {args.skip} that do not count; "
            f"kdzoo: log_every {log_every}\n"
        )
        if args.methods:
            compare(args, [job for job in jobs if job.method != "policy"], table, logs)
        if args.policy:
            policies = [replace(job, method="kd") for job in jobs if job.method == "policy"]
            compare_policies(args, policies, table, logs)
        table.write()


if __name__ == "__main__":
    main()
