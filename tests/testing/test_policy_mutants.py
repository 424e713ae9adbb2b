"""For each check of a class policy a broken one that it catches, and where possible no other."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from proving import caught, quick

import kdzoo
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


EXACTLY: list[tuple[type[kdzoo.ClassPolicy], str]] = [
    (Undescribed, "contract"),
    (NanForNan, "valid_weights"),
    (FailsWithoutLabels, "settings"),
    (OneForAll, "instances"),
    (CleansUp, "leaves_the_curves_alone"),
    (AnswersItself, "answers_stay"),
    (ArrayInState, "state_dict"),
    (Forgets, "resume"),
    (Uncopyable, "copies"),
    (Huge, "in_a_distiller"),
]


def test_what_is_sound_passes_every_check() -> None:
    assert caught(Sound) == set()


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(mutant: type[kdzoo.ClassPolicy], check: str) -> None:
    assert caught(mutant) == {check}


def test_what_is_drawn_differs_in_all_comparisons() -> None:
    assert caught(Draws) == {"pure", "instances", "resume"}


def test_every_check_is_proved() -> None:
    """What is drawn anew each time, every check that compares two runs must see."""
    assert {check for _, check in EXACTLY} | {"pure"} == set(EVERY)
