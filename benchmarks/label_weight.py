"""What should a class get that is no longer taught? Measured on the digits.

    python benchmarks/label_weight.py

For each seed: validation accuracy after the last epoch of the starter spec, with every class
taught, and with two of them untaught from the first epoch on, under several label weights, fixed or
steered. Once these are the two that a distilled student finds hardest, once two that it finds easy;
which, was known from other runs. No test image is looked at. One thread; about fifteen minutes. The
runs are kept in runs/label-weight: it continues where it was cut off.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from result import Cell, Result, add_output
from ruamel.yaml import YAML

import kdzoo
from kdzoo.extend.registry import registry

SEEDS = range(5)
PAIRS = {"hard": ("8", "9"), "easy": ("0", "6")}
GIVEN: dict[str, dict[str, Any]] = {
    "as they are": {"balance": False, "label_weight": 1},
    "3 times": {"balance": False, "label_weight": 3},
    "as in the baseline, 10 times": {"balance": False, "label_weight": 10},
    "steered": {"balance": True},
}


def accuracies(policy: Any, seed: int) -> dict[str, float]:
    """Of each class, after the last epoch, on the validation images, in percent."""
    starters = registry().find("dataset", "digits").starters
    starter = YAML(typ="safe", pure=True).load(starters["digits"])
    spec = {**starter, "seed": seed, "policy": policy, "threads": 1, "observers": ["jsonl"]}
    run = kdzoo.run(spec, runs="runs/label-weight")
    names, curves = kdzoo.read_curves(run.directory / "classes.csv")
    assert curves.validation is not None
    return dict(zip(names, 100 * curves.validation.student[-1], strict=True))


def mean(values: list[float]) -> Cell:
    """Over seeds."""
    return Cell(f"{np.mean(values):.2f}", tuple(values))


def main() -> None:
    """A table for each pair of classes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_output(parser, "label_weight")
    result = Result(parser.parse_args(), "1 thread")
    for kind, pair in PAIRS.items():
        result.table(
            f"{' and '.join(pair)} untaught ({kind}); validation accuracy, mean over seeds",
            *("all classes", "the two", "the others"),
        )
        policies: dict[str, Any] = {"every class is taught": "all"}
        for name, given in GIVEN.items():
            policies[name] = {"use": "fixed", "classes": list(pair), **given}
        for name, policy in policies.items():
            runs = [accuracies(policy, seed) for seed in SEEDS]
            two = [float(np.mean([run[each] for each in pair])) for run in runs]
            others = [
                float(np.mean([run[each] for each in run if each not in pair])) for run in runs
            ]
            result.row(
                name,
                mean([float(np.mean(list(run.values()))) for run in runs]),
                mean(two),
                mean(others),
            )


if __name__ == "__main__":
    main()
