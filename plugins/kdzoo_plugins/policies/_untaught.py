"""What a class gets that is no longer taught: shared by the policies that stop teaching classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import kdzoo

__all__ = [
    "LabelParams",
    "ListedPolicy",
    "UntaughtParams",
    "UntaughtPolicy",
    "refuse_few_images",
    "refuse_too_many",
]

Bools = npt.NDArray[np.bool_]

_STEEPNESS = 5.0  # answered 1 % too seldom, a class's factor rises by 5 % an epoch
_REACH = np.log(2.0)  # and by no more than that, however seldom: it would be too often next time
_GROWTH = 1.2
_LEAST, _MOST = 0.01, 10.0  # of what gives the label terms their weight in the baseline


class LabelParams(kdzoo.Params):
    """What can be set about the label terms of classes that a policy has chosen."""

    balance: bool = kdzoo.Field(
        True,
        description="Adjust the factor on their label terms after each epoch, so that each is "
        "answered as often as it comes.",
    )
    balance_on: Literal["training", "validation"] = kdzoo.Field(
        "training", description="On which images the answers are counted."
    )
    label_weight: float | None = kdzoo.Field(
        None,
        ge=0,
        description="The factor on their label terms; with `balance` the one that it begins with. "
        "None: as much as the baseline gives them, where label terms weigh 1, or with `balance` "
        "the square root of that.",
    )


class UntaughtParams(LabelParams):
    """What can be set about classes that are no longer taught."""

    teacher_weight: float = kdzoo.Field(
        0.0, ge=0, le=1, description="What untaught classes get of the teacher's terms."
    )
    scope: Literal["samples", "column"] = kdzoo.Field(
        "samples",
        description="Where: in the classes' own samples, or also in the soft targets of all "
        "others, where the class's column is taken out (or weighs `teacher_weight`) and the rest "
        "renormalized.",
    )


class UntaughtPolicy(kdzoo.ClassPolicy):
    """A policy under which some classes are not taught, as its :class:`UntaughtParams` say.

    A class that loses the teacher's terms is left with label terms that were meant to be a small
    part of its loss: it starves, and is answered too seldom. With all of its weight on them it is
    pulled harder than its neighbours, which still follow soft targets, and takes their images.
    Where between the two it keeps its share depends on the data. So the factor begins between the
    two (their geometric mean), and is steered by that share: after each epoch it is multiplied by
    (samples of the class / samples answered with the class)^5, but by 2 at most, and each time that
    it turns round by half as much at most. (Without that bound the factor swings from end to end in
    a student that is still learning fast.)
    """

    @property
    def needs_validation(self) -> bool:
        """See :attr:`kdzoo.ClassPolicy.needs_validation`."""
        params: LabelParams = self.params
        return params.balance and params.balance_on == "validation"

    @property
    def left(self) -> float:
        """What untaught classes get of the teacher's terms."""
        params: UntaughtParams = self.params
        return params.teacher_weight

    @property
    def sets_columns(self) -> bool:
        """See :attr:`kdzoo.ClassPolicy.sets_columns`."""
        params: UntaughtParams = self.params
        return params.scope == "column"

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        params: LabelParams = self.params
        self._whole = setting.label_factor(self.left)
        first = params.label_weight
        if first is None:
            first = self._whole**0.5 if params.balance else self._whole
        if params.balance and params.balance_on == "validation":
            refuse_few_images(setting, 1, "validation")
        count = len(setting.classes)
        self._factors: npt.NDArray[np.float64] = np.full(count, first)
        self._reach: npt.NDArray[np.float64] = np.full(count, _REACH)  # of a step, as a logarithm
        self._last: npt.NDArray[np.float64] = np.zeros(count)  # its direction: -1, 0 or 1

    def weights(
        self, untaught: Bools, states: npt.NDArray[np.int64] | None = None
    ) -> kdzoo.ClassWeights:
        """The weights where ``untaught`` (C,) says which classes are not taught, and ``states``
        (C,) more than that."""
        if states is None:
            states = np.where(untaught, kdzoo.ClassState.UNTAUGHT, kdzoo.ClassState.TAUGHT)
        teacher = np.where(untaught, self.left, 1.0)
        return kdzoo.ClassWeights(
            teacher=teacher,
            label=np.where(untaught, self._factors, 1.0),
            columns=teacher.copy() if self.sets_columns else None,
            states=states,
        )

    def steer(self, curves: kdzoo.TeachingCurves, untaught: Bools) -> None:
        """After an epoch in which the classes in ``untaught`` (C,) were not taught."""
        params: LabelParams = self.params
        if not params.balance:
            return
        counted = curves.validation if params.balance_on == "validation" else curves
        assert counted is not None
        samples, answered = counted.samples[-1], counted.predicted[-1]
        known = untaught & (samples > 0)
        share = np.where(known, np.maximum(answered, 1.0) / np.maximum(samples, 1.0), 1.0)
        wanted = -_STEEPNESS * np.log(share)
        turned = np.sign(wanted) * self._last < 0
        grown = np.minimum(_GROWTH * self._reach, _REACH)
        reach = np.where(turned, self._reach / 2, grown)
        factors = self._factors * np.exp(np.clip(wanted, -reach, reach))
        bounded = np.clip(factors, _LEAST * self._whole, _MOST * self._whole)
        self._factors = np.where(known, bounded, self._factors)
        self._reach = np.where(known, reach, self._reach)
        self._last = np.where(known & (wanted != 0), np.sign(wanted), self._last)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.ClassPolicy.state_dict`."""
        return {
            "factors": self._factors.tolist(),
            "reach": self._reach.tolist(),
            "last": self._last.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`kdzoo.ClassPolicy.load_state_dict`."""
        self._factors, self._reach, self._last = (
            np.array(state[key], dtype=np.float64) for key in ("factors", "reach", "last")
        )


class ListedPolicy(UntaughtPolicy):
    """A policy that knows before the training which classes are not taught."""

    @abstractmethod
    def listed(self, setting: kdzoo.PolicySetting) -> Bools:
        """(C,), which classes."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        super().setup(setting)
        self._listed = self.listed(setting)
        refuse_too_many(int(self._listed.sum()), setting)

    def initial(self, num_classes: int) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.initial`."""
        return self.weights(self._listed)

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        self.steer(curves, self._listed)
        return self.weights(self._listed)


def refuse_too_many(untaught: int, setting: kdzoo.PolicySetting) -> None:
    """Raise a SpecError unless two classes at least are taught: one alone has nothing to be told
    apart from."""
    if len(setting.classes) - untaught < 2:
        raise kdzoo.SpecError(
            f"{untaught} of {len(setting.classes)} classes would not be taught; two at least must "
            "be"
        )


def refuse_few_images(
    setting: kdzoo.PolicySetting, least: int, which: Literal["training", "validation"]
) -> None:
    """Raise a SpecError where a class is known to have fewer images than are needed.

    Args:
        setting: what the policy decides about.
        least: how many each class needs.
        which: of which images.
    """
    counts = setting.samples if which == "training" else setting.validation
    for name, count in zip(setting.classes, counts or (), strict=False):
        if count < least:
            more = "; raise `validation` in data" if which == "validation" else ""
            raise kdzoo.SpecError(
                f'class "{name}" has {count} {which} images, and {least} of each class are '
                f"needed{more}"
            )
