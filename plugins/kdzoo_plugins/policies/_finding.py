"""Watching for undistillable classes: what ``tllm`` and the controls that act with it share."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are used: stats takes a third of torch's time
from pydantic import ValidationInfo, field_validator

import kdzoo
from kdzoo_plugins.policies._sequential import SequentialTest
from kdzoo_plugins.policies._signals import Signal, read_signal
from kdzoo_plugins.policies._untaught import UntaughtPolicy, refuse_few_images, refuse_too_many

__all__ = ["Bools", "FindingParams", "FindingPolicy", "epochs_since_restart"]

Bools = npt.NDArray[np.bool_]

log = logging.getLogger("kdzoo")

_FEWEST = {"baseline": 10, "residual": 10, "agreement": 10, "divergence": 10, "cka": 50}
_KNOWS_ALL = 0.98  # a teacher above this training accuracy


class FindingParams(kdzoo.Params):
    """What can be set about how classes are found."""

    signal: Signal = kdzoo.Field(
        "baseline",
        description="What is read: the accuracy less that of the baseline run; the accuracy "
        "that the teacher's does not explain (residual); the agreement with the teacher; the "
        "divergence from it; the similarity of features (cka).",
    )
    source: Literal["training", "validation"] = kdzoo.Field(
        "training",
        description="On which images: the training samples as they pass, or the validation "
        "images after each epoch.",
    )
    start_epoch: int = kdzoo.Field(
        10, ge=1, description="The first check comes after this epoch of the run."
    )
    margin: Annotated[float, kdzoo.Range(low=0.01, high=0.2, log=True)] = kdzoo.Field(
        0.02,
        ge=0,
        lt=1,
        description="How far below the median class's a class's signal may be, in its own "
        "unit: a share for accuracies, the logarithm of a ratio for the divergence.",
    )
    false_discoveries: float = kdzoo.Field(
        0.1, gt=0, lt=1, description="The rate of false discoveries among the classes found."
    )
    patience: Annotated[int, kdzoo.Range(low=1, high=5)] = kdzoo.Field(
        3, ge=1, description="In how many checks in a row, before teaching stops."
    )
    window: int = kdzoo.Field(5, ge=1, description="Over how many epochs the curves are averaged.")
    last_epoch: int | None = kdzoo.Field(
        None, ge=1, description="After this epoch of the run nothing changes any more."
    )
    max_fraction: float = kdzoo.Field(
        0.2,
        ge=0,
        le=1,
        description="At most this share of the classes is not taught, rounded down, but at "
        "least one class; 0 for none. Two classes are always taught.",
    )

    @field_validator("last_epoch")
    @classmethod
    def _in_time(cls, last_epoch: int | None, known: ValidationInfo) -> int | None:
        try:
            first, why = _first_stop(known.data)
        except KeyError:  # what is wrong with that one is said already
            return last_epoch
        if last_epoch is not None and last_epoch < first:
            raise ValueError(f"is {last_epoch}, and {why}")
        return last_epoch


class FindingPolicy(UntaughtPolicy):
    """A policy that tests each class after each epoch, and stops some when it finds one: see
    :class:`~kdzoo_plugins.policies.tllm.TLLM`."""

    @property
    def needs_baseline(self) -> bool:
        """See :attr:`kdzoo.ClassPolicy.needs_baseline`."""
        signal: Signal = self.params.signal
        return signal == "baseline"

    @property
    def needs_validation(self) -> bool:
        """See :attr:`kdzoo.ClassPolicy.needs_validation`."""
        return super().needs_validation or self.params.source == "validation"

    @property
    def needs_similarity(self) -> bool:
        """See :attr:`kdzoo.ClassPolicy.needs_similarity`."""
        signal: Signal = self.params.signal
        return signal == "cka"

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        super().setup(setting)
        params, count = self.params, len(setting.classes)
        refuse_too_many(1, setting)
        if params.signal == "cka" and params.source == "training" and self.needs_validation:
            raise kdzoo.SpecError(
                "features are compared on the validation images where a policy looks at these, as "
                "with `balance_on: validation`; say `source: validation` too"
            )
        if params.signal == "cka" and params.source == "training" and setting.samples is None:
            raise kdzoo.SpecError(
                f'signal "cka" compares features within a class, which takes {_FEWEST["cka"]} '
                "training images of each, and how many there are is not known; pass their classes "
                "as `targets=`"
            )
        if params.source == "validation" or params.signal == "cka":
            refuse_few_images(setting, _FEWEST[params.signal], params.source)
        first, why = _first_stop(vars(params))
        if setting.epochs is not None and setting.epochs <= first:
            log.warning(
                'policy "%s" can stop no class in %d epochs: %s',
                self.name,
                setting.epochs,
                why,
            )
        self._names, self._epochs = setting.classes, setting.epochs
        least = 1 if params.max_fraction else 0
        cap = max(math.floor(params.max_fraction * count + 1e-9), least)
        self._cap = min(cap, count - 2)
        self._test = SequentialTest(count, params.patience, params.false_discoveries)
        self._found: Bools = np.zeros(count, dtype=np.bool_)
        self._stopped: Bools = np.zeros(count, dtype=np.bool_)
        self._suspect: Bools = np.zeros(count, dtype=np.bool_)
        self._begun = False

    def initial(self, num_classes: int) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.initial`."""
        return self._answer(0)

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        params, epochs = self.params, len(curves.student)
        if not self._begun:  # it may be the policy of a later stage
            self._begun = True
            self._warn_of_a_teacher_that_knows_all(curves)
            if params.signal == "baseline" and self._read(curves).baseline is None:
                raise kdzoo.SpecError(
                    "the curves of the validation images have no baseline: pass "
                    "`validation_baseline`"
                )
        if params.last_epoch is None or epochs <= params.last_epoch:
            self.steer(curves, self._stopped)
            if epochs >= params.start_epoch:
                self._check(curves)
        return self._answer(epochs)

    @abstractmethod
    def chosen(self, found: Bools, curves: kdzoo.TeachingCurves) -> Bools:
        """Which classes (C,) are stopped, now that those in ``found`` (C,) have been found."""

    def _check(self, curves: kdzoo.TeachingCurves) -> None:
        window = self.params.window
        if epochs_since_restart(curves) < window:
            self._test.restart()
            self._suspect = np.zeros_like(self._suspect)
            return
        reading = read_signal(self.params.signal, self._read(curves), window)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (-self.params.margin - reading.value) / reading.error
        p = np.where(reading.error > 0, scipy.stats.norm.sf(z), 1.0)
        values, found, seen = self._test.look(p)
        room = max(self._cap - int(self._found.sum()), 0)
        ripe = np.flatnonzero(found & ~self._found)
        new = np.zeros_like(self._found)
        new[ripe[np.argsort(values[ripe], kind="stable")][:room]] = True
        self._test.keep(values, new)
        self._found = self._found | new
        stopped = self._stopped | self.chosen(new, curves)
        self._warn_of_a_late_find(stopped & ~self._stopped, len(curves.student))
        self._stopped = stopped
        self._suspect = (seen | found) & ~self._found

    def _read(self, curves: kdzoo.TeachingCurves) -> kdzoo.TeachingCurves:
        read = curves.validation if self.params.source == "validation" else curves
        assert read is not None
        return read

    def _answer(self, epochs: int) -> kdzoo.ClassWeights:
        state = kdzoo.ClassState
        taught = state.WARM_UP if epochs < self.params.start_epoch else state.TAUGHT
        states = np.where(self._suspect, state.SUSPECT, taught)
        states = np.where(self._stopped, state.UNTAUGHT, states)
        return self.weights(self._stopped, states)

    def _warn_of_a_teacher_that_knows_all(self, curves: kdzoo.TeachingCurves) -> None:
        """Once, after the policy's first epoch: what is compared with it is then hardly more than
        the student's own accuracy."""
        teacher, samples = curves.teacher[-1], curves.samples[-1]
        known = np.isfinite(teacher) & (samples > 0)
        if self.params.source == "validation" or not known.any():
            return
        accuracy = float(np.average(teacher[known], weights=samples[known]))
        if self.params.signal in ("residual", "agreement", "divergence") and accuracy > _KNOWS_ALL:
            log.warning(
                'policy "%s": the teacher is right on %.1f %% of the training images, so that '
                'signal "%s" says little there; use `signal: baseline` or `source: validation`',
                self.name,
                100 * accuracy,
                self.params.signal,
            )

    def _warn_of_a_late_find(self, new: Bools, epochs: int) -> None:
        """Where the weight of a class's label terms begins to be steered shortly before it ends."""
        ends = [end for end in (self.params.last_epoch, self._epochs) if end is not None]
        if not new.any() or not self.params.balance or not ends or epochs == self._epochs:
            return
        left = min(ends) - epochs
        if left < self.params.window:
            log.warning(
                'policy "%s": %s: found after epoch %d; the weight of their label terms changes '
                "for %d more epochs only, and may end where they are answered too seldom or too "
                "often: with a smaller start_epoch or patience classes are found earlier",
                self.name,
                ", ".join(self._names[c] for c in np.flatnonzero(new)),
                epochs,
                left,
            )

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.ClassPolicy.state_dict`."""
        return {
            "found": self._found.tolist(),
            "stopped": self._stopped.tolist(),
            "suspect": self._suspect.tolist(),
            "begun": self._begun,
            "test": self._test.state_dict(),
            **super().state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`kdzoo.ClassPolicy.load_state_dict`."""
        self._found = np.array(state["found"], dtype=np.bool_)
        self._stopped = np.array(state["stopped"], dtype=np.bool_)
        self._suspect = np.array(state["suspect"], dtype=np.bool_)
        self._begun = state["begun"]
        self._test.load_state_dict(state["test"])
        super().load_state_dict(state)


def _first_stop(params: Mapping[str, Any]) -> tuple[int, str]:
    """The first epoch after which a class could be stopped, and the same with its reasons."""
    start, window, patience = (params[key] for key in ("start_epoch", "window", "patience"))
    first = max(start, window) + patience - 1
    return first, (
        f"with a start_epoch of {start}, a window of {window} and a patience of {patience} the "
        f"first class could be stopped after epoch {first}"
    )


def epochs_since_restart(curves: kdzoo.TeachingCurves) -> int:
    """How many epochs there were since the stage began, or the learning rate fell to half or less:
    the curves bend there, and what was before says nothing of what comes."""
    for epoch in range(len(curves.student) - 1, 0, -1):
        if curves.stage is not None and curves.stage[epoch] != curves.stage[epoch - 1]:
            return len(curves.student) - epoch
        rates = curves.learning_rate
        if rates is not None and rates[epoch] <= rates[epoch - 1] / 2:
            return len(curves.student) - epoch
    return len(curves.student)
