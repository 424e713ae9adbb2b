"""What kdzoo's own parts of a step cost: the curves, the observers, the class policy.

    python benchmarks/overhead.py

They do not depend on the networks, so they are profiled in runs of tiny ones on noise, with 100
classes and the default observers looking at every step. Beside whole steps of resnet56 teaching
resnet20, where two measurements of the same thing differ by more than that, they could not be seen.
Being profiled makes each of them slower than it is. The policies take turns, each in new runs; the
table has the medians over rounds, and what each policy's parts cost together beside those of the
first, round by round.

- curves: the counts of a batch; with cka the features' sums, too.
- losses: brought to the host, and to three observers.
- epoch's end: the curves, and the policy's decision.
- validation: the images of the validation set, by student and teacher, where the policy asks.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path
from typing import Any

from contestants.engine import StepImages
from result import Result, add_output, median, paired, spread

import kdzoo
from kdzoo.extend.registry import registry

PARTS = {  # what is shown, and the function in whose time it is
    "curves": ("curves.py", "record"),
    "losses": ("loop.py", "_log"),
    "epoch's end": ("distiller.py", "end_epoch"),
    "validation": ("loop.py", "_validate"),
}
POLICIES: dict[str, dict[str, Any]] = {
    "all": {"use": "all"},
    "tllm, residual": {"use": "tllm", "signal": "residual"},
    "tllm, residual, scope column": {"use": "tllm", "signal": "residual", "scope": "column"},
    "tllm, residual, validation": {"use": "tllm", "signal": "residual", "source": "validation"},
    "tllm, cka": {"use": "tllm", "signal": "cka"},
}


def milliseconds(policy: dict[str, Any], args: argparse.Namespace, runs: Path) -> list[float]:
    """What each part costs a step."""
    spec = {
        "name": "overhead",
        "data": {
            "use": "step-images",
            "samples": args.images,
            "classes": args.classes,
            "validation": 0.1,
        },
        "teacher": {"use": "mlp", "train": {"epochs": 1}},
        "student": "mlp",
        "losses": ["ce", "kd"],
        "policy": policy,
        "train": {"epochs": args.epochs},
        "log_every": 1,
        "threads": args.threads,
    }
    kdzoo.run(spec, ["train.epochs=1"], runs=runs)  # the teacher, and what is imported
    with cProfile.Profile() as profile:
        run = kdzoo.run(spec, runs=runs)
    assert run.report.epochs == args.epochs
    calls = {
        (Path(file).name, function): (count, seconds)
        for (file, _, function), (_, count, _, seconds, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if "kdzoo" in file
    }
    steps = calls["loop.py", "_log"][0]
    return [1e3 * calls.get(function, (0, 0.0))[1] / steps for function in PARTS.values()]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="What kdzoo's own parts of a step cost.")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of a turn (%(default)s)")
    parser.add_argument("--images", type=int, default=12800, help="a tenth of them for validation")
    parser.add_argument("--classes", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's (%(default)s)")
    add_output(parser, "overhead")
    args = parser.parse_args()
    costs: dict[str, list[list[float]]] = {label: [] for label in POLICIES}
    with tempfile.TemporaryDirectory() as folder, registry().lent(StepImages):
        for number in range(args.rounds):
            for label, policy in POLICIES.items():
                costs[label].append(milliseconds(policy, args, Path(folder) / str(number)))
    result = Result(args, f"{args.threads} threads")
    title = "ms a step of 64 images, by policy"
    result.table(title, *PARTS, "together", "together, of the first")
    together = {label: [sum(parts) for parts in rounds] for label, rounds in costs.items()}
    first = next(iter(together.values()))
    for label, rounds in costs.items():
        parts = [median(part, 2) for part in zip(*rounds, strict=True)]
        whole = together[label]
        growth = "" if whole is first else paired(whole, first)
        result.row(label, *parts, spread(whole), growth)


if __name__ == "__main__":
    main()
