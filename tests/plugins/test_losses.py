"""Every bundled loss held against golden values, an oracle, and what it declares of itself."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdzoo_plugins.losses.dkd import dkd_loss
from kdzoo_plugins.losses.fitnet import hint_loss
from kdzoo_plugins.losses.kd import kd_loss
from torch import Tensor, nn

import kdzoo
from kdzoo.extend.bases import Loss
from kdzoo.extend.registry import registry

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(
    name
    for name in registry().names(Loss.kind)
    if registry().owner(registry().find(Loss.kind, name)).distribution == "kdzoo"
)
CLASSES, ROWS, SAMPLES = 5, 6, 30


def test_the_losses_of_the_issue_are_all_here() -> None:
    assert {"ce", "kd", "dkd", "fitnet", "crd"} <= set(NAMES)


# --- golden values and oracles


@pytest.mark.parametrize("beta", [2, 8])
def test_dkd_golden_values(beta: int) -> None:
    golden = np.load(GOLDEN / f"dkd_a1_b{beta}_T4.npz")
    student = torch.from_numpy(golden["student_logits"]).requires_grad_()
    teacher, targets = map(torch.from_numpy, (golden["teacher_logits"], golden["targets"]))
    loss = dkd_loss(student, teacher, targets, 1, beta, 4).mean()
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden["loss"], rtol=1e-9)
    np.testing.assert_allclose(student.grad, golden["grad_student_logits"], rtol=1e-9, atol=1e-15)


def test_fitnet_golden_values() -> None:
    golden = np.load(GOLDEN / "fitnet_mse.npz")
    student = torch.from_numpy(golden["student_feature"]).requires_grad_()
    loss = hint_loss(student, torch.from_numpy(golden["teacher_feature"])).mean()
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden["loss"], rtol=1e-9)
    np.testing.assert_allclose(student.grad, golden["grad_student_feature"], rtol=1e-9)


def dkd_oracle(
    s: list[float], t: list[float], target: int, alpha: float, beta: float, temperature: float
) -> float:
    """Equation 7 of the paper, in probabilities, with the standard library alone."""

    def soft(logits: list[float]) -> list[float]:
        top = max(logits)
        powers = [math.exp((z - top) / temperature) for z in logits]
        return [p / math.fsum(powers) for p in powers]

    def kl(p: list[float], q: list[float]) -> float:
        return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))

    def binary(p: list[float]) -> list[float]:
        return [p[target], math.fsum(v for i, v in enumerate(p) if i != target)]

    def others(logits: list[float]) -> list[float]:
        return soft([z for i, z in enumerate(logits) if i != target])

    tckd = kl(binary(soft(t)), binary(soft(s)))
    return temperature**2 * (alpha * tckd + beta * kl(others(t), others(s)))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=8),
    st.integers(0, 7),
    st.floats(0, 3),
    st.floats(0, 10),
    st.floats(0.8, 20),
)
def test_dkd_oracle(
    pairs: list[tuple[float, float]], target: int, alpha: float, beta: float, temperature: float
) -> None:
    s, t = map(list, zip(*pairs, strict=True))
    target %= len(pairs)
    wide = [torch.tensor([z], dtype=torch.float64) for z in (s, t)]
    ours = dkd_loss(*wide, torch.tensor([target]), alpha, beta, temperature).item()
    wanted = dkd_oracle(s, t, target, alpha, beta, temperature)
    assert ours == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_dkd_agrees_with_probability_space_and_goes_on_where_that_overflows() -> None:
    """The loss in probability space, in single precision, ends at a gap of the logits of 104 T."""

    def as_probabilities(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        p, q = (z.softmax(1).gather(1, target[:, None])[:, 0] for z in (teacher, student))
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

    target = torch.tensor([0])
    for gap, finite in ((10.0, True), (110.0, False)):
        student = torch.tensor([[gap, 0.0, 0.0]])
        teacher = torch.tensor([[1.0, 0.0, 0.0]])
        there = as_probabilities(student, teacher, target)
        here = dkd_loss(student, teacher, target, 1, 0, 1)
        assert bool(there.isfinite().all()) is finite
        assert here.isfinite().all()
        if finite:
            torch.testing.assert_close(here, there, rtol=1e-3, atol=0)


def test_dkd_of_two_classes_has_nothing_among_the_others() -> None:
    student, teacher = torch.randn(4, 2), torch.randn(4, 2)
    targets = torch.tensor([0, 1, 0, 1])
    assert torch.equal(
        dkd_loss(student, teacher, targets, 1, 8, 4), dkd_loss(student, teacher, targets, 1, 0, 4)
    )
    torch.testing.assert_close(
        dkd_loss(student, teacher, targets, 1, 0, 4), kd_loss(student, teacher, 4)
    )


def test_dkd_with_the_teachers_own_weight_is_kd() -> None:
    """KD = TCKD + (1 - p_target of the teacher) NCKD, equation 6."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, ROWS, 7, generator=generator, dtype=torch.float64)
    targets = torch.arange(ROWS) % 7
    rest = 1 - (teacher / 3).softmax(1).gather(1, targets[:, None])[:, 0]
    decoupled = dkd_loss(student, teacher, targets, 1, 0, 3) + rest * dkd_loss(
        student, teacher, targets, 0, 1, 3
    )
    torch.testing.assert_close(decoupled, kd_loss(student, teacher, 3), rtol=1e-10, atol=0)


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_dkd_is_a_sum_over_classes(classes: int) -> None:
    """Against a one-hot teacher TCKD is the cross entropy, whatever the number of classes."""
    student = torch.randn(4, classes, dtype=torch.float64)
    targets = torch.arange(4) % classes
    teacher = 1e3 * nn.functional.one_hot(targets, classes).double()
    wanted = nn.functional.cross_entropy(student, targets, reduction="none")
    torch.testing.assert_close(dkd_loss(student, teacher, targets, 1, 0, 1), wanted)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    targets = torch.arange(4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, targets, 1, 8, 4), student)
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher), student)


# --- every loss, as the engine uses it


class Given:
    """A loss set up for random outputs in which nothing is special, and those outputs."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        component = registry().find(Loss.kind, name)
        params: dict[str, Any] = {"negatives": 12} if name == "crd" else {}
        (term,) = kdzoo.terms([{"use": name, **params}])
        self.loss: Loss = term.loss
        assert type(self.loss) is component
        self.targets_of_all = torch.arange(SAMPLES) % CLASSES
        self.indices = torch.randperm(SAMPLES)[:ROWS]
        self.targets = self.targets_of_all[self.indices]
        self.student = self._outputs("student", 6, dtype)
        self.teacher = self._outputs("teacher", 6, dtype)
        shapes = [
            kdzoo.Shapes(
                logits=(CLASSES,), features={k: tuple(v.shape[1:]) for k, v in o.features.items()}
            )
            for o in (self.student, self.teacher)
        ]
        self.loss.targets = self.targets_of_all
        self.loss.setup(*shapes, CLASSES, SAMPLES)
        self.loss.to(dtype)

    def _outputs(self, role: str, channels: int, dtype: torch.dtype) -> kdzoo.Outputs:
        def rand(*shape: int) -> Tensor:
            value = 3 * torch.randn(ROWS, *shape, dtype=dtype)
            return value.requires_grad_() if role == "student" else value

        features = {
            getattr(pair, role): rand(channels)
            if getattr(pair, role) == "penultimate"
            else rand(channels, 4, 4)
            for pair in self.loss.layers
        }
        return kdzoo.Outputs(rand(CLASSES), features)

    def batch(self, order: Tensor | None = None) -> kdzoo.Batch:
        order = torch.arange(ROWS) if order is None else order
        return kdzoo.Batch(
            inputs=torch.zeros(len(order), 3, 2, 2),
            targets=self.targets[order],
            indices=self.indices[order],
            weights=torch.ones(len(order)),
            progress=0.0,
        )

    def rows(
        self,
        order: Tensor | None = None,
        student: kdzoo.Outputs | None = None,
        teacher: kdzoo.Outputs | None = None,
    ) -> Tensor:
        order = torch.arange(ROWS) if order is None else order
        torch.manual_seed(0)  # what is drawn is the same, so that rows can be compared
        return self.loss(
            taken(student or self.student, order),
            taken(teacher or self.teacher, order),
            self.batch(order),
        )


def taken(outputs: kdzoo.Outputs, order: Tensor) -> kdzoo.Outputs:
    return mapped(outputs, lambda value: value[order])


def mapped(outputs: kdzoo.Outputs, change: Any) -> kdzoo.Outputs:
    return kdzoo.Outputs(
        change(outputs.logits), {k: change(v) for k, v in outputs.features.items()}
    )


def leaves(outputs: kdzoo.Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.features.values()]


@pytest.mark.parametrize("name", NAMES)
def test_one_value_a_sample_with_a_gradient_for_the_student_alone(name: str) -> None:
    given = Given(name, torch.float32)
    student = mapped(given.student, lambda value: value.detach().requires_grad_())
    teacher = mapped(given.teacher, lambda value: value.requires_grad_())
    rows = given.rows(student=student, teacher=mapped(teacher, Tensor.detach))
    assert rows.shape == (ROWS,)
    assert rows.dtype == torch.float32
    rows.sum().backward()
    gradients = [value.grad for value in leaves(student) if value.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(value.grad is None for value in leaves(teacher))
    for parameter in given.loss.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_declared_invariances(name: str) -> None:
    """In eval mode: batch norm of an adapter, and a memory, know of the batch in train mode."""
    given = Given(name)
    given.loss.eval()
    if name == "crd":
        given.loss.contrast.normalizers.fill_(100.0)
    plain = given.rows()
    declared = given.loss.invariances
    close = {"rtol": 1e-10, "atol": 1e-12}
    if "permutation" in declared:
        order = torch.tensor([3, 1, 0, 5, 2, 4])
        torch.testing.assert_close(given.rows(order), plain[order], **close)
    if "duplication" in declared:
        twice = torch.arange(2 * ROWS) % ROWS
        torch.testing.assert_close(given.rows(twice), plain[twice], **close)
    if "shift" in declared:
        constants = torch.linspace(-50, 50, ROWS, dtype=torch.float64)[:, None]
        student = kdzoo.Outputs(given.student.logits + constants, given.student.features)
        teacher = kdzoo.Outputs(given.teacher.logits - constants, given.teacher.features)
        torch.testing.assert_close(given.rows(student=student, teacher=teacher), plain, **close)
    if "identity" in declared:
        equal = mapped(given.teacher, Tensor.clone)
        for pair in given.loss.layers:
            assert pair.student == pair.teacher
        given.loss.__dict__["_modules"].pop("adapters", None)
        given.loss.adapters = nn.ModuleList(nn.Identity() for _ in given.loss.layers)
        assert given.rows(student=equal).abs().max() < 1e-12
        assert (plain > 1e-3).all()


def test_what_the_losses_declare() -> None:
    declared = {name: registry().find(Loss.kind, name).invariances for name in NAMES}
    assert declared["kd"] == declared["dkd"] == {"identity", "shift", "duplication", "permutation"}
    assert declared["ce"] == {"shift", "duplication", "permutation"}
    assert declared["fitnet"] == {"identity", "duplication", "permutation"}
    assert declared["crd"] == {"duplication", "permutation"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extremes(name: str, dtype: torch.dtype) -> None:
    given = Given(name, torch.float32)
    sign = torch.where(torch.arange(CLASSES) % 2 == 0, 1e4, -1e4).expand(ROWS, -1)
    large = 50.0 if dtype == torch.float16 else 1e4
    student = kdzoo.Outputs(
        sign.clone().to(dtype).requires_grad_(),
        {
            k: (large * v.detach()).to(dtype).requires_grad_()
            for k, v in given.student.features.items()
        },
    )
    teacher = kdzoo.Outputs(
        -sign.to(dtype), {k: (large * v).to(dtype) for k, v in given.teacher.features.items()}
    )
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        rows = given.rows(student=student, teacher=teacher)
        assert rows.dtype == torch.float32
        rows.mean().backward()
    assert rows.isfinite().all()
    reached = [v.grad for v in leaves(student) if v.grad is not None]
    assert reached
    for gradient in reached:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ce", "kd", "dkd", "fitnet"])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    given = Given(name, torch.float32)
    given.loss.adapters = nn.ModuleList(nn.Identity() for _ in given.loss.layers)
    halves = [mapped(o, lambda value: value.to(dtype)) for o in (given.student, given.teacher)]
    singles = [mapped(o, Tensor.float) for o in halves]
    rows = given.rows(student=halves[0], teacher=halves[1])
    assert torch.equal(rows, given.rows(student=singles[0], teacher=singles[1]))


@pytest.mark.parametrize("name", NAMES)
def test_it_survives_a_copy_and_its_state(name: str) -> None:
    given = Given(name)
    given.rows().sum().backward()  # whatever training changes has changed
    copied = copy.deepcopy(given)
    fresh = Given(name)
    fresh.loss.load_state_dict(given.loss.state_dict())
    given.loss.eval()
    copied.loss.eval()
    fresh.loss.eval()
    assert torch.equal(given.rows(), copied.rows())
    assert torch.equal(given.rows(), fresh.rows())


def test_published_defaults() -> None:
    def read(*names: str) -> dict[str, tuple[float, int, dict[str, Any]]]:
        spec = kdzoo.read_spec(
            {
                "name": "x",
                "data": "digits",
                "teacher": {"use": "mlp", "train": {"epochs": 1}},
                "student": "mlp",
                "train": {"epochs": 1},
                "losses": list(names),
            }
        )
        return {e.id: (e.weight, e.warmup_epochs, e.params) for e in spec.stages[0].losses}

    assert read("ce", "kd") == {"ce": (0.1, 0, {}), "kd": (0.9, 0, {"temperature": 4.0})}
    dkd = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}
    assert read("ce", "dkd") == {"ce": (1.0, 0, {}), "dkd": (1.0, 20, dkd)}
    assert read("ce", "fitnet") == {"ce": (1.0, 0, {}), "fitnet": (100.0, 0, {})}
    crd = {
        "dimensions": 128,
        "negatives": 16384,
        "temperature": 0.07,
        "momentum": 0.5,
        "mode": "exact",
    }
    assert read("ce", "crd") == {"ce": (1.0, 0, {}), "crd": (0.8, 0, crd)}
    assert read("ce") == {"ce": (1.0, 0, {})}
    assert read("ce", "kd", "crd")["ce"] == (1.0, 0, {})  # published with 0.1 and with 1


def test_dkd_warms_up_from_the_first_epoch() -> None:
    """min(epoch / 20, 1) with epochs counted from 1."""
    (term,) = kdzoo.terms(["dkd"])
    assert [term.factor(epoch) for epoch in (0.0, 0.99, 1.0, 18.5, 19.0, 200.0)] == pytest.approx(
        [0.05, 0.05, 0.1, 0.95, 1.0, 1.0]
    )


def test_a_label_losss_own_weight_counts_beside_what_the_teachers_term_says() -> None:
    class Smooth(kdzoo.Loss):
        """A label loss that was published with a weight of its own."""

        name = "half-label"
        guidance = "label"
        default_weight = 0.5

        def forward(
            self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch
        ) -> Tensor:
            return student.logits.sum(1)

    try:
        kdzoo.register(Smooth)
        for beside, wanted in (("dkd", 0.5), ("kd", 0.05)):
            weights = {term.id: term.weight for term in kdzoo.terms(["half-label", beside])}
            assert weights["half-label"] == pytest.approx(wanted)
    finally:
        registry.cache_clear()
