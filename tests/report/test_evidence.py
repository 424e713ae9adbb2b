"""The statistics: against other implementations, cases worked out by hand, simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from kdzoo.report import evidence
from kdzoo.report.evidence import (
    expected_harm,
    judge,
    lowest,
    mcnemar,
    paired_interval,
    prior_variance,
)

IMAGES = 100  # of each class, as CIFAR-100's test set has


def study(draw: np.random.Generator, seeds: int, effects: np.ndarray) -> np.ndarray:
    """(S, C), the differences of a study on 100 test images a class, which are the same for all
    seeds.

    Each image is right in some share of all trainings. Each training has its own drift in each
    class, so that the classes' variances differ and are above the binomial.
    """
    classes = len(effects)
    level = draw.uniform(-1.0, 2.5, (classes, 1)) + draw.normal(0, 2.0, (classes, IMAGES))
    drift = draw.uniform(0.1, 0.5, classes)

    def trained(shift: np.ndarray) -> np.ndarray:
        places = level + shift[:, None] + draw.normal(0, drift)[:, None]
        return (draw.random((classes, IMAGES)) < special.expit(places)).mean(1)

    rows = [trained(effects) - trained(np.zeros(classes)) for _ in range(seeds)]
    return np.stack(rows)


def images(classes: int) -> np.ndarray:
    return np.full(classes, IMAGES)


def test_where_nothing_differs_few_studies_name_a_class() -> None:
    """With no effect at all, each study that names a class has a share of false ones of 1."""
    draw = np.random.default_rng(0)
    named = 0
    for _ in range(400):
        found = judge(study(draw, 5, np.zeros(100)), images(100))
        assert found.verdicts is not None
        named += any(verdict != "no difference shown" for verdict in found.verdicts)
    print(f"\nno effect, 5 seeds: {named / 4:.1f} % of the studies name a class", end="")
    assert named / 400 < 0.10 + 3 * (0.1 * 0.9 / 400) ** 0.5


@pytest.mark.parametrize(
    ("seeds", "effect", "power"), [(5, 1.2, 0.9), (5, 0.6, 0.2), (10, 0.6, 0.7)]
)
def test_planted_effects_are_found_and_a_tenth_of_the_findings_is_false_at_most(
    seeds: int, effect: float, power: float
) -> None:
    """``effect`` is of the logit, on ten classes downwards and on ten upwards."""
    draw = np.random.default_rng(1)
    effects = np.zeros(100)
    effects[:10], effects[10:20] = -effect, effect
    false, hits, points = [], [], []
    for _ in range(100):
        differences = study(draw, seeds, effects)
        found = judge(differences, images(100))
        assert found.verdicts is not None
        verdicts = np.array(found.verdicts)
        named = verdicts != "no difference shown"
        false.append(named[20:].sum() / max(named.sum(), 1))
        hits += [(verdicts[:10] == "hurt").mean(), (verdicts[10:20] == "helped").mean()]
        points.append(differences[:, :10].mean())
        # The interval of a class that is named does not reach over 0.
        assert (found.low[named] * found.high[named] > 0).all()
    shown, found_share, wrong = (100 * np.mean(x) for x in (points, hits, false))
    print(
        f"\neffect of {shown:.1f} points, {seeds} seeds: {found_share:.0f} % found, "
        f"{wrong:.1f} % of the findings false",
        end="",
    )
    assert np.mean(false) < 0.10 + 3 * np.std(false) / 10
    assert np.mean(hits) > power


def test_intervals_of_named_classes_miss_in_a_tenth_at_most() -> None:
    """Normal differences, so that the true means are known; a third of them is not 0."""
    draw = np.random.default_rng(2)
    misses = []
    for _ in range(200):
        true = np.where(draw.random(100) < 0.3, draw.normal(0, 0.05, 100), 0.0)
        deviation = 0.02 * np.sqrt(8 / draw.chisquare(8, 100))
        found = judge(draw.normal(true, deviation, (5, 100)), np.full(100, 10_000))
        assert found.verdicts is not None
        named = np.array(found.verdicts) != "no difference shown"
        missed = (true < found.low) | (true > found.high)
        misses.append(missed[named].mean() if named.any() else 0.0)
    assert np.mean(misses) < 0.10 + 3 * np.std(misses) / 200**0.5
    assert np.mean(misses) > 0.02  # and they are no wider than they need be


def test_the_prior_of_simulated_variances_is_found_again() -> None:
    draw = np.random.default_rng(3)
    truth = 0.0004 * 6 / draw.chisquare(6, 20_000)
    freedom, prior = prior_variance(truth * draw.chisquare(4, 20_000) / 4, 4)
    assert freedom == pytest.approx(6, rel=0.1)
    assert prior == pytest.approx(0.0004, rel=0.03)
    freedom, prior = prior_variance(0.0004 * draw.chisquare(4, 20_000) / 4, 4)
    assert freedom > 100 or np.isinf(freedom)
    assert prior == pytest.approx(0.0004, rel=0.03)


def test_a_single_class_has_students_t_test() -> None:
    values = np.array([[-0.03], [-0.05], [-0.01], [-0.06], [-0.02]])
    found = judge(values, images(1))
    other = stats.ttest_1samp(values[:, 0], 0)
    assert found.p[0] == pytest.approx(other.pvalue)
    interval = other.confidence_interval(0.90)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(interval))
    assert found.verdicts == ("hurt",)
    assert found.adjusted[0] == found.p[0]


def test_the_moderated_test_by_hand() -> None:
    """Equal variances: the prior is certain, and all classes' freedom is pooled."""
    one = np.array([-1.0, 0.0, 1.0]) / 100
    values = np.stack([one - 0.02, one, one + 0.01], 1)
    found = judge(values, images(3))
    error = 0.01 / 3**0.5
    assert found.error == pytest.approx(np.full(3, error))
    by_hand = 2 * stats.t.sf(np.array([0.02, 0.0, 0.01]) / error, 6)
    assert found.p == pytest.approx(by_hand)
    smallest, middle, largest = np.sort(by_hand)
    assert found.adjusted == pytest.approx([3 * smallest, largest, 1.5 * middle])
    assert found.verdicts is None  # three seeds


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_fewer_than_five_seeds_get_no_verdict_but_a_smallest_visible_effect(seeds: int) -> None:
    """The effect is found in four studies out of five: simulated."""
    draw = np.random.default_rng(4)
    found = judge(draw.normal(0, 0.02, (seeds, 1)), np.array([10_000]))
    assert found.verdicts is None
    assert np.isfinite(found.low).all()
    effect = 0.02 / seeds**0.5 * (found.visible / found.error)[0]
    studies = draw.normal(effect, 0.02, (4000, seeds))
    seen = stats.ttest_1samp(studies, 0, axis=1).pvalue <= 0.10
    assert np.mean(seen) == pytest.approx(0.8, abs=0.02)
    many = judge(draw.normal(0, 0.02, (seeds, 100)), np.full(100, 10_000))
    assert (many.visible > 3 * many.error).all()  # one among a hundred must be larger


def test_one_seed_is_an_estimate_and_no_more() -> None:
    found = judge(np.array([[0.02, -0.04]]), images(2))
    assert found.mean == pytest.approx([0.02, -0.04])
    assert found.verdicts is None
    for name in ("error", "p", "adjusted", "low", "high", "visible", "deviation"):
        assert np.isnan(getattr(found, name)).all()


def test_seeds_that_agree_exactly_are_not_infinitely_sure() -> None:
    """Accuracies are counts: five equal ones are no proof of a variance of 0."""
    values = np.zeros((5, 10))
    found = judge(values, np.full(10, 36))
    assert (found.p == 1).all()
    assert set(found.verdicts or ()) == {"no difference shown"}
    values[:, 0] = -1 / 36
    found = judge(values, np.full(10, 36))
    assert 1e-7 < found.p[0] < 0.01
    assert found.low[0] < -1 / 36 < found.high[0] < 0


@pytest.mark.parametrize(
    ("differences", "images"),
    [
        (np.array([[0.1, np.nan]]), np.array([5, 5])),
        (np.array([[0.1, np.inf]]), np.array([5, 5])),
        (np.array([[0.1, 0.2]]), np.array([5, 0])),
        (np.array([[0.1, 0.2]]), np.array([5])),
        (np.zeros((0, 2)), np.array([5, 5])),
        (np.zeros((5, 0)), np.zeros(0, int)),
    ],
)
def test_what_cannot_be_judged_is_refused(differences: np.ndarray, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"do not match|not finite"):
        judge(differences, images)


def test_mcnemar_by_hand() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 50)
    second = np.array([False] * 10 + [True] * 2 + [True] * 50)
    # 12 images on which one is right: 2 or fewer, twice: 2 * (1 + 12 + 66) / 2**12
    assert mcnemar(first, second) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def test_two_seeds_of_one_training_differ_as_networks() -> None:
    """Why verdicts come from seeds: McNemar's error rate over trainings is far above its level."""
    draw = np.random.default_rng(5)
    level = draw.normal(0.5, 2.0, 2000)
    found = []
    for _ in range(200):
        one, two = (
            draw.random(2000) < special.expit(level + draw.normal(0, 0.3)) for _ in range(2)
        )
        found.append(mcnemar(one, two) < 0.05)
    assert np.mean(found) > 0.3


def test_the_paired_interval_covers() -> None:
    draw = np.random.default_rng(6)
    cells = draw.multinomial(100, [0.08, 0.15, 0.77], 4000).astype(float)
    low, high = paired_interval(cells[:, 0], cells[:, 1], np.full(4000, 100.0))
    assert np.mean((low <= -0.07) & (high >= -0.07)) == pytest.approx(0.90, abs=0.02)
    none, all_ = paired_interval(np.array([0.0, 5.0]), np.array([0.0, 0.0]), np.array([5.0, 5.0]))
    assert none[0] < 0 < all_[0]
    assert -1 <= none.min() <= all_.max() <= 1


def test_harm_is_expected_behind_the_noise() -> None:
    draw = np.random.default_rng(7)
    nothing, plain, guessed, real = [], [], [], []
    for _ in range(200):
        errors = draw.uniform(0.01, 0.04, 100)
        nothing.append(expected_harm(draw.normal(0, errors), errors))
        true = draw.normal(0.01, 0.02, 100)
        seen = draw.normal(true, errors)
        plain.append(np.maximum(-seen, 0).sum())
        guessed.append(expected_harm(seen, errors))
        real.append(np.maximum(-true, 0).sum())
    assert np.mean(nothing) < 0.25  # where the plain sum is 1.0
    assert np.mean(plain) > 1.7 * np.mean(real)
    assert np.mean(guessed) == pytest.approx(np.mean(real), rel=0.1)


def test_classes_are_drawn_to_their_common_mean_and_not_to_the_surest_of_them() -> None:
    """Against the same by numerical integration, with the moments of DerSimonian and Laird."""
    seen = np.array([-0.2, 0.05, -0.3, 0.1, -0.1])
    errors = np.array([0.05, 0.004, 0.08, 0.06, 0.03])
    weights = [1 / e**2 for e in errors]
    total = sum(weights)
    fixed = sum(w * d for w, d in zip(weights, seen, strict=True)) / total
    scatter = sum(w * (d - fixed) ** 2 for w, d in zip(weights, seen, strict=True))
    between = (scatter - 4) / (total - sum(w**2 for w in weights) / total)
    shares = [1 / (between + e**2) for e in errors]
    mean = sum(w * d for w, d in zip(shares, seen, strict=True)) / sum(shares)
    true = np.linspace(-2, 2, 400_001)
    harm = 0.0
    for difference, error in zip(seen, errors, strict=True):
        log = -((difference - true) ** 2) / (2 * error**2) - (true - mean) ** 2 / (2 * between)
        density = np.exp(log - log.max())
        harm += (density * np.maximum(-true, 0)).sum() / density.sum()
    assert expected_harm(seen, errors) == pytest.approx(harm, rel=1e-6)


def test_harm_of_extremes() -> None:
    assert expected_harm(np.array([-0.1]), np.array([0.02])) == pytest.approx(0.1)
    assert expected_harm(np.array([0.1]), np.array([0.02])) == 0
    sure = expected_harm(np.array([-0.1, 0.1, 0.1, -0.3]), np.full(4, 1e-6))
    assert sure == pytest.approx(0.4, rel=1e-3)


def test_the_levels_are_those_of_the_documentation() -> None:
    assert (evidence.FALSE_DISCOVERIES, evidence.SEEDS_FOR_A_VERDICT) == (0.10, 5)


def test_the_lowest_share_the_edge() -> None:
    assert lowest(np.array([3.0, 1.0, 1.0, 2.0]), 2).tolist() == [0, 1, 1, 0]
    assert lowest(np.array([1.0, 1.0, 1.0, 0.0]), 2).tolist() == pytest.approx([1 / 3] * 3 + [1])
    assert lowest(np.array([0.1 + 0.2, 0.3, 0.4]), 1).tolist() == [0.5, 0.5, 0]
    assert lowest(np.zeros(4), 4).tolist() == [1] * 4
