"""Whether ClassBalanced keeps kdzoo's contract, and is the formula."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import kdzoo
import numpy as np
from kdzoo.testing import conformance

from class_balanced import ClassBalanced, class_balanced_weights


@conformance(ClassBalanced)
class TestClassBalanced:
    """Each check is a test."""

    def test_against_fractions(self) -> None:
        counts, beta = (500, 50, 7, 1), Fraction(99, 100)
        effective = [sum(beta**i for i in range(n)) for n in counts]  # (1 - beta^n) / (1 - beta)
        mean = sum(1 / n for n in effective) / len(counts)
        wanted = [float(1 / n / mean) for n in effective]
        weights = class_balanced_weights(np.array(counts, dtype=np.float64), 0.99)
        np.testing.assert_allclose(weights, wanted, rtol=1e-12)

    def test_a_class_without_samples(self) -> None:
        weights = class_balanced_weights(np.array([0.0, 4.0, 4.0]), 0.9)
        np.testing.assert_allclose(weights, 1)
        np.testing.assert_array_equal(class_balanced_weights(np.zeros(2), 0.9), 1)

    def test_beta_0_changes_nothing(self) -> None:
        np.testing.assert_array_equal(class_balanced_weights(np.array([9.0, 1.0]), 0.0), 1)


@conformance(ClassBalanced, entry={"beta": 0.9, "teacher": True})
class TestWithTheTeachersTerms:
    """Each check is a test."""


def test_the_spec_runs(tmp_path: Path) -> None:
    spec = Path(__file__).parents[1] / "digits.yaml"
    done = kdzoo.run(spec, ["train.epochs=1", "teacher.train.epochs=1"], runs=tmp_path)
    resolved = (done.directory / "spec.yaml").read_text()
    assert "use: class-balanced\n" in resolved
