"""What should a class get that tllm no longer teaches? Measured on the digits.

    python benchmarks/label_weight.py > benchmarks/results/label_weight.txt

For each seed: validation accuracy after the last epoch of the starter spec, with every class
taught, and under tllm with several label weights, fixed or steered, and first checks. No test
image is looked at. One thread; about fifteen minutes. The runs are kept in runs/label-weight: it
continues where it was cut off.
"""

from __future__ import annotations

import json
from typing import Any

from ruamel.yaml import YAML

import kdzoo
from kdzoo.extend.registry import registry

SEEDS = range(5)
POLICIES: list[Any] = ["all"] + [
    {"use": "tllm", "start_epoch": start, **weight}
    for start in (5, 10)
    for weight in (
        *({"balance": False, "label_weight": fixed} for fixed in (1, 3, 10)),
        {"balance": True},
    )
]


def validation_accuracy(run: kdzoo.Run) -> float:
    """After the last epoch, in percent."""
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").open()]
    return 100 * [line for line in lines if "epoch" in line][-1]["accuracy/validation"]


def main() -> None:
    """Print a row for each policy: a column a seed, and the mean."""
    starters = registry().find("dataset", "digits").starters
    starter = YAML(typ="safe", pure=True).load(starters["digits"])
    print(f"{'policy':<48}" + "".join(f"  seed {seed}" for seed in SEEDS) + "    mean  untaught")
    for policy in POLICIES:
        name = "all" if policy == "all" else " ".join(f"{k}={v}" for k, v in policy.items())[4:]
        runs = [
            kdzoo.run(
                {**starter, "seed": seed, "policy": policy, "threads": 1, "observers": ["jsonl"]},
                runs="runs/label-weight",
            )
            for seed in SEEDS
        ]
        accuracies = [validation_accuracy(run) for run in runs]
        untaught = " ".join("".join(run.report.untaught) or "-" for run in runs)
        columns = "".join(f"{accuracy:8.2f}" for accuracy in accuracies)
        print(
            f"{name:<48}{columns}{sum(accuracies) / len(accuracies):8.2f}  {untaught}", flush=True
        )


if __name__ == "__main__":
    main()
