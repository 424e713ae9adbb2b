"""Every bundled loss held against golden values, an oracle, and what was published of it."""

from __future__ import annotations

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
CLASSES, ROWS = 5, 6


def batch_of(rows: int) -> kdzoo.Batch:
    targets = torch.arange(rows) % CLASSES
    return kdzoo.Batch(torch.zeros(rows, 3, 2, 2), targets, targets, torch.ones(rows), progress=0.0)


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


def hint_oracle(student: Any, teacher: Any) -> Any:
    """(B,) out of (B, channels, height, width): equation 3 of the paper, number by number."""
    return np.array(
        [
            math.fsum((a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)) / s.size
            for s, t in zip(student, teacher, strict=True)
        ]
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 3), (4, 3, 5, 2), (2, 1, 1, 1)])
def test_hint_oracle(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(len(shape))
    student, teacher = draw.normal(0, 3, (2, *shape))
    ours = hint_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    np.testing.assert_allclose(ours, hint_oracle(student, teacher), rtol=1e-12)


def regressed(feature: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
    """The regressor's convolution, number by number, then batch norm of the batch and ReLU."""
    padded = np.pad(feature, [(0, 0), (0, 0), *[(padding, padding)] * 2])
    (height, width), (rows, columns) = weight.shape[2:], padded.shape[2:]
    size = (rows - height) // stride + 1, (columns - width) // stride + 1
    mapped = np.empty((len(feature), len(weight), *size))
    for b, out, y, x in np.ndindex(*mapped.shape):
        top, left = y * stride, x * stride
        patch = padded[b, :, top : top + height, left : left + width]
        mapped[b, out, y, x] = bias[out] + math.fsum((patch * weight[out]).flat)
    mean, variance = (moment(mapped, axis=(0, 2, 3), keepdims=True) for moment in (np.mean, np.var))
    return np.maximum((mapped - mean) / np.sqrt(variance + 1e-5), 0)


def spread_out(feature: Any, weight: Any) -> tuple[Any, Any]:
    """A transposed convolution with stride 2, kernel 4 and padding 1 as a plain one: zeros between
    the numbers, and a kernel that is turned round."""
    batch, channels, height, width = feature.shape
    wide = np.zeros((batch, channels, 2 * height - 1, 2 * width - 1))
    wide[:, :, ::2, ::2] = feature
    return wide, weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]


def test_fitnet_oracle() -> None:
    """Three pairs of layers, each with a regressor of another kind, in train mode."""
    student_shapes, teacher_shapes = (
        [(2, 8, 6), (3, 4, 4), (4, 3, 2)],
        [(3, 4, 3), (2, 2, 3), (2, 6, 4)],
    )
    pairs = [{"student": number, "teacher": number} for number in range(3)]
    (term,) = kdzoo.terms([{"use": "fitnet", "layers": pairs}])
    loss = term.loss
    torch.manual_seed(0)
    loss.setup(
        *(
            kdzoo.Shapes((CLASSES,), dict(enumerate(shapes)))
            for shapes in (student_shapes, teacher_shapes)
        ),
        CLASSES,
        ROWS,
    )
    loss.double().train()
    student, teacher = (
        {i: torch.randn(ROWS, *shape, dtype=torch.float64) for i, shape in enumerate(shapes)}
        for shapes in (student_shapes, teacher_shapes)
    )
    wanted = np.zeros(ROWS)
    for number, (adapter, stride, padding) in enumerate(
        zip(loss.adapters, (2, 1, 1), (1, 0, 2), strict=True)
    ):
        convolution = next(adapter.children())[0]
        weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
        feature = student[number].numpy()
        if isinstance(convolution, nn.ConvTranspose2d):
            feature, weight = spread_out(feature, weight)
        hint = regressed(feature, weight, bias, stride, padding)
        wanted += hint_oracle(hint, teacher[number].numpy())
    logits = torch.zeros(ROWS, CLASSES)
    ours = loss(kdzoo.Outputs(logits, student), kdzoo.Outputs(logits, teacher), batch_of(ROWS))
    np.testing.assert_allclose(ours.detach(), wanted, rtol=1e-9)


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


def dkd_in_probabilities(
    student: Tensor, teacher: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """DKD of class 0 as the public implementation writes it: softmax first, logarithms last."""
    (q, p), (others_q, others_p) = (
        [(z / temperature).softmax(1) for z in logits]
        for logits in ((student, teacher), (student[:, 1:], teacher[:, 1:]))
    )

    def kl(wanted: Tensor, got: Tensor) -> Tensor:
        return (wanted * (wanted.log() - got.log())).sum(1)

    q, p = (torch.stack([soft[:, 0], soft[:, 1:].sum(1)], 1) for soft in (q, p))
    return temperature**2 * (alpha * kl(p, q) + beta * kl(others_p, others_q))


def apart(gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of a student that is so sure of class 0, and of a teacher that is not."""
    student = torch.tensor([[gap, 0.25, -0.5, 0.0]], dtype=dtype, requires_grad=True)
    return student, torch.tensor([[1.0, 0.5, -1.0, 0.25]], dtype=dtype)


def value_and_gradient(loss: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("gap", [0.0, 1.0, 10.0, 103.0, 105.0, 600.0])
def test_dkd_is_what_probability_space_gives_to_the_last_digits(
    gap: float, temperature: float
) -> None:
    student, teacher = apart(gap * temperature, torch.float64)
    arguments = (1.0, 8.0, temperature)
    there = dkd_in_probabilities(student, teacher, *arguments)
    here = dkd_loss(student, teacher, torch.tensor([0]), *arguments)
    for ours, theirs in zip(
        value_and_gradient(here, student), value_and_gradient(there, student), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("gap", "finite"), [(103.0, True), (105.0, False), (1e4, False)])
def test_dkd_in_single_precision_goes_on_where_probability_space_ends(
    gap: float, finite: bool, temperature: float
) -> None:
    """The others' probabilities are 0 there once the gap of the logits passes 104 T."""
    single, double = (apart(gap * temperature, dtype) for dtype in (torch.float32, torch.float64))
    there = dkd_in_probabilities(*single, 1.0, 8.0, temperature)
    assert bool(there.isfinite().all()) is finite
    ours, exact = (
        value_and_gradient(dkd_loss(*logits, torch.tensor([0]), 1.0, 8.0, temperature), logits[0])
        for logits in (single, double)
    )
    for ours_one, exact_one in zip(ours, exact, strict=True):
        torch.testing.assert_close(ours_one.double(), exact_one, rtol=1e-6, atol=1e-7)


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


# --- every loss, as the engine uses it; test_conformance.py has what is asked of anybody's


def test_what_the_losses_declare() -> None:
    declared = {name: registry().find(Loss.kind, name).invariances for name in NAMES}
    assert declared["kd"] == declared["dkd"] == {"identity", "shift", "duplication", "permutation"}
    assert declared["ce"] == {"shift", "duplication", "permutation"}
    assert declared["fitnet"] == {"identity", "duplication", "permutation"}
    assert declared["crd"] == {"duplication", "permutation"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ce", "kd", "dkd", "fitnet"])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    (term,) = kdzoo.terms([name])
    loss = term.loss
    loss.adapters = nn.ModuleList(nn.Identity() for _ in loss.layers)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [3 * torch.randn(ROWS, *shape, generator=generator) for shape in ((CLASSES,), (6, 4, 4))]
        for _ in range(2)
    )

    def rows(*types: torch.dtype) -> Tensor:
        outputs = []
        for logits, feature in (student, teacher):
            for kind in types:
                logits, feature = logits.to(kind), feature.to(kind)
            outputs.append(kdzoo.Outputs(logits, {pair.student: feature for pair in loss.layers}))
        return loss(*outputs, batch_of(ROWS))

    assert torch.equal(rows(dtype), rows(dtype, torch.float32))


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


def test_the_functions_refuse_what_they_would_stretch() -> None:
    logits, targets = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    for loss in (
        lambda s, t, temperature=4.0: kd_loss(s, t, temperature),
        lambda s, t, temperature=4.0: dkd_loss(s, t, targets, 1.0, 8.0, temperature),
    ):
        with pytest.raises(ValueError, match=r"the student's is \(4, 5\) and the teacher's \(1, 5"):
            loss(logits, logits[:1])
        for temperature in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="it must be finite and above 0"):
                loss(logits, logits, temperature)
        for other in (logits[0], logits[..., None]):
            with pytest.raises(ValueError, match=r"the logits are .*; they must be \(B, C\)"):
                loss(other, other)
    with pytest.raises(ValueError, match="they must have one shape"):
        hint_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"the features are \(3,\); they must be \(B, ...\)"):
        hint_loss(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("classes", "targets", "message"),
    [
        (5, torch.tensor([0, 1]), r"int64 of shape \(2,\); they must be int64 \(4,\), one class"),
        (5, torch.zeros(4, 1, dtype=torch.int64), r"int64 of shape \(4, 1\)"),
        (5, torch.eye(5, dtype=torch.int64)[:4], r"int64 of shape \(4, 5\)"),
        (5, torch.zeros(4), r"float32 of shape \(4,\); they must be int64"),
        (1, torch.zeros(4, dtype=torch.int64), r"the logits are \(4, 1\); two classes at least"),
    ],
)
def test_dkd_refuses_targets_that_are_not_one_class_per_sample(
    classes: int, targets: Tensor, message: str
) -> None:
    logits = torch.randn(4, classes)
    with pytest.raises(ValueError, match=message):
        dkd_loss(logits, logits, targets, 1.0, 8.0, 4.0)


@pytest.mark.parametrize("target", [-1, 5])
def test_dkd_has_no_value_for_a_class_that_is_not_there(target: int) -> None:
    logits = torch.randn(1, 5)
    with pytest.raises(RuntimeError, match=f"index {target} is out of bounds"):
        dkd_loss(logits, logits, torch.tensor([target]), 1.0, 8.0, 4.0)
