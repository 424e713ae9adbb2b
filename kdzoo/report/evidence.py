"""How sure one can be that a class was hurt: plain functions of arrays, each with its source.

S is the number of seeds, C the number of classes. Accuracies are shares of 1.

The claim "distillation hurts this class" is about training, so its unit is the run: what counts is
how a class's difference to the baseline varies over seeds. :func:`judge` answers that. "Do these
two networks answer differently?" is another question, with the image as its unit, and no answer to
it says anything about the next seed: :func:`mcnemar` and :func:`paired_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from kdzoo.extend.contracts import Floats

__all__ = [
    "FALSE_DISCOVERIES",
    "SEEDS_FOR_A_VERDICT",
    "Judgement",
    "Verdict",
    "expected_harm",
    "judge",
    "lowest",
    "mcnemar",
    "paired_error",
    "paired_interval",
    "prior_variance",
]

Verdict = Literal["hurt", "helped", "no difference shown"]

FALSE_DISCOVERIES = 0.10
"""The share of the verdicts hurt and helped that may be wrong, on average."""

SEEDS_FOR_A_VERDICT = 5
"""With fewer, the spread over seeds is known too badly to judge by."""

POWER = 0.8
"""With which probability the smallest visible effect would be seen."""


@dataclass(frozen=True)
class Judgement:
    """What some seeds say about each class's difference to the baseline; all arrays are (C,).

    Attributes:
        seeds: S.
        mean: the mean difference over seeds.
        deviation: the standard deviation over seeds, as it is; NaN with one seed.
        error: the standard error of the mean, out of the moderated variance; NaN with one seed.
        p: the two-sided p value of a difference of 0; NaN with one seed.
        adjusted: the lowest rate of false discoveries at which the class would be named.
        low: the lower end of an interval for the difference; NaN with one seed.
        high: its upper end.
        visible: the smallest difference that would have been seen, four times out of five, if it
            were the only one; NaN with one seed.
        verdicts: one a class; ``None`` with fewer than five seeds.
    """

    seeds: int
    mean: Floats
    deviation: Floats
    error: Floats
    p: Floats
    adjusted: Floats
    low: Floats
    high: Floats
    visible: Floats
    verdicts: tuple[Verdict, ...] | None


def judge(differences: Floats, images: npt.NDArray[np.int64]) -> Judgement:
    """Judge each class by its differences over seeds.

    A moderated t test (Smyth, 2004): five differences tell little about a class's variance, and a
    hundred classes tell much about what variances are like, so each class's variance is drawn
    towards the classes' common one. Over classes, Benjamini and Hochberg (1995) hold the share of
    false discoveries at 0.10; their proof asks for independent or positively dependent tests,
    which classes that compete for the same images are not quite.

    The interval of a class that is named takes into account that it was selected (Benjamini and
    Yekutieli, 2005): at most a tenth of such intervals miss. It does not reach over 0. The other
    classes have the usual 90 % interval.

    Args:
        differences: (S, C), the student's accuracy less the baseline's. Finite.
        images: (C,), how many test images each class has. Accuracies are counts of these, so
            seeds may agree exactly where the training does not: no variance is taken to be below
            that of rounding to whole images, of student and baseline together.

    Raises:
        ValueError: the shapes do not match, there is no seed or class, or a number is not finite.
    """
    if differences.ndim != 2 or images.shape != differences.shape[1:] or not differences.size:
        raise ValueError(f"differences {differences.shape} and images {images.shape} do not match")
    if not np.isfinite(differences).all() or not (images > 0).all():
        raise ValueError("a class has a difference that is not finite, or no test images")
    seeds, classes = differences.shape
    mean = differences.mean(0)
    if seeds == 1:
        nan = np.full(classes, np.nan)
        return Judgement(seeds, mean, nan, nan, nan, nan, nan, nan, nan, verdicts=None)
    own = differences.var(0, ddof=1)
    rounding = 2 / 12 / images.astype(np.float64) ** 2
    variance, freedom = _moderated(np.maximum(own, rounding), seeds - 1)
    error = np.sqrt(variance / seeds)
    p = 2 * stats.t.sf(np.abs(mean) / error, freedom)
    adjusted = stats.false_discovery_control(p)
    named = adjusted <= FALSE_DISCOVERIES
    level = np.where(named, FALSE_DISCOVERIES * named.sum() / classes, FALSE_DISCOVERIES)
    half = stats.t.isf(level / 2, freedom) * error
    return Judgement(
        seeds=seeds,
        mean=mean,
        deviation=np.sqrt(own),
        error=error,
        p=p,
        adjusted=adjusted,
        low=mean - half,
        high=mean + half,
        visible=_visible(freedom, FALSE_DISCOVERIES / classes) * error,
        verdicts=tuple(map(_verdict, mean, named)) if seeds >= SEEDS_FOR_A_VERDICT else None,
    )


def prior_variance(variances: Floats, freedom: int) -> tuple[float, float]:
    """What the variances of many classes have in common (Smyth, 2004, section 6.2).

    Each is taken to be a scaled chi-square around a variance of its own, and the inverses of these
    to be chi-square with ``d0`` degrees of freedom around ``1 / s0``; both are fitted to mean and
    variance of the logarithms.

    Args:
        variances: (C,), above 0.
        freedom: the degrees of freedom of each.

    Returns:
        ``d0``, infinite where the variances differ by no more than chance and 0 for a single one,
        and ``s0``.
    """
    if len(variances) == 1:
        return 0.0, float(variances[0])
    logs = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, freedom / 2)
    if excess <= 0:
        return np.inf, float(variances.mean())
    # The trigamma function falls from infinity to 0, so exactly one argument gives the excess.
    half = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-8, 2 + 2 / excess)
    return 2 * half, float(np.exp(logs.mean() + special.digamma(half) - np.log(half)))


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """The exact McNemar test: are two networks right on equally many images?

    It is about these two networks. Over seeds of a training that changes nothing it finds
    differences too: two seeds of one training differ as networks.

    Args:
        first: (N,), on which images the first network is right.
        second: (N,), the same of the second, on the same images.

    Returns:
        The two-sided p value, out of the images on which one is right and the other wrong.
    """
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_interval(gained: Floats, lost: Floats, images: Floats) -> tuple[Floats, Floats]:
    """The 90 % interval for the difference of two given networks' accuracies (Agresti and Min,
    2005): Wald's, with half an image added to each of the four cells. It is about these two
    networks on other images of the kind, and not about another seed.

    Args:
        gained: (C,), images on which only the second network is right.
        lost: (C,), images on which only the first is.
        images: (C,), all of them.
    """
    middle = (gained - lost) / (images + 2)
    half = stats.norm.isf(FALSE_DISCOVERIES / 2) * paired_error(gained, lost, images)
    return np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)


def paired_error(gained: Floats, lost: Floats, images: Floats) -> Floats:
    """(C,), the standard error in :func:`paired_interval`; above 0 also where no answer differs."""
    total = images + 2
    variance: Floats = (gained + lost + 1) / total - ((gained - lost) / total) ** 2
    return np.sqrt(variance / total)


def expected_harm(differences: Floats, errors: Floats) -> float:
    """How much accuracy the classes have lost to the baseline, summed over classes, as it is
    expected behind the noise.

    The true differences are taken to be normal around a common mean, with a variance that is
    fitted to what the differences vary beyond their errors (DerSimonian and Laird, 1986). What is
    summed is each class's expected loss, max(0, -difference), given its difference: the larger the
    noise, the more it is drawn to the common mean. (A count of hurt classes jumps, and a plain
    sum of losses grows with the noise.)

    Args:
        differences: (C,).
        errors: (C,), their standard errors, above 0.
    """
    weights = errors**-2.0
    scatter = weights @ (differences - weights @ differences / weights.sum()) ** 2
    spread = weights.sum() - weights @ weights / weights.sum()
    between = max(0.0, (scatter - (len(differences) - 1)) / spread) if spread > 0 else 0.0
    weights = 1 / (between + errors**2)
    centre = weights @ differences / weights.sum()
    kept = between * weights  # how much of its own difference a class keeps
    mean = centre + kept * (differences - centre)
    deviation = np.sqrt(kept) * errors
    if between == 0:
        return float(np.maximum(-mean, 0).sum())
    z = -mean / deviation
    return float((deviation * stats.norm.pdf(z) - mean * stats.norm.cdf(z)).sum())


def lowest(values: Floats, count: int) -> Floats:
    """Which are the lowest, as weights that sum to ``count``: 1, and 0 for the others; those that
    are equal at the edge share what is left. Accuracies are counts of images, so many are equal,
    and which of them comes first must not matter.

    Args:
        values: (C,), shares or sums of some.
        count: from 1 to C.

    Returns:
        (C,).
    """
    values = np.round(values, 5)  # those of a report have six digits, and so what is the same
    edge = np.sort(values)[count - 1]
    below, equal = values < edge, values == edge
    weights: Floats = below + equal * ((count - below.sum()) / equal.sum())
    return weights


def _moderated(variances: Floats, freedom: int) -> tuple[Floats, float]:
    """(C,) moderated variances, and their degrees of freedom, no more than all classes have."""
    prior_freedom, prior = prior_variance(variances, freedom)
    if np.isinf(prior_freedom):
        return np.full_like(variances, prior), float(freedom * len(variances))
    total = prior_freedom + freedom
    moderated = (prior_freedom * prior + freedom * variances) / total
    return moderated, min(total, float(freedom * len(variances)))


def _visible(freedom: float, level: float) -> float:
    """How many standard errors an effect must have to be found at a level with the usual power."""
    bound = stats.t.isf(level / 2, freedom)
    middles = (np.arange(2000) + 0.5) / 2000
    # The error's own spread: the t value is above the bound where the effect is above bound * it.
    spread = np.sqrt(stats.chi2.ppf(middles, freedom) / freedom)

    def missing(effect: float) -> float:
        return float(stats.norm.cdf(effect - bound * spread).mean()) - POWER

    return float(optimize.brentq(missing, 0.0, 3 * bound + 3))


def _verdict(mean: float, named: bool) -> Verdict:
    if not named:
        return "no difference shown"
    return "hurt" if mean < 0 else "helped"
