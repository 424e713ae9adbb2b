"""The class policies: what they decide from which curves."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from kdzoo_plugins.policies._finding import epochs_since_restart
from kdzoo_plugins.policies._sequential import SequentialTest
from kdzoo_plugins.policies._signals import read_signal
from made import earlier_run

import kdzoo
from kdzoo.distill.terms import set_up_policy
from kdzoo.extend.bases import ClassPolicy
from kdzoo.extend.registry import registry

CLASSES = tuple("abcdefghij")
CONTROLS = ("random", "hardest", "label-only")  # which act when tllm does


def curves(student, baseline=None, teacher=None) -> kdzoo.TeachingCurves:
    student = np.asarray(student, dtype=float)
    ones = np.ones_like(student)
    return kdzoo.TeachingCurves(
        samples=1000 * ones,
        student=student,
        teacher=ones if teacher is None else np.asarray(teacher, dtype=float),
        agreement=ones,
        divergence=ones,
        predicted=1000 * ones,
        teacher_weight=ones,
        label_weight=ones,
        baseline=None if baseline is None else np.asarray(baseline, dtype=float),
    )


def setting(**changes: object) -> kdzoo.PolicySetting:
    known = {"classes": CLASSES, "has_baseline": True, "teacher_weight": 0.9, "label_weight": 0.1}
    return kdzoo.PolicySetting(**{**known, "samples": (1000,) * 10, **changes})


def policy(use: str, *, teacher: float = 0.9, label: float = 0.1, seed: int = 0, **params: object):
    if use in ("tllm", *CONTROLS):
        params = {"start_epoch": 5, **params}
    made = registry().make(ClassPolicy.kind, use, params)
    made.setup(setting(teacher_weight=teacher, label_weight=label, seed=seed, images="these"))
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
    assert decide(policy("tllm"), *falling({"j": 0.02})) == []


def test_tllm_waits_for_its_first_epoch_and_for_patience() -> None:
    patient = {"start_epoch": 4, "patience": 3}
    assert decide(policy("tllm", **patient, window=4), *falling({"c": 0.2}, 5)) == []
    assert decide(policy("tllm", **patient, window=4), *falling({"c": 0.2}, 6)) == ["c"]
    # As many epochs as its window has must have been.
    assert decide(policy("tllm", **patient, window=6), *falling({"c": 0.2}, 7)) == []
    assert decide(policy("tllm", **patient, window=6), *falling({"c": 0.2}, 8)) == ["c"]


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


def test_the_residual_is_what_the_teachers_accuracy_does_not_explain() -> None:
    teacher = np.linspace(1.0, 0.5, 10)
    student = 0.8 * teacher - 0.1
    student[4] -= 0.2
    value = read_signal("residual", curves([student] * 3, teacher=[teacher] * 3), 2).value
    assert np.argmin(value) == 4
    assert value[4] < -0.15
    assert np.abs(np.delete(value, 4)).max() < 0.05
    # A teacher that knows everything explains nothing: what is left is the median.
    value = read_signal("residual", curves([student]), 1).value
    np.testing.assert_allclose(value, student - np.median(student))


def test_classes_without_samples_are_left_alone() -> None:
    student, baseline = falling({"c": 0.2}, 4)
    student[:, 7] = np.nan
    value = read_signal("baseline", curves(student, baseline), 3).value
    assert np.isnan(value[7])
    assert value[2] == pytest.approx(-0.2)
    student[:-1, 7] = 0.3  # seen in some epochs of the window only
    assert np.isfinite(read_signal("baseline", curves(student, baseline), 3).value).all()


def test_epochs_that_the_baseline_has_not_are_no_gap() -> None:
    student, baseline = falling({}, 6)
    student += np.linspace(0, 0.3, 6)[:, None] * np.linspace(0, 1, 10)  # learning, unevenly
    baseline = student.copy()
    baseline[:4] = np.nan
    value = read_signal("baseline", curves(student, baseline), 5).value
    assert np.abs(value).max() < 1e-12


def test_the_same_images_epoch_after_epoch_are_counted_once() -> None:
    student, baseline = falling({}, 20)
    errors = [read_signal("baseline", curves(student, baseline), w).error for w in (1, 10)]
    np.testing.assert_allclose(*errors)
    assert errors[0].max() == pytest.approx(np.sqrt(2 * 0.25 / 1000), rel=0.15)


def study(
    draw: np.random.Generator, *, copied: float, anew: bool = False, harm: float = 0.0
) -> kdzoo.TeachingCurves:
    """25 epochs of ten classes of 300 images. Each image is right or wrong by chance, and so is the
    student's answer, but for a share that is ``copied`` from the baseline. All that is drawn once,
    or ``anew`` in each epoch. Of class c a share, ``harm``, of what was right becomes wrong."""
    shape = (25 if anew else 1, 300, 10)
    level = np.linspace(0.5, 0.9, 10)
    baseline = draw.random(shape) < level
    student = np.where(draw.random(shape) < copied, baseline, draw.random(shape) < level)
    student[:, :, 2] &= draw.random(shape[:2]) >= harm
    means = [
        np.broadcast_to(right.mean(1), (25, 10))
        for right in (student, baseline, student & baseline)
    ]
    shown = dataclasses.replace(curves(*means[:2]), both_right=means[2])
    return dataclasses.replace(shown, samples=np.full((25, 10), 300.0))


def stopped(shown: kdzoo.TeachingCurves, **params: object) -> np.ndarray:
    made = policy("tllm", **params)
    for epoch in range(1, len(shown.student) + 1):
        weights = made.update(shown.first(epoch))
    return weights.teacher == 0


@pytest.mark.parametrize(("copied", "anew"), [(0.0, False), (0.7, False), (0.7, True)])
def test_null_classes_are_seldom_stopped_however_often_one_looks(copied: float, anew: bool) -> None:
    """Student and baseline are equally good; how alike they are is seen in the answers alone."""
    draw, studies = np.random.default_rng(0), 200
    named = sum(
        stopped(study(draw, copied=copied, anew=anew), margin=0.0, patience=1, window=3).any()
        for _ in range(studies)
    )
    assert named / studies <= 0.1


def test_images_that_both_saw_tell_more_than_two_shares() -> None:
    draw, studies, found = np.random.default_rng(0), 40, {True: 0, False: 0}
    for _ in range(studies):
        shown = study(draw, copied=0.9, harm=0.2)
        for paired in found:
            known = shown if paired else dataclasses.replace(shown, both_right=None)
            found[paired] += bool(stopped(known)[2])
    assert found[True] > 0.8 * studies
    assert found[False] < 0.5 * studies
    # A difference of paired shares, by hand: 300 images, of which 12 and 30 are right for one only.
    student, baseline = np.full((1, 10), 0.7), np.full((1, 10), 0.76)
    shown = dataclasses.replace(curves(student, baseline), both_right=np.full((1, 10), 0.66))
    shown = dataclasses.replace(shown, samples=np.full((1, 10), 300.0))
    by_hand = np.sqrt((42 - 18**2 / 300) / 300**2 * (1 + np.pi / 20))
    np.testing.assert_allclose(read_signal("baseline", shown, 1).error, by_hand, rtol=0.02)


def test_what_differs_from_class_to_class_anyhow_counts_as_error() -> None:
    """For all signals but the gap to the baseline, which is what the teacher has changed."""
    apart = np.random.default_rng(0).normal(0, 0.1, 100)
    shown = curves(0.7 + np.zeros((3, 100)) + apart, np.full((3, 100), 0.7))
    assert read_signal("baseline", shown, 3).error.max() < 0.04
    assert read_signal("residual", shown, 3).error.min() == pytest.approx(0.1, rel=0.3)
    half = np.where(np.arange(100) % 2, apart, 0.1 * apart)  # half of them are alike
    shown = curves(0.7 + np.zeros((3, 100)) + half, np.full((3, 100), 0.7))
    assert read_signal("residual", shown, 3).error.max() < 0.05


def test_a_row_of_looks_costs_what_its_block_does() -> None:
    test = SequentialTest(4, patience=2, rate=0.1)
    p = np.array([0.001, 0.5, 1.0, 0.02])
    values, found, seen = test.look(p)
    assert (values == 1).all()
    assert not found.any()
    assert seen.tolist() == [True, False, False, True]
    values, found, _ = test.look(p)
    np.testing.assert_allclose(values, [0.002, 1, 1, 0.04])
    assert found.tolist() == [True, False, False, True]
    for _ in range(2):  # the second block: 2 * 3 times
        values = test.look(p)[0]
    np.testing.assert_allclose(values, [0.006, 1, 1, 0.12])
    test.restart()
    assert (test.look(p)[0] == 1).all()


def test_the_window_begins_anew_where_the_learning_rate_falls_or_a_stage_begins() -> None:
    student, baseline = falling({"c": 0.2}, 12)
    shown = curves(student, baseline)
    assert epochs_since_restart(shown) == 12
    rates = np.where(np.arange(12) < 7, 0.1, 0.01)
    falls = dataclasses.replace(shown, learning_rate=rates)
    assert epochs_since_restart(falls) == 5
    assert epochs_since_restart(dataclasses.replace(shown, stage=rates)) == 5
    slowly = dataclasses.replace(shown, learning_rate=0.1 * 0.8 ** np.arange(12))
    assert epochs_since_restart(slowly) == 12
    made = policy("tllm", start_epoch=6, window=4, patience=2)
    stopped = [made.update(falls.first(epoch)).teacher[2] == 0 for epoch in range(1, 13)]
    assert stopped.index(True) + 1 == 7  # after the first two looks
    made = policy("tllm", start_epoch=7, window=4, patience=2)
    stopped = [made.update(falls.first(epoch)).teacher[2] == 0 for epoch in range(1, 13)]
    assert stopped.index(True) + 1 == 12  # looks after epochs 11 and 12


def test_states_are_told() -> None:
    made = policy("tllm", start_epoch=3, patience=2, window=3)
    shown = curves(*falling({"c": 0.2}, 5))
    states = [made.initial(10).states[2]]
    states += [made.update(shown.first(epoch)).states[2] for epoch in range(1, 6)]
    words = [kdzoo.ClassState(state).words for state in states]
    assert words == ["warm-up", "warm-up", "warm-up", "suspect", "untaught", "untaught"]


def test_after_its_last_epoch_nothing_changes() -> None:
    student, baseline = falling({}, 12)
    student[8:] = falling({"c": 0.3}, 12)[0][8:]
    assert decide(policy("tllm", window=1), student, baseline) == ["c"]
    assert decide(policy("tllm", window=1, last_epoch=8), student, baseline) == []


def test_a_policy_that_can_stop_nothing_in_time_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def warned(epochs: int | None, **params: int) -> str:
        caplog.clear()
        made = registry().make(ClassPolicy.kind, "tllm", params)
        made.setup(setting(epochs=epochs))
        return caplog.text

    said = warned(12)  # a start_epoch of 10 and a patience of 3: it would be after the last
    assert 'policy "tllm" can stop no class in 12 epochs: with a start_epoch of 10' in said
    assert "the first class could be stopped after epoch 12" in said
    assert not warned(13)
    assert not warned(None)
    assert "a window of 14" in warned(14, start_epoch=2, window=14)


def test_a_class_that_is_found_too_late_to_settle_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    student, baseline = falling({"c": 0.2}, 12)

    def warned(epochs: int | None, **params: object) -> str:
        caplog.clear()
        made = registry().make(ClassPolicy.kind, "tllm", {"start_epoch": 5, "window": 3, **params})
        made.setup(setting(epochs=epochs))
        assert decide(made, student, baseline) == ["c"]
        return caplog.text

    def said(more: int) -> str:
        return f"c: found after epoch 7; the weight of their label terms changes for {more} more"

    assert warned(9).count(f'policy "tllm": {said(2)}') == 1
    assert said(2) in warned(40, last_epoch=9)
    assert said(0) in warned(None, last_epoch=7)
    for silent in (
        warned(10),
        warned(None),
        warned(40, last_epoch=10),
        warned(7),  # nothing follows
        warned(9, balance=False),
    ):
        assert "found after" not in silent


def test_what_tllm_cannot_have_is_refused() -> None:
    def refused(match: str, changes: dict[str, object], **params: object) -> None:
        made = registry().make(ClassPolicy.kind, "tllm", params)
        with pytest.raises(kdzoo.SpecError, match=match):
            made.setup(setting(**changes))

    refused("two at least must be", {"classes": ("a", "b")})
    few = (10, 9, *[10] * 8)
    refused('"b" has 9 validation images', {"validation": few}, source="validation")
    refused('"a" has 10 training images, and 50', {"samples": few}, signal="cka")
    refused("say `source: validation` too", {}, signal="cka", balance_on="validation")
    refused("pass their classes as `targets=`", {"samples": None}, signal="cka")
    with pytest.raises(kdzoo.SpecError, match="two at least must be"):
        policy("fixed", classes=list(CLASSES[:9]))
    with pytest.raises(kdzoo.SpecError, match="compares with a baseline run, and there is none"):
        set_up_policy(
            registry().make(ClassPolicy.kind, "tllm", {}),
            kdzoo.terms(["ce", "kd"]),
            classes=CLASSES,
            has_baseline=False,
        )
    registry().make(ClassPolicy.kind, "tllm", {"last_epoch": 12})
    with pytest.raises(ValueError, match=r"is 11, .* could be stopped after epoch 12"):
        registry().make(ClassPolicy.kind, "tllm", {"last_epoch": 11})


@pytest.mark.parametrize(
    ("signal", "warnings"),
    [("agreement", 1), ("residual", 1), ("divergence", 1), ("baseline", 0), ("cka", 0)],
)
def test_a_teacher_that_knows_all_is_warned_of_once(
    signal: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    decide(policy("tllm", signal=signal), *falling({}, 3))
    assert caplog.text.count("right on 100.0 % of the training images") == warnings


def test_what_a_policy_needs_is_looked_at_in_its_first_epoch_of_whatever_stage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = curves(*falling({}, 5))
    made = policy("tllm", signal="agreement")
    made.update(shown.first(4))  # the stages before it had three epochs
    again = policy("tllm", signal="agreement")
    again.load_state_dict(made.state_dict())
    again.update(shown)
    assert caplog.text.count("right on 100.0 % of the training images") == 1
    measured = dataclasses.replace(shown, validation=curves(falling({}, 5)[0]))
    with pytest.raises(kdzoo.SpecError, match="no baseline: pass `validation_baseline`"):
        policy("tllm", source="validation").update(measured)


def test_fixed_and_all() -> None:
    weights = policy("fixed", classes=["b", "j"], label_weight=2.0).initial(10)
    assert np.flatnonzero(weights.teacher == 0).tolist() == [1, 9]
    assert np.flatnonzero(weights.label == 2).tolist() == [1, 9]
    assert (policy("all").update(curves([[0.5] * 10])).teacher == 1).all()
    with pytest.raises(kdzoo.SpecError, match='there is no class "bb"; did you mean "b"'):
        policy("fixed", classes=["bb"])


@pytest.mark.parametrize("use", CONTROLS)
def test_controls_act_when_tllm_would_and_on_as_many_classes(use: str) -> None:
    behind = {"b": 0.3, "d": 0.2}
    student, baseline = falling({}, 14)
    student[4:] = falling({"b": 0.3}, 14)[0][4:]
    student[8:] = falling(behind, 14)[0][8:]
    tllm, control = (policy(name, window=1, patience=2) for name in ("tllm", use))
    for epoch in range(1, 15):
        shown = curves(student[:epoch], baseline[:epoch])
        one, other = tllm.update(shown), control.update(shown)
        stopped = int((one.teacher == 0).sum())
        if use == "label-only":
            assert (other.teacher == 1).all()
        else:
            assert int((other.teacher == 0).sum()) == stopped
            assert (other.states == kdzoo.ClassState.UNTAUGHT).sum() == stopped
    assert stopped == 2


def test_random_draws_from_the_runs_seed() -> None:
    def drawn(seed: int) -> tuple[str, ...]:
        return tuple(decide(policy("random", seed=seed), *falling({"c": 0.2, "h": 0.1}, 8)))

    of_seed = [drawn(seed) for seed in range(30)]
    assert drawn(1) == of_seed[1]
    assert len(set(of_seed)) > 15
    assert {len(names) for names in of_seed} == {2}
    assert {name for names in of_seed for name in names} == set(CLASSES)


def test_hardest_takes_the_least_accurate_classes() -> None:
    assert decide(policy("hardest"), *falling({"a": 0.2, "b": 0.1})) == ["i", "j"]
    student, baseline = falling({"a": 0.1}, 12)
    assert decide(policy("hardest"), student, baseline) == ["j"]
    assert decide(policy("hardest", max_fraction=0), student, baseline) == []


def test_label_only_steers_the_labels_of_what_tllm_would_stop() -> None:
    made = policy("label-only", start_epoch=1, patience=1, window=1)
    shown = curves(*falling({"c": 0.2}, 3))
    shown = dataclasses.replace(shown, predicted=0.9 * shown.samples)
    labels = [made.update(shown.first(epoch)).label for epoch in (1, 2, 3)]
    assert labels[0][2] == pytest.approx(BEGINNING)
    assert labels[1][2] == pytest.approx(BEGINNING * 0.9**-5)
    assert labels[2][2] == pytest.approx(BEGINNING * 0.9**-10)
    assert (np.delete(labels[2], 2) == 1).all()
    fixed = policy("label-only", start_epoch=1, patience=1, window=1, balance=False)
    assert fixed.update(shown.first(1)).label[2] == pytest.approx(10)  # as in the baseline
    with pytest.raises(kdzoo.SpecError, match="teacher_weight"):
        kdzoo.read_spec(
            {
                "name": "control",
                "data": "planted",
                "student": "mlp",
                "teacher": {"use": "mlp", "train": {"epochs": 1}},
                "train": {"epochs": 1},
                "losses": ["ce", "kd"],
                "policy": {"use": "label-only", "teacher_weight": 0.5},
            }
        )


def gaps(**classes: float) -> np.ndarray:
    return np.array([classes.get(name, -0.01) for name in CLASSES])


def test_oracle_knows_what_hurt_the_runs_of_other_seeds(tmp_path: Path) -> None:
    runs = [
        earlier_run(tmp_path / "0", gaps(a=-0.9), seed=0),
        earlier_run(tmp_path / "1", gaps(c=-0.10, h=-0.12, e=0.05), seed=1),
        earlier_run(tmp_path / "2", gaps(c=-0.10, h=+0.09, e=0.05), seed=2),
    ]
    made = policy("oracle", runs=runs, seed=0)  # its own seed's run is passed over
    assert np.flatnonzero(made.initial(10).teacher == 0).tolist() == [2]
    assert np.flatnonzero(made.update(answered([1.0] * 10)).teacher == 0).tolist() == [2]
    assert np.flatnonzero(policy("oracle", runs=runs[:2]).initial(10).teacher == 0).size == 2
    one = policy("oracle", runs=runs[:2], max_fraction=0.1).initial(10)
    assert np.flatnonzero(one.teacher == 0).tolist() == [7]  # the one that was hurt most
    assert (policy("oracle", runs=runs, margin=0.1).initial(10).teacher == 1).all()


def test_oracle_goes_by_the_epochs_in_which_a_run_had_a_baseline(tmp_path: Path) -> None:
    """A first stage without label terms has none; the window reaches into it."""
    run = earlier_run(tmp_path / "staged", gaps(c=-0.10), seed=1, without=3)
    for window in (1, 5):
        listed = policy("oracle", runs=[run], window=window).initial(10).teacher == 0
        assert np.flatnonzero(listed).tolist() == [2]


def test_oracle_refuses_runs_that_cannot_tell(tmp_path: Path) -> None:
    def refused(match: str, *runs: str) -> None:
        with pytest.raises(kdzoo.SpecError, match=match):
            policy("oracle", runs=runs)

    usual = earlier_run(tmp_path / "usual", gaps(), seed=1)
    refused("all are of this run's own seed, 0", earlier_run(tmp_path / "own", gaps(), seed=0))
    refused(
        "other classes; name runs on the same data",
        earlier_run(tmp_path / "names", gaps(), seed=1, classes="abcdefghik"),
    )
    refused("every class", earlier_run(tmp_path / "taught", gaps(), seed=1, taught=0.5))
    refused(
        "other images; name runs on the same data",
        earlier_run(tmp_path / "images", gaps(), seed=1, data="those"),
    )
    for again in (usual, os.path.relpath(usual)):
        refused(f"{usual} is named twice", usual, again)
    blind = earlier_run(tmp_path / "blind", gaps(), seed=1, validation=False)
    refused("has not measured a baseline on validation images", usual, blind)
    refused("nowhere holds no run; name the directories", usual, str(tmp_path / "nowhere"))
    (tmp_path / "usual" / "classes.csv").write_text("torn")
    refused("classes.csv: the curves cannot be read", usual)
    unfinished = earlier_run(tmp_path / "unfinished", gaps(), seed=1)
    (tmp_path / "unfinished" / "report.json").unlink()
    refused("report.json: is not there; the run is not finished", unfinished)


@pytest.mark.parametrize(
    ("use", "params"), [("tllm", {}), ("fixed", {"classes": ["a"]}), ("label-only", {})]
)
def test_a_policy_about_a_teacher_needs_one_and_something_else(use: str, params: dict) -> None:
    with pytest.raises(
        kdzoo.SpecError, match="there are none; add a loss that follows the teacher"
    ):
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


# Between 1 and the 10 that gives a label term of 0.1 its weight in the baseline.
BEGINNING = 10**0.5


def answered(shares: list[float]) -> kdzoo.TeachingCurves:
    """An epoch in which each class was answered so many times as often as it came."""
    shown = curves([[0.5] * 10], [[0.5] * 10])
    return dataclasses.replace(shown, predicted=shown.samples * np.array([shares]))


def test_balance_steers_an_untaught_class_to_its_share() -> None:
    made = policy("fixed", classes=["b", "c", "d", "e"])
    assert made.initial(10).label == pytest.approx([1, *[BEGINNING] * 4, *[1] * 5])
    shares = [0.8, 0.9, 1.1, 1.0, 0.0, *[1.0] * 5]
    weights = made.update(answered(shares))
    assert (weights.teacher == [1, 0, 0, 0, 0, 1, 1, 1, 1, 1]).all()
    factors = weights.label / BEGINNING
    assert factors[1] == pytest.approx(0.9**-5)
    assert factors[2] == pytest.approx(1.1**-5)
    assert factors[3] == 1
    assert factors[4] == pytest.approx(2)  # however seldom it is answered
    assert (weights.label[[0, 5]] == 1).all()  # a class that is taught keeps its weight
    assert made.update(answered(shares)).label[1] == pytest.approx(BEGINNING * 0.9**-10)
    for _ in range(40):
        factors = made.update(answered([0.5] * 10)).label
    assert (factors[1:5] == 100).all()  # ten times what it weighs in the baseline, and no more
    for _ in range(40):
        factors = made.update(answered([2.0] * 10)).label
    assert (factors[1:5] == 0.1).all()


def test_a_factor_that_went_too_far_comes_back_by_less() -> None:
    made = policy("fixed", classes=["b"])
    factors = [made.initial(10).label[1]]
    again = None
    for share in (0.0, 0.0, 3.0, 0.0, 3.0, 3.0):
        factors.append(made.update(answered([share] * 10)).label[1])
        if again is not None:  # a run that was killed in between
            assert again.update(answered([share] * 10)).label[1] == factors[-1]
        again = policy("fixed", classes=["b"])
        again.load_state_dict(made.state_dict())
    steps = np.diff(np.log2(factors))
    assert steps == pytest.approx([1, 1, -1 / 2, 1 / 4, -1 / 8, -1.2 / 8])


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
    assert made.update(behind).label[2] == pytest.approx(BEGINNING)
    again = policy("tllm", start_epoch=1, patience=1, window=1)
    again.load_state_dict(made.state_dict())
    for each in (made, again):
        assert each.update(behind).label[2] == pytest.approx(BEGINNING * 0.9**-5)
        assert each.update(behind).label[2] == pytest.approx(BEGINNING * 0.9**-10)


def test_a_column_that_is_taken_out_leaves_the_rest_renormalized() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=draw) * 3
    targets = torch.tensor([0, 1, 2, 3, 4, 2])
    columns = torch.ones(10)
    columns[2] = 0.0
    batch = kdzoo.Batch(
        inputs=torch.zeros(6, 1, 1, 1),
        targets=targets,
        indices=targets,
        weights=torch.ones(6),
        progress=0.0,
        columns=columns,
    )
    kept = [c for c in range(10) if c != 2]
    for use in ("kd", "dkd"):
        loss = registry().make("loss", use, {})
        rows = loss(kdzoo.Outputs(student), kdzoo.Outputs(teacher), batch)
        plain = dataclasses.replace(batch, columns=None)
        whole = loss(kdzoo.Outputs(student), kdzoo.Outputs(teacher), plain)
        other = dataclasses.replace(plain, targets=targets - (targets > 2).long())
        rest = loss(kdzoo.Outputs(student[:, kept]), kdzoo.Outputs(teacher[:, kept]), other)
        own = targets == 2
        torch.testing.assert_close(rows[own], whole[own])
        torch.testing.assert_close(rows[~own], rest[~own])
        ones = dataclasses.replace(batch, columns=torch.ones(10))
        every = loss(kdzoo.Outputs(student), kdzoo.Outputs(teacher), ones)
        torch.testing.assert_close(every, whole)


def test_columns_are_refused_beside_a_loss_that_knows_nothing_of_them() -> None:
    made = registry().make(ClassPolicy.kind, "fixed", {"classes": ["b"], "scope": "column"})
    known = {"classes": CLASSES, "has_baseline": False}
    set_up_policy(made, kdzoo.terms(["ce", "kd"]), **known)
    weights = made.initial(10)
    assert weights.columns.tolist() == weights.teacher.tolist()
    with pytest.raises(kdzoo.SpecError, match=r'"fitnet" knows nothing of that \(takes_columns\)'):
        set_up_policy(made, kdzoo.terms(["ce", "fitnet"]), **known)
