"""The class policies: what they decide from which curves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kdzoo_plugins.policies.tllm import class_gap

import kdzoo
from kdzoo.extend.bases import ClassPolicy
from kdzoo.extend.registry import registry

CLASSES = tuple("abcdefghij")


def curves(student, baseline=None, teacher=None) -> kdzoo.TeachingCurves:
    student = np.asarray(student, dtype=float)
    ones = np.ones_like(student)
    return kdzoo.TeachingCurves(
        samples=10 * ones,
        student=student,
        teacher=ones if teacher is None else np.asarray(teacher, dtype=float),
        agreement=ones,
        divergence=ones,
        predicted=10 * ones,
        teacher_weight=ones,
        label_weight=ones,
        baseline=None if baseline is None else np.asarray(baseline, dtype=float),
    )


def policy(use: str, *, teacher: float = 0.9, label: float = 0.1, **params: object):
    if use == "tllm":
        params = {"start_epoch": 5, **params}
    made = registry().make(ClassPolicy.kind, use, params)
    made.setup(kdzoo.PolicySetting(CLASSES, True, teacher, label))
    return made


def decide(made: kdzoo.ClassPolicy, student, baseline) -> list[str]:
    """The classes that are no longer taught after each epoch of the curves has been shown."""
    for epoch in range(1, len(student) + 1):
        weights = made.update(curves(student[:epoch], baseline[:epoch]))
    return [name for name, weight in zip(CLASSES, weights.teacher, strict=True) if weight == 0]


def falling(classes: dict[str, float], epochs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A student 10 points behind its baseline everywhere, and further behind on some classes."""
    baseline = np.tile(np.linspace(0.9, 0.5, 10), (epochs, 1))
    student = baseline - 0.1
    for name, gap in classes.items():
        student[:, CLASSES.index(name)] -= gap
    return student, baseline


def test_tllm_names_the_classes_that_fall_behind_the_others() -> None:
    assert decide(policy("tllm"), *falling({"c": 0.2, "h": 0.1})) == ["c", "h"]


def test_tllm_leaves_hard_classes_and_a_weak_student_alone() -> None:
    assert decide(policy("tllm"), *falling({})) == []
    assert decide(policy("tllm"), *falling({"j": 0.049})) == []


def test_tllm_waits_for_its_first_epoch_and_for_patience() -> None:
    patient = {"start_epoch": 4, "patience": 3}
    assert decide(policy("tllm", **patient), *falling({"c": 0.2}, 5)) == []
    assert decide(policy("tllm", **patient), *falling({"c": 0.2}, 6)) == ["c"]


def test_tllm_counts_checks_in_a_row() -> None:
    student, baseline = falling({"c": 0.2}, 12)
    student[3::3] = falling({}, 12)[0][3::3]  # every third epoch shows nothing
    made = policy("tllm", start_epoch=1, patience=3, window=1)
    assert decide(made, student[1:], baseline[1:]) == []


def test_tllm_averages_over_its_window() -> None:
    student, baseline = falling({"c": 0.2}, 8)
    student[::2, 2] += 0.4  # above and below in turn: on average not behind
    assert decide(policy("tllm", patience=1, window=1), student, baseline) == ["c"]
    assert decide(policy("tllm", patience=1, window=4), student, baseline) == []


def test_tllm_stops_at_its_cap_with_the_worst() -> None:
    behind = {"b": 0.1, "d": 0.3, "e": 0.2}
    assert decide(policy("tllm", max_fraction=0.2), *falling(behind)) == ["d", "e"]
    assert decide(policy("tllm", max_fraction=0.29), *falling(behind)) == ["d", "e"]
    assert decide(policy("tllm", max_fraction=0.3), *falling(behind)) == ["b", "d", "e"]
    assert decide(policy("tllm", max_fraction=0.01), *falling(behind)) == ["d"]
    assert decide(policy("tllm", max_fraction=0.0), *falling(behind)) == []


def test_tllm_never_teaches_a_class_again() -> None:
    made = policy("tllm", start_epoch=1, patience=1, window=1)
    assert decide(made, *falling({"c": 0.2}, 2)) == ["c"]
    assert decide(made, *falling({}, 3)) == ["c"]


def test_tllm_gives_untaught_classes_their_weights() -> None:
    made = policy(
        "tllm", start_epoch=1, patience=1, teacher_weight=0.25, label_weight=3.0, window=1
    )
    weights = made.update(curves(*falling({"c": 0.2}, 1)))
    assert weights.teacher[2] == 0.25
    assert weights.label[2] == 3.0
    assert (np.delete(weights.teacher, 2) == 1).all()
    assert (np.delete(weights.label, 2) == 1).all()


def test_without_a_baseline_the_signal_is_what_the_teachers_accuracy_does_not_explain() -> None:
    teacher = np.linspace(1.0, 0.5, 10)
    student = 0.8 * teacher - 0.1
    student[4] -= 0.2
    gap = class_gap(curves([student] * 3, teacher=[teacher] * 3), window=2)
    assert np.argmin(gap) == 4
    assert gap[4] < -0.15
    assert np.abs(np.delete(gap, 4)).max() < 0.05
    # A teacher that knows everything explains nothing: what is left is the median.
    gap = class_gap(curves([student]), window=1)
    np.testing.assert_allclose(gap, student - np.median(student))


def test_classes_without_samples_are_left_alone() -> None:
    student, baseline = falling({"c": 0.2}, 4)
    student[:, 7] = np.nan
    gap = class_gap(curves(student, baseline), window=3)
    assert gap[7] == 0
    assert gap[2] == pytest.approx(-0.2)
    student[:-1, 7] = 0.3  # seen in some epochs of the window only
    assert np.isfinite(class_gap(curves(student, baseline), window=3)).all()


def test_epochs_that_the_baseline_has_not_are_no_gap() -> None:
    student, baseline = falling({}, 6)
    student += np.linspace(0, 0.3, 6)[:, None] * np.linspace(0, 1, 10)  # learning, unevenly
    baseline = student.copy()
    baseline[:4] = np.nan
    assert np.abs(class_gap(curves(student, baseline), window=5)).max() < 1e-12


def test_fixed_and_all() -> None:
    weights = policy("fixed", classes=["b", "j"], label_weight=2.0).initial(10)
    assert np.flatnonzero(weights.teacher == 0).tolist() == [1, 9]
    assert np.flatnonzero(weights.label == 2).tolist() == [1, 9]
    assert (policy("all").update(curves([[0.5] * 10])).teacher == 1).all()
    with pytest.raises(kdzoo.SpecError, match='there is no class "bb"; did you mean "b"'):
        policy("fixed", classes=["bb"])


@pytest.mark.parametrize(("use", "params"), [("tllm", {}), ("fixed", {"classes": ["a"]})])
def test_a_policy_about_a_teacher_needs_one_and_something_else(use: str, params: dict) -> None:
    with pytest.raises(kdzoo.SpecError, match="there are none"):
        policy(use, teacher=0.0, **params)
    with pytest.raises(kdzoo.SpecError, match="needs a label term"):
        policy(use, label=0.0, **params)


@pytest.mark.parametrize(
    ("teacher", "label", "factor"), [(0.9, 0.1, 10), (1.0, 1.0, 1), (100.0, 1.0, 1), (1.0, 2.0, 1)]
)
def test_an_untaught_class_weighs_as_in_the_baseline(
    teacher: float, label: float, factor: float
) -> None:
    terms = {"teacher": teacher, "label": label, "balance": False}
    weights = policy("fixed", **terms, classes=["b"]).initial(10)
    assert weights.label[1] == pytest.approx(factor)
    assert weights.label[0] == 1
    half = policy("fixed", **terms, classes=["b"], teacher_weight=0.5)
    assert half.initial(10).label[1] == pytest.approx((1 + factor) / 2)
    made = policy("tllm", **terms, patience=1, window=1, start_epoch=1)
    assert made.update(curves(*falling({"c": 0.2}, 1))).label[2] == pytest.approx(factor)


def answered(shares: list[float]) -> kdzoo.TeachingCurves:
    """An epoch in which each class was answered so many times as often as it came."""
    shown = curves([[0.5] * 10], [[0.5] * 10])
    return dataclasses.replace(shown, predicted=shown.samples * np.array([shares]))


def test_balance_steers_an_untaught_class_to_its_share() -> None:
    made = policy("fixed", classes=["b", "c", "d", "e"])
    assert (made.initial(10).label == 1).all()
    shares = [0.8, 0.9, 1.1, 1.0, 0.0, *[1.0] * 5]
    weights = made.update(answered(shares))
    assert (weights.teacher == [1, 0, 0, 0, 0, 1, 1, 1, 1, 1]).all()
    factors = weights.label
    assert factors[1] == pytest.approx(0.9**-5)
    assert factors[2] == pytest.approx(1.1**-5)
    assert (factors[[0, 3, 5]] == 1).all()  # a class that is taught keeps its weight
    assert factors[4] == 100  # ten times what it weighs in the baseline, and no more
    assert made.update(answered(shares)).label[1] == pytest.approx(0.9**-10)
    for _ in range(40):
        factors = made.update(answered([2.0] * 10)).label
    assert (factors[1:5] == 0.1).all()


def test_balance_begins_with_the_label_weight_and_leaves_absent_classes_alone() -> None:
    made = policy("fixed", classes=["b", "c"], label_weight=3.0)
    assert made.initial(10).label[1] == 3
    absent = answered([1.0, 0.9, 0.0, *[1.0] * 7])
    absent.samples[0, 2] = 0
    factors = made.update(absent).label
    assert factors[1] == pytest.approx(3 * 0.9**-5)
    assert factors[2] == 3


def test_tllm_steers_a_class_from_the_epoch_after_it_was_stopped() -> None:
    made = policy("tllm", start_epoch=1, patience=1, window=1)
    behind = dataclasses.replace(
        curves(*falling({"c": 0.2}, 1)), predicted=answered([0.9] * 10).predicted
    )
    assert made.update(behind).label[2] == 1
    again = policy("tllm", start_epoch=1, patience=1, window=1)
    again.load_state_dict(made.state_dict())
    for each in (made, again):
        assert each.update(behind).label[2] == pytest.approx(0.9**-5)
        assert each.update(behind).label[2] == pytest.approx(0.9**-10)
