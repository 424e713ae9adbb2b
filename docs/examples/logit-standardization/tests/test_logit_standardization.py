"""Whether LogitStandardization keeps kdzoo's contract, and is the formula."""

from __future__ import annotations

from pathlib import Path

import kdzoo
import numpy as np
import numpy.typing as npt
import pytest
import torch
from kdzoo.testing import conformance

from logit_standardization import LogitStandardization, logit_standardization_loss

Floats = npt.NDArray[np.float64]


def formula(student: Floats, teacher: Floats, temperature: float) -> float:
    """The paper's algorithm for one sample, in double precision and without torch."""
    q, p = (
        np.exp((z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean()) / temperature)
        for z in (student, teacher)
    )
    q, p = q / q.sum(), p / p.sum()
    return float(temperature**2 * (p * np.log(p / q)).sum())


@conformance(LogitStandardization)
class TestLogitStandardization:
    """Each check is a test."""

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
    def test_against_the_paper(self, temperature: float) -> None:
        student, teacher = 5 * torch.randn(2, 6, 10, dtype=torch.float64)
        rows = logit_standardization_loss(student, teacher, temperature)
        pairs = zip(student.numpy(), teacher.numpy(), strict=True)
        wanted = [formula(s, t, temperature) for s, t in pairs]
        np.testing.assert_allclose(rows.numpy(), wanted, rtol=1e-6)

    def test_scale_and_shift_of_either_network_do_not_matter(self) -> None:
        student, teacher = torch.randn(2, 6, 10, dtype=torch.float64)
        rows = logit_standardization_loss(student, teacher, 2.0)
        other = logit_standardization_loss(3 * student - 1, 0.5 * teacher + 7, 2.0)
        np.testing.assert_allclose(rows.numpy(), other.numpy(), rtol=1e-5)

    def test_gradient(self) -> None:
        student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: logit_standardization_loss(s, teacher, 2.0), (student,)
        )


def test_the_spec_runs(tmp_path: Path) -> None:
    spec = Path(__file__).parents[1] / "digits.yaml"
    done = kdzoo.run(spec, ["train.epochs=1", "teacher.train.epochs=1"], runs=tmp_path)
    resolved = (done.directory / "spec.yaml").read_text()
    assert "use: logit-standardization\n" in resolved
