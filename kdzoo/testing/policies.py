"""The checks of class policies."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kdzoo.distill.distiller import Distiller
from kdzoo.distill.terms import Term
from kdzoo.errors import SpecError
from kdzoo.extend.bases import ClassPolicy, Loss
from kdzoo.extend.contracts import (
    Batch,
    ClassState,
    ClassWeights,
    Floats,
    Layers,
    Outputs,
    PolicySetting,
    TeachingCurves,
)
from kdzoo.extend.declared import Declared
from kdzoo.testing.checks import Checks, ContractError, NotApplicable, after, require, sometimes
from kdzoo.testing.modules import same, seeded, stored
from kdzoo.testing.scene import IMAGE, Labels

__all__ = ["PolicyChecks"]

_CLASSES = tuple("abcdefghij")
_ANSWERED = {
    "teacher": "teacher weights",
    "label": "label weights",
    "columns": "columns",
    "states": "states",
}
_OPTIONAL = {"columns", "states"}
_EPOCHS = 15
_IMAGES = 100  # of each class, in training and in validation


class PolicyChecks(Checks[ClassPolicy]):
    """What is asked of a class policy.

    It decides about ten classes, "a" to "j", in runs of 15 epochs.
    """

    base = ClassPolicy

    def valid_weights(self) -> None:
        """Whatever the curves, each class gets two finite weights that are not below 0, and where
        they are answered a column from 0 to 1 and a state."""
        for what, curves in _stories():
            policy = self._policy(has_baseline=curves.baseline is not None)
            if policy is None:
                continue
            _require_valid(policy.initial(len(_CLASSES)), "initial")
            try:
                answers = _play(policy, curves)
            except ContractError:
                raise
            except Exception as error:
                raise ContractError(
                    f"curves with {what}: it raised {type(error).__name__}: {error}"
                ) from error
            for weights in answers:
                _require_valid(weights, f"update, on curves with {what},")

    def settings(self) -> None:
        """It works, or refuses with a SpecError in ``setup``, whatever the run is like."""
        for has_baseline in (True, False):
            for teacher, label in ((0.9, 0.1), (100.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
                what = f"terms that weigh {teacher} and {label}, baseline: {has_baseline}"
                try:
                    policy = self._policy(
                        has_baseline=has_baseline, teacher_weight=teacher, label_weight=label
                    )
                except Exception as error:
                    raise ContractError(
                        f"setup for {what} raised {type(error).__name__}: {error}; refuse with a "
                        "kdzoo.SpecError"
                    ) from error
                if policy is None:
                    continue
                curves = _curves() if has_baseline else replace(_curves(), baseline=None)
                try:
                    answers = [policy.initial(len(_CLASSES)), *_play(policy, curves)]
                except ContractError:
                    raise
                except Exception as error:
                    raise ContractError(
                        f"{what}: it raised {type(error).__name__}: {error}; refuse with a "
                        "kdzoo.SpecError in setup, or where it needs a baseline, answer True in "
                        "needs_baseline"
                    ) from error
                for weights in answers:
                    _require_valid(weights, f"{what}: it")

    @sometimes
    @after("pure")
    def declared_needs(self) -> None:
        """Validation images and similarities that it does not declare, it does without."""
        declared, wanted = Declared.by(self._usual()), _play(self._usual(), _curves())
        open_ = [
            part for part in ("validation", "similarity") if not getattr(declared, f"needs_{part}")
        ]
        if not open_:
            raise NotApplicable("it declares both")
        for part in open_:
            advice = (
                f"it reads curves.{part}, and there is none in the runs of a policy that does not "
                f"declare it: answer True in needs_{part}"
            )
            try:
                without = self._policy(has_validation=part != "validation")
                answers = None if without is None else _play(without, _without(part))
            except Exception as error:
                raise ContractError(f"{advice} ({type(error).__name__}: {error})") from error
            if answers is None:
                raise ContractError(
                    "it refuses a run without validation images, and does not declare that it "
                    "needs them: answer True in needs_validation"
                )
            require(_alike(wanted, answers), advice)

    def pure(self) -> None:
        """The same curves give the same answers, whatever the seed of any generator."""
        answers = []
        for seed in (1, 2):
            states = random.getstate(), np.random.get_state()
            random.seed(seed)
            np.random.seed(seed)
            try:
                answers.append(seeded(seed, lambda: _play(self._usual(), _curves())))
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])
        require(
            _alike(*answers),
            "it answers otherwise when the same curves are shown again: draw nothing, and read no "
            "clock",
        )

    @after("pure")
    def instances(self) -> None:
        """Two policies at once know nothing of each other."""
        stories = _curves(), _curves(seed=1)
        alone = [_play(self._usual(), curves) for curves in stories]
        policies = [self._usual() for _ in stories]
        beside: list[list[ClassWeights]] = [[], []]
        for pair in zip(*map(_played, policies, stories), strict=True):
            for answers, weights in zip(beside, pair, strict=True):
                answers.append(copy.deepcopy(weights))
        require(
            all(map(_alike, alone, beside)),
            "it answers otherwise while another instance is at work",
        )

    def leaves_the_curves_alone(self) -> None:
        """It changes nothing of the curves, which others see too."""
        for what, curves in _stories():
            policy = self._policy(has_baseline=curves.baseline is not None)
            if policy is None:
                continue
            for epochs in range(1, _EPOCHS + 1):
                shown = curves.first(epochs)
                with contextlib.suppress(Exception):  # that is what valid_weights is about
                    policy.update(shown)
                unchanged = _equal(shown, curves.first(epochs))
                require(unchanged, f"it changed the curves in place, those with {what}")

    def answers_stay(self) -> None:
        """What it has answered is not changed by what it decides later."""
        policy = self._usual()
        answers = [policy.initial(len(_CLASSES))]
        before = copy.deepcopy(answers)
        for weights in _played(policy, _curves()):
            answers.append(weights)
            before.append(copy.deepcopy(weights))
        require(_alike(answers, before), "it changed an array that it had answered: answer a copy")

    def state_dict(self) -> None:
        """Its state is plain data, and another instance that took it has the same."""
        policy = self._usual()
        for _ in _played(policy, _curves()):
            state = stored("its state", policy.state_dict())
            require(same(state, policy.state_dict()), "asking for its state changes it")
            fresh = self._usual()
            fresh.load_state_dict(state)
            require(same(state, fresh.state_dict()), "another instance does not take all its state")

    @after("pure")
    def resume(self) -> None:
        """A run that is cut off after any epoch goes on with the same answers."""
        whole = _play(self._usual(), _curves())
        policy, answers = self._usual(), []
        history: list[ClassWeights] = []
        for epochs in range(1, _EPOCHS + 1):
            weights = _update(policy, _shown(_curves(), epochs, history))
            answers.append(copy.deepcopy(weights))
            history.append(answers[-1])
            state = copy.deepcopy(policy.state_dict())
            policy = self._usual()
            policy.load_state_dict(state)
        require(
            _alike(whole, answers),
            "a policy that goes on from its state answers otherwise: what update needs beside the "
            "curves must be in state_dict",
        )

    def copies(self) -> None:
        """A deep copy goes its own way."""
        policy = self._usual()
        played = _played(policy, _curves())
        for _ in range(_EPOCHS // 2):
            next(played)
        try:
            copied = copy.deepcopy(policy)
        except Exception as error:
            raise ContractError(f"it cannot be copied: {type(error).__name__}: {error}") from error
        before = copy.deepcopy(policy.state_dict())
        _play(copied, _curves(seed=1))
        require(same(before, policy.state_dict()), "it shares its state with a deep copy")

    def in_a_distiller(self) -> None:
        """It decides in a Distiller, beside a term of the teacher's and one of the labels."""
        policy = self._make()
        networks = [
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, len(_CLASSES)))
            for _ in range(2)
        ]
        layers = Layers(penultimate="0", head="1")
        # Enough of each class for a policy that compares features.
        inputs, targets = torch.rand(600, *IMAGE), torch.arange(600) % len(_CLASSES)
        try:
            distiller = Distiller(
                networks[0],
                networks[1],
                [Term("labels", Labels(), 0.1), Term("teacher", _Teacher(), 0.9)],
                example=inputs[:2],
                classes=_CLASSES,
                num_samples=600,
                targets=targets,
                policy=policy,
                baseline=_curves().baseline,
                validation_baseline=_measured(100).baseline,
                validation_targets=targets,
                teacher_layers=layers,
                student_layers=layers,
            )
        except SpecError as error:
            raise ContractError(f"it refuses an ordinary run: {error}") from error
        for _ in range(_EPOCHS):
            distiller.train()
            total = distiller(inputs, targets).total
            require(bool(total.isfinite()), "the total became NaN or infinite under its weights")
            distiller.validate(inputs, targets)
            distiller.end_epoch(0.1)

    # What the checks are made of.

    def _use(self) -> None:
        policy = self._usual()
        policy.initial(len(_CLASSES))
        for _ in _played(policy, _curves()):
            self._usual().load_state_dict(policy.state_dict())

    def _policy(
        self,
        *,
        has_baseline: bool = True,
        teacher_weight: float = 0.9,
        label_weight: float = 0.1,
        has_validation: bool = True,
    ) -> ClassPolicy | None:
        """A policy after its setup; ``None`` if it refuses."""
        policy = self._make()
        if Declared.by(policy).needs_baseline and not has_baseline:
            return None
        try:
            policy.setup(
                PolicySetting(
                    classes=_CLASSES,
                    has_baseline=has_baseline,
                    teacher_weight=teacher_weight,
                    label_weight=label_weight,
                    samples=(_IMAGES,) * len(_CLASSES),
                    validation=(_IMAGES,) * len(_CLASSES) if has_validation else None,
                )
            )
        except SpecError:
            return None
        return policy

    def _usual(self) -> ClassPolicy:
        policy = self._policy()
        if policy is None:
            raise ContractError(
                "it refuses an ordinary run: one with a teacher, labels and a baseline"
            )
        return policy


class _Teacher(Loss):
    """Squared difference of the logits."""

    name = "kdzoo-testing-teacher"
    takes_columns = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        rows = (student.logits - teacher.logits).square()
        return rows.mean(1) if batch.columns is None else (batch.columns * rows).mean(1)


def _curves(seed: int = 0) -> TeachingCurves:
    """All epochs of a student that learns some classes well, and loses others on the way."""
    training = _measured(seed)
    return replace(training, validation=_measured(seed + 100))


def _measured(seed: int) -> TeachingCurves:
    draw = np.random.default_rng(seed)
    epochs = np.arange(1, _EPOCHS + 1)[:, None]
    shape = (_EPOCHS, len(_CLASSES))
    heights = draw.uniform(0.5, 0.95, len(_CLASSES))
    baseline = heights * (1 - np.exp(-epochs / 3)) + draw.normal(0, 0.01, shape)
    behind = np.where(np.arange(len(_CLASSES)) % 4 == 1 + seed, 0.03 * epochs, 0.0)
    student, baseline = (baseline - behind).clip(0, 1), baseline.clip(0, 1)
    return TeachingCurves(
        samples=np.full(shape, float(_IMAGES)),
        student=student,
        teacher=np.tile(draw.uniform(0.7, 1.0, len(_CLASSES)), (_EPOCHS, 1)),
        agreement=draw.uniform(0.3, 0.9, shape),
        divergence=draw.uniform(0.1, 3.0, shape),
        predicted=draw.uniform(60, 140, shape),
        teacher_weight=np.ones(shape),
        label_weight=np.ones(shape),
        baseline=baseline,
        both_right=(student * baseline + np.minimum(student, baseline)) / 2,
        similarity=draw.uniform(-0.1, 0.9, shape),
        state=np.ones(shape),
        learning_rate=np.where(epochs[:, 0] <= 12, 0.1, 0.01),
        stage=np.zeros(_EPOCHS),
    )


_MEANS = ("student", "teacher", "both_right", "agreement", "divergence")


def _stories() -> Iterator[tuple[str, TeachingCurves]]:
    """Curves of many kinds, and what is special about them."""
    usual = _curves()
    yield "nothing special", usual
    yield "no baseline", replace(usual, baseline=None)
    for what, gone in (
        ("a class that has no samples", np.s_[:, 3]),
        ("classes that have samples from the fifth epoch on", np.s_[:4, 2:6]),
        ("no samples in the last epochs", np.s_[10:]),
        ("no samples at all", np.s_[:]),
    ):
        assert usual.validation is not None
        yield what, replace(_gone(usual, gone), validation=_gone(usual.validation, gone))
    unknown = np.full_like(usual.student, np.nan)
    yield "no teacher", replace(usual, teacher=unknown, agreement=unknown, divergence=unknown)
    yield "a baseline that is not known", replace(usual, baseline=unknown)
    yield "a student that knows nothing", replace(usual, student=0 * usual.student)
    yield "a student that knows everything", replace(usual, student=0 * usual.student + 1)
    yield "classes that are never answered", replace(usual, predicted=0 * usual.predicted)
    yield "an infinite divergence", replace(usual, divergence=usual.divergence + np.inf)


def _gone(curves: TeachingCurves, where: Any) -> TeachingCurves:
    """Curves that have no samples in some classes and epochs."""
    broken = {name: getattr(curves, name).copy() for name in ("samples", *_MEANS)}
    broken["samples"][where] = 0
    for name in _MEANS:
        broken[name][where] = np.nan
    return replace(curves, **broken)


def _without(part: str) -> TeachingCurves:
    """The usual curves without the validation images, or without the similarity anywhere."""
    curves = _curves()
    if part == "validation":
        return replace(curves, validation=None)
    assert curves.validation is not None
    return replace(curves, similarity=None, validation=replace(curves.validation, similarity=None))


def _shown(curves: TeachingCurves, epochs: int, history: Sequence[ClassWeights]) -> TeachingCurves:
    """What the policy sees after an epoch: its own past weights are in it."""
    shown = curves.first(epochs)
    for epoch, weights in enumerate(history[: epochs - 1], 1):
        shown.teacher_weight[epoch] = weights.teacher
        shown.label_weight[epoch] = weights.label
    return shown


def _played(policy: ClassPolicy, curves: TeachingCurves) -> Iterator[ClassWeights]:
    """Its answers, epoch by epoch."""
    history: list[ClassWeights] = []
    for epochs in range(1, _EPOCHS + 1):
        weights = _update(policy, _shown(curves, epochs, history))
        history.append(copy.deepcopy(weights))
        yield weights


def _update(policy: ClassPolicy, curves: TeachingCurves) -> ClassWeights:
    """What it answers, which must be two numbers a class at least."""
    weights = policy.update(curves)
    _require_shaped(weights, "update")
    return weights


def _play(policy: ClassPolicy, curves: TeachingCurves) -> list[ClassWeights]:
    """Copies of all its answers."""
    return [copy.deepcopy(weights) for weights in _played(policy, curves)]


def _require_shaped(weights: Any, who: str) -> list[tuple[str, str, Floats]]:
    """Hold what was answered against its type and shapes.

    Returns:
        What was answered: its name, what it is, its values.
    """
    require(
        isinstance(weights, ClassWeights),
        f"{who} answered {type(weights).__name__}; it must be kdzoo.ClassWeights",
    )
    found = []
    for which, what in _ANSWERED.items():
        if getattr(weights, which) is None and which in _OPTIONAL:
            continue
        values: Floats = np.asarray(getattr(weights, which), dtype=np.float64)
        require(
            values.shape == (len(_CLASSES),),
            f"{who} answered {what} of shape {values.shape}; it must be one a class, "
            f"({len(_CLASSES)},)",
        )
        found.append((which, what, values))
    return found


def _require_valid(weights: Any, who: str) -> None:
    for which, what, values in _require_shaped(weights, who):
        require(
            bool(np.isfinite(values).all() and (values >= 0).all()),
            f"{who} answered {what} that are negative, NaN or infinite: {values.tolist()}",
        )
        require(
            which != "columns" or bool((values <= 1).all()),
            f"{who} answered columns above 1: {values.tolist()}; they say how much is left",
        )
        require(
            which != "states" or bool(np.isin(values, list(ClassState)).all()),
            f"{who} answered states that are none of kdzoo.ClassState: {values.tolist()}",
        )


def _alike(one: Sequence[ClassWeights], other: Sequence[ClassWeights]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(getattr(a, which), getattr(b, which))
        for a, b in zip(one, other, strict=True)
        for which in _ANSWERED
    )


def _equal(one: TeachingCurves, other: TeachingCurves) -> bool:
    for name, values in vars(one).items():
        others = getattr(other, name)
        if isinstance(values, TeachingCurves):
            if not _equal(values, others):
                return False
        elif values is not None and not np.array_equal(values, others, equal_nan=True):
            return False
    return True
