"""KD held against golden values, an independent oracle, and its own mathematics."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdzoo_plugins.losses.kd import kd_loss

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("temperature", [1, 4])
def test_golden_values(temperature: int) -> None:
    golden = np.load(GOLDEN / f"kd_T{temperature}.npz")
    student = torch.from_numpy(golden["student_logits"]).requires_grad_()
    loss = kd_loss(student, torch.from_numpy(golden["teacher_logits"]), temperature).mean()
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden["loss"], rtol=1e-9)
    np.testing.assert_allclose(student.grad, golden["grad_student_logits"], rtol=1e-9, atol=1e-15)


def oracle(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 KL, term by term, with the standard library alone."""

    def soft(logits: list[float]) -> list[float]:
        top = max(logits)
        powers = [math.exp((z - top) / temperature) for z in logits]
        return [p / math.fsum(powers) for p in powers]

    terms = zip(soft(teacher), soft(student), strict=True)
    return temperature**2 * math.fsum(t * (math.log(t) - math.log(s)) for t, s in terms)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=8),
    st.floats(0.5, 20),
)
def test_the_oracle(pairs: list[tuple[float, float]], temperature: float) -> None:
    student, teacher = map(list, zip(*pairs, strict=True))
    ours = kd_loss(
        *(torch.tensor([z], dtype=torch.float64) for z in (student, teacher)), temperature
    )
    assert ours.item() == pytest.approx(oracle(student, teacher, temperature), rel=1e-9, abs=1e-10)


def logits(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def test_gradcheck() -> None:
    student = logits(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, logits(4, 5, 1), 3.0), student)


def test_the_gradient_at_high_temperature_is_that_of_matching_logits() -> None:
    """Hinton et al., equation 4: (z_s - z_t) / C for centred logits."""
    student, teacher = logits(6, 10).requires_grad_(), logits(6, 10, 1)
    kd_loss(student, teacher, 1e5).sum().backward()
    difference = student.detach() - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / 10
    torch.testing.assert_close(student.grad, limit, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_at_extremes(dtype: torch.dtype) -> None:
    student = torch.full((2, 5), -1e4)
    student[:, 0] = 1e4
    student.requires_grad_()
    teacher = student.detach().flip(1)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = kd_loss(student, teacher, 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_number_of_classes_does_not_scale_it(classes: int) -> None:
    """Summed over classes, not averaged: a one-hot teacher gives the cross entropy at T = 1."""
    student = logits(4, classes)
    targets = torch.tensor([0, 1, 0, 1])
    teacher = 1e3 * torch.nn.functional.one_hot(targets, classes).double()
    wanted = torch.nn.functional.cross_entropy(student, targets, reduction="none")
    torch.testing.assert_close(kd_loss(student, teacher, 1.0), wanted)
