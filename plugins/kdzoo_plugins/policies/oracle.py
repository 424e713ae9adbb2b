"""A control: do not teach the classes that distillation hurt in earlier runs."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

import kdzoo
from kdzoo_plugins.policies._signals import recent
from kdzoo_plugins.policies._untaught import ListedPolicy, UntaughtParams

__all__ = ["Oracle"]

log = logging.getLogger("kdzoo")

Floats = npt.NDArray[np.float64]


class Oracle(ListedPolicy):
    """A control: the classes that earlier runs of other seeds hurt are not taught, from the first
    epoch on.

    What a policy could do that knew all along which classes the teacher makes worse. A class's harm
    is how far the student stayed below its baseline on the validation images, over the last epochs
    and all runs but those of this run's own seed, less that of the median class. So ``runs`` may
    name the same runs for each of several seeds.
    """

    name = "oracle"

    class Params(UntaughtParams):
        """What can be set."""

        runs: tuple[str, ...] = kdzoo.Field(
            min_length=1,
            description="The directories of finished runs with `policy: all`, a baseline and "
            "validation images; relative to the working directory.",
        )
        margin: float = kdzoo.Field(
            0.02, ge=0, lt=1, description="How far below the median class's a class's gap was."
        )
        window: int = kdzoo.Field(
            5, ge=1, description="Over how many of the last epochs the gap is averaged."
        )
        max_fraction: float = kdzoo.Field(
            0.2,
            ge=0,
            le=1,
            description="At most this share of the classes is not taught, rounded down, but at "
            "least one class: those that were hurt most.",
        )

    def listed(self, setting: kdzoo.PolicySetting) -> npt.NDArray[np.bool_]:
        """See :class:`~kdzoo_plugins.policies._untaught.ListedPolicy`."""
        directories = [Path(name) for name in self.params.runs]
        places = [directory.resolve() for directory in directories]
        for directory, place in zip(directories, places, strict=True):
            if places.count(place) > 1:
                raise kdzoo.SpecError(f"runs: {directory} is named twice; name each run once")
        known = [_Run(directory, setting) for directory in directories]
        others = [run for run in known if run.seed != setting.seed]
        if not others:
            raise kdzoo.SpecError(
                f"runs: all are of this run's own seed, {setting.seed}; name runs of other seeds"
            )
        gap = np.mean([run.gap(self.params.window) for run in others], axis=0)
        gap -= np.median(gap)
        cap = max(math.floor(self.params.max_fraction * len(gap) + 1e-9), 1)
        listed = np.zeros(len(gap), dtype=np.bool_)
        listed[np.argsort(gap, kind="stable")[:cap]] = True
        listed &= gap < -self.params.margin
        names = [name for name, so in zip(setting.classes, listed, strict=True) if so]
        count = (
            "1 run of another seed" if len(others) == 1 else f"{len(others)} runs of other seeds"
        )
        log.info("policy oracle: hurt in %s: %s", count, ", ".join(names) or "no class")
        return listed


class _Run:
    """A finished run, as far as its directory tells how much each class was hurt."""

    def __init__(self, directory: Path, setting: kdzoo.PolicySetting) -> None:
        if not (directory / "spec.yaml").exists():
            raise kdzoo.SpecError(
                f"runs: {directory} holds no run; name the directories of single runs, also of a "
                "study too"
            )
        try:
            self.seed = kdzoo.read_spec(directory / "spec.yaml").seed
            names, curves = kdzoo.read_curves(directory / "classes.csv")
            images = kdzoo.Report.read(directory / "report.json").data
        except kdzoo.KdzooError as error:
            raise kdzoo.SpecError(f"runs: {error}") from error
        measured = curves.validation
        if measured is None or measured.baseline is None or np.isnan(measured.baseline[-1]).any():
            raise kdzoo.SpecError(
                f"runs: {directory} has not measured a baseline on validation images; it needs "
                "`validation` in data, a baseline, and some of each class"
            )
        if names != setting.classes:
            raise kdzoo.SpecError(
                f"runs: {directory} is about other classes; name runs on the same data"
            )
        if setting.images not in (None, images):
            raise kdzoo.SpecError(
                f"runs: {directory} is about other images; name runs on the same data"
            )
        if (curves.teacher_weight != 1).any():
            raise kdzoo.SpecError(
                f"runs: {directory} has not taught every class throughout; name runs with "
                "`policy: all`"
            )
        self._gap: Floats = measured.student - measured.baseline

    def gap(self, window: int) -> Floats:
        """(C,), the student's accuracy less the baseline's over the last epochs that both have: an
        earlier stage may have no baseline."""
        return recent(self._gap, window)


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Oracle]
