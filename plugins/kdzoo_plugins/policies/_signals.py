"""What can be read out of the teaching curves about a class: the signals of ``tllm``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

import kdzoo

__all__ = ["SIGNALS", "Reading", "Signal", "read_signal", "recent"]

Floats = npt.NDArray[np.float64]
Signal = Literal["baseline", "residual", "agreement", "divergence", "cka"]

_ALIKE = 0.5  # the share of classes taken to differ by nothing that a teacher does


@dataclass(frozen=True)
class Reading:
    """A signal's value for each class, and how far it may be off.

    Attributes:
        value: (C,), less its median over classes; below zero where a class does worse. NaN where
            it is not known.
        error: (C,), its standard error; NaN likewise.
    """

    value: Floats
    error: Floats


def read_signal(signal: Signal, curves: kdzoo.TeachingCurves, window: int) -> Reading:
    """A signal, averaged over the last epochs, as a deviation from the median class.

    Where the signal is made of accuracies, its error is that with which so many images tell them.
    The images of one epoch count once, however long the window, since the same ones return in each.
    Student and baseline saw the same images: how often just one of the two was right is counted
    where the curves say it (``both_right``), as McNemar (1947) does; else the two are taken to err
    independently, which is too cautious by a factor of about two. Another seed also changes which
    images they are right on, and that is in this count.

    All signals but the gap to the baseline differ from class to class anyhow. There a class is
    remarkable only if it stands out from the others (the empirical null of Efron, "Large-Scale
    Simultaneous Hypothesis Testing", JASA 2004): the error is at least the spread of the half of
    them that is nearest to the median.

    Args:
        signal: which one.
        curves: at least one epoch, C classes; of training samples, or of validation images.
        window: how many epochs to average over.
    """
    value, variance = SIGNALS[signal](curves, window)
    known = np.isfinite(value)
    if not known.any():
        return Reading(np.full_like(value, np.nan), np.full_like(value, np.nan))
    value = np.where(known, value, np.nan) - np.median(value[known])
    # The median has an error too: pi / (2 C) of the variance of one class, if they are alike.
    error = np.sqrt(variance * (1 + math.pi / (2 * known.sum())))
    if signal != "baseline":
        nearest = np.quantile(np.abs(value[known]), _ALIKE)
        error = np.maximum(error, nearest / scipy.stats.norm.ppf((1 + _ALIKE) / 2))
    return Reading(value, np.where(known, error, np.nan))


def _baseline(curves: kdzoo.TeachingCurves, window: int) -> tuple[Floats, Floats]:
    """The student's accuracy less that of the baseline at the same epoch.

    The variance is that of a difference of paired shares, with half an image more in each of the
    four cells: Agresti & Min, "Simple Improved Confidence Intervals for Comparing Matched
    Proportions" (Statistics in Medicine 2005).
    """
    assert curves.baseline is not None
    student, baseline, both = curves.student, curves.baseline, curves.both_right
    gap = recent(student - baseline, window)
    differing = student + baseline - 2 * (student * baseline if both is None else both)
    samples = curves.samples[-window:].max(0)
    apart = (samples * recent(differing, window) + 1) / (samples + 2)
    variance = (apart - (samples * gap / (samples + 2)) ** 2) / (samples + 2)
    return gap, np.maximum(np.nan_to_num(variance), 0)


def _residual(curves: kdzoo.TeachingCurves, window: int) -> tuple[Floats, Floats]:
    """What least squares over the classes leaves of the student's accuracy after a straight line
    in the teacher's."""
    y, x = recent(curves.student, window), recent(curves.teacher, window)
    known = np.isfinite(x) & np.isfinite(y)
    variance = _variance(curves, curves.student, window)
    if not known.any():
        return np.full_like(y, np.nan), variance
    x = x - x[known].mean()
    spread = float((x[known] ** 2).sum())
    slope = float((x[known] * y[known]).sum()) / spread if spread > 0 else 0.0
    return y - slope * x, variance


def _agreement(curves: kdzoo.TeachingCurves, window: int) -> tuple[Floats, Floats]:
    """How often student and teacher have the same top-1."""
    return recent(curves.agreement, window), _variance(curves, curves.agreement, window)


def _divergence(curves: kdzoo.TeachingCurves, window: int) -> tuple[Floats, Floats]:
    """Minus the logarithm of the mean KL(teacher || student)."""
    mean = recent(curves.divergence, window)
    with np.errstate(invalid="ignore"):
        return -np.log(np.maximum(mean, 1e-12)), np.zeros_like(mean)


def _cka(curves: kdzoo.TeachingCurves, window: int) -> tuple[Floats, Floats]:
    """The debiased CKA of the two networks' penultimate layers."""
    assert curves.similarity is not None
    mean = recent(curves.similarity, window)
    return mean, np.zeros_like(mean)


SIGNALS: dict[Signal, Callable[[kdzoo.TeachingCurves, int], tuple[Floats, Floats]]] = {
    "baseline": _baseline,
    "residual": _residual,
    "agreement": _agreement,
    "divergence": _divergence,
    "cka": _cka,
}
"""From curves and a window to each class's value (C,), and its variance over draws of the class's
images (C,); 0 where that is not known."""


def recent(curve: Floats, window: int) -> Floats:
    """(C,), the mean over those of the last epochs in which the curve (E, C) is known."""
    last = curve[-window:]
    known = np.isfinite(last)
    total = np.where(known, last, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _variance(curves: kdzoo.TeachingCurves, share: Floats, window: int) -> Floats:
    """(C,), of a share of a class's samples, one epoch's. With a success and a failure more than
    there were, as in Agresti & Caffo (2000): the usual formula gives 0 where all are right."""
    samples = curves.samples[-window:].max(0)
    mean = np.nan_to_num(recent(share, window))
    moved = (samples * mean + 1) / (samples + 2)
    variance: Floats = moved * (1 - moved) / (samples + 2)
    return variance
