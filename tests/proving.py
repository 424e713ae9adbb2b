"""Which of the conformance kit's checks fail for a component that is broken on purpose."""

from __future__ import annotations

from typing import Any

from kdzoo.extend.component import Component
from kdzoo.testing import run_checks
from kdzoo.testing.checks import Checks


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
