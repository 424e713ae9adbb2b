"""For each check of a class policy a broken one that it catches, and where possible no other."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from proving import caught, quick

import kdzoo
from kdzoo.testing import run_checks
from kdzoo.testing.policies import PolicyChecks

EVERY = quick(PolicyChecks, but=set())


class Sound(kdzoo.ClassPolicy):
    """A class that was behind its baseline three times is not taught."""

    name = "sound"

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        if not (setting.has_baseline and setting.teacher_weight and setting.label_weight):
            raise kdzoo.SpecError("needs a baseline, a teacher and labels")
        self.behind = np.zeros(len(setting.classes), dtype=np.int64)

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        assert curves.baseline is not None
        self.behind += curves.student[-1] < curves.baseline[-1] - 0.05
        taught = np.where(self.behind < 3, 1.0, 0.0)
        return kdzoo.ClassWeights(teacher=taught, label=np.ones(len(taught)))

    def state_dict(self) -> dict[str, Any]:
        return {"behind": self.behind.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.behind = np.array(state["behind"], dtype=np.int64)


class Undescribed(Sound):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        margin: float = 0.0


class SaysThatItNeedsABaseline(Sound):
    """And so leaves it to the engine to refuse where there is none."""

    needs_baseline = True

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        assert setting.has_baseline
        super().setup(setting)


class NeedsInWords(Sound):
    """Says what it needs in words."""

    needs_baseline = "no"  # type: ignore[assignment]


class MoreThreads(Sound):
    """Gives torch another thread where it goes on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        torch.set_num_threads(torch.get_num_threads() + 1)


class NanForNan(Sound):
    """Hands on what is not known of a class."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        return kdzoo.ClassWeights(weights.teacher + 0 * curves.student[-1], weights.label)


class FailsWithoutLabels(Sound):
    """Divides by the weight of the label terms, which may be 0."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        self.behind = np.zeros(len(setting.classes), dtype=np.int64)
        if not setting.has_baseline:
            raise kdzoo.SpecError("needs a baseline")
        self.factor = 1 / setting.label_weight


class Draws(Sound):
    """Draws lots."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        return kdzoo.ClassWeights(weights.teacher * np.random.uniform(0.5, 1), weights.label)


class OwnLots(Sound):
    """Draws lots, the same ones under the same seed of the process."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        lots = np.random.default_rng(torch.initial_seed())
        self.kept = lots.uniform(0.5, 1, len(setting.classes))

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        return kdzoo.ClassWeights(weights.teacher * self.kept, weights.label)


class OneForAll(Sound):
    """What it decided after an epoch belongs to the class."""

    decided: ClassVar[dict[int, kdzoo.ClassWeights]] = {}

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.decided.clear()

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        return self.decided.setdefault(len(curves.student), super().update(curves))


class CleansUp(Sound):
    """Writes into the curves that it is shown."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        np.nan_to_num(curves.student, copy=False)
        curves.student[-1] += 0.001
        return super().update(curves)


class FillsGaps(Sound):
    """Writes into the curves where nothing is known of a class."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        np.nan_to_num(curves.student[-1], copy=False)
        return super().update(curves)


class WantsValidation(Sound):
    """Reads validation images and does not say so."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        assert curves.validation is not None
        return super().update(curves.validation)


class RefusesWithoutValidation(Sound):
    """Refuses a run that has no validation images, and does not say that it needs them."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        if setting.validation is None:
            raise kdzoo.SpecError("needs validation images")


class TakesValidation(Sound):
    """Reads validation images where there are some, and does not say so."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        return super().update(curves.validation or curves)


class TakesSimilarity(Sound):
    """Reads the similarity of the features where there is one, and does not say so."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        if curves.similarity is None:
            return weights
        return kdzoo.ClassWeights(weights.teacher * (curves.similarity[-1] > 0), weights.label)


class SaysWhatItReads(TakesSimilarity):
    """Reads both, and says so."""

    needs_validation = True
    needs_similarity = True

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        assert curves.validation is not None
        return super().update(curves.validation)


class AnswersItself(Sound):
    """Answers the array that it goes on writing into."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.taught = np.ones(len(setting.classes))

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        self.taught[:] = super().update(curves).teacher
        return kdzoo.ClassWeights(teacher=self.taught, label=np.ones(len(self.taught)))


class ArrayInState(Sound):
    """Its state holds more than data."""

    def state_dict(self) -> dict[str, Any]:
        return {"behind": self.behind.copy()}


class Forgets(Sound):
    """Counts its decisions in a number that is not saved."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.updates = 0

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        self.updates += 1
        weights = super().update(curves)
        return kdzoo.ClassWeights(weights.teacher / self.updates, weights.label)


class Uncopyable(Sound):
    """Holds what cannot be copied."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.lock = threading.Lock()


class Huge(Sound):
    """Its first weights are finite, and leave the range of single precision."""

    def initial(self, num_classes: int) -> kdzoo.ClassWeights:
        huge = np.full(num_classes, 3.4e38)
        return kdzoo.ClassWeights(teacher=huge, label=huge)


class Columns(Sound):
    """Takes a class's column out where it is not taught, and says so."""

    sets_columns = True

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        taught = weights.teacher > 0
        return kdzoo.ClassWeights(
            weights.teacher,
            weights.label,
            self.columns(taught, curves),
            self.states(taught, curves),
        )

    def columns(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        return np.where(taught, 1.0, 0.0)

    def states(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        return np.where(taught, kdzoo.ClassState.TAUGHT, kdzoo.ClassState.UNTAUGHT)


class ColumnsUnsaid(Columns):
    """Takes columns out, and does not say so."""

    sets_columns = False


class MoreThanAll(Columns):
    """More than all is left of the column of a class without samples."""

    def columns(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        return np.where(np.isnan(curves.student[-1]), 1.5, super().columns(taught, curves))


class NoSuchState(Columns):
    """Has a state of its own for a class without samples."""

    def states(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        return np.where(np.isnan(curves.student[-1]), 7, super().states(taught, curves))


class OneState(Columns):
    """Has a state for all classes at once."""

    def states(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        states = super().states(taught, curves)
        return states[:1] if np.isnan(curves.student[-1]).any() else states


class AnswersItsColumns(Columns):
    """Answers the columns that it goes on writing into."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.left = np.ones(len(setting.classes))

    def columns(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        self.left[:] = super().columns(taught, curves)
        return self.left


class ForgetsItsStates(Columns):
    """What it calls a class depends on how often it was asked, which is not saved."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        super().setup(setting)
        self.updates = 0

    def states(self, taught: np.ndarray, curves: kdzoo.TeachingCurves) -> np.ndarray:
        self.updates += 1
        states = super().states(taught, curves)
        return states if self.updates > 3 else np.full_like(states, kdzoo.ClassState.WARM_UP)


EXACTLY: list[tuple[type[kdzoo.ClassPolicy], str]] = [
    (Undescribed, "contract"),
    (MoreThreads, "leaves_torch_alone"),
    (NanForNan, "valid_weights"),
    (FailsWithoutLabels, "settings"),
    (OwnLots, "pure"),
    (Draws, "pure"),
    (OneForAll, "instances"),
    (CleansUp, "leaves_the_curves_alone"),
    (FillsGaps, "leaves_the_curves_alone"),
    (WantsValidation, "declared_needs"),
    (TakesValidation, "declared_needs"),
    (RefusesWithoutValidation, "declared_needs"),
    (TakesSimilarity, "declared_needs"),
    (ColumnsUnsaid, "in_a_distiller"),
    (AnswersItself, "answers_stay"),
    (ArrayInState, "state_dict"),
    (Forgets, "resume"),
    (Uncopyable, "copies"),
    (Huge, "in_a_distiller"),
    (MoreThanAll, "valid_weights"),
    (NoSuchState, "valid_weights"),
    (OneState, "valid_weights"),
    (AnswersItsColumns, "answers_stay"),
    (ForgetsItsStates, "resume"),
]


@pytest.mark.parametrize("sound", [Sound, Columns, SaysWhatItReads, SaysThatItNeedsABaseline])
def test_what_is_sound_passes_every_check(sound: type[kdzoo.ClassPolicy]) -> None:
    assert caught(sound) == set()


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(mutant: type[kdzoo.ClassPolicy], check: str) -> None:
    assert caught(mutant) == {check}


def test_what_is_declared_in_words_is_named() -> None:
    (result,) = run_checks(NeedsInWords, checks=["valid_weights"])
    assert "needs_baseline is 'no'; it must be True or False" in str(result.reason)


class AnswersATuple(Sound):
    """Answers the two vectors as they are."""

    def update(self, curves: kdzoo.TeachingCurves) -> Any:
        weights = super().update(curves)
        return weights.teacher, weights.label


class OneTooFew(Sound):
    """Forgets the last class."""

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = super().update(curves)
        return kdzoo.ClassWeights(weights.teacher[:-1], weights.label)


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (AnswersATuple, "update answered tuple; it must be kdzoo.ClassWeights"),
        (OneTooFew, "update answered teacher weights of shape (9,); it must be one a class, (10,)"),
    ],
)
def test_what_is_no_answer_is_named_by_every_check(
    mutant: type[kdzoo.ClassPolicy], said: str
) -> None:
    checks = ["valid_weights", "settings", "pure", "state_dict", "copies"]
    assert [result.reason for result in run_checks(mutant, checks=checks)] == [said] * len(checks)


def test_every_check_is_proved() -> None:
    assert {check for _, check in EXACTLY} == set(EVERY)
