"""Which of the conformance kit's checks fail for a component that is broken on purpose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdzoo.extend.component import Component
from kdzoo.testing import run_checks
from kdzoo.testing.checks import Checks


@torch.library.custom_op(
    "kdzoo_tests::by_columns", mutates_args=(), schema="(Tensor values) -> Tensor"
)
def by_columns(values: Tensor) -> Tensor:
    """A copy that lies column by column, and is said to lie row by row."""
    return values.t().clone(memory_format=torch.contiguous_format).t()


@by_columns.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def caught(component: type[Component], **options: Any) -> set[str]:
    """The names of the checks that fail."""
    results = run_checks(component, **options)
    assert results
    return {result.check for result in results if result.status == "failed"}


def quick(checks: type[Checks[Any]], but: set[str]) -> list[str]:
    """The names of all checks that every mutant is held against."""
    return [
        name
        for name, check in checks.methods()
        if not getattr(check, "slow", False) and name not in but
    ]
