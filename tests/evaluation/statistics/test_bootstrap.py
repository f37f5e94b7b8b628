from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from clustered import correlated
from selfcontrast.evaluation.statistics import (
    clusters,
    mean_interval,
    paired_difference,
    rate_interval,
    standard_error,
    win_rate,
)

# --- mean_interval ---


def test_mean_interval_half_width_is_the_clustered_standard_error() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 400)
    labels = np.repeat(np.arange(400), sizes)
    values = rng.normal(size=400)[labels] + rng.normal(size=len(labels))
    result = mean_interval(values, labels)
    # The sandwich estimator of a mean: sqrt(sum over clusters of (sum of residuals)^2) / n.
    residuals = values - values.mean()
    error = np.sqrt(sum(residuals[labels == c].sum() ** 2 for c in range(400))) / len(values)
    assert result.estimate == pytest.approx(values.mean())
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.04)
    assert (result.n, result.clusters, result.confidence) == (len(values), 400, 0.95)


@pytest.mark.parametrize("size", [12, 80])
def test_mean_interval_bounds_are_the_wider_of_bca_and_students_t(size: int) -> None:
    values = np.random.default_rng(1).exponential(size=size)
    z = np.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1)
    bca = stats.bootstrap(
        (values,), np.mean, method="BCa", confidence_level=1 - 2 * stats.norm.sf(z), n_resamples=40_000, rng=3
    ).confidence_interval
    students = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert students.low < bca.low < bca.high  # skewed to the right
    assert students.high < bca.high
    result = mean_interval(values, np.arange(size), n_bootstrap=40_000)
    assert result.low == pytest.approx(students.low)
    assert result.high == pytest.approx(bca.high, abs=0.03 * (bca.high - bca.low))


def test_mean_interval_clustered_is_wider_than_naive() -> None:
    values, labels = correlated(np.random.default_rng(2), 100, 8)
    clustered, naive = mean_interval(values, labels), mean_interval(values, np.arange(800))
    # Design effect: 1 + (m - 1) * rho with m = 8 and rho = 1 / 1.25, so the width grows by sqrt(6.6) = 2.57.
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(2.57, rel=0.15)


@pytest.mark.parametrize("prompts", [10, 40])
def test_mean_interval_of_correlated_scores_covers_at_its_level(prompts: int) -> None:
    rng = np.random.default_rng(3)
    simulations = 600
    covered = 0
    for seed in range(simulations):
        result = mean_interval(*correlated(rng, prompts, 3), n_bootstrap=599, seed=seed)
        covered += result.low <= 0 <= result.high
    assert 0.92 <= covered / simulations <= 0.98


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 9)), min_size=1, max_size=40))
@example([(0.0, 0), (2.4431947998322144e-177, 1)])  # the square of this number underflows
def test_mean_interval_bounds_enclose_the_estimate(rows: list[tuple[float, int]]) -> None:
    values, labels = zip(*rows, strict=True)
    result = mean_interval(values, labels, n_bootstrap=200)
    slack = 1e-9 * max(map(abs, values))
    if np.isnan(result.low):
        means = [np.mean([v for v, c in rows if c == label]) for label in set(labels)]
        assert np.ptp(means) <= 1e-11 * max(1e-3, max(map(abs, values)))
        assert np.isnan(result.high)
    else:
        span = max(values) - min(values)
        # With two clusters, the 97.5% quantile of Student's t is 12.7.
        assert min(values) - 13 * span - slack <= result.low <= result.estimate + slack
        assert result.estimate - slack <= result.high <= max(values) + 13 * span + slack


def test_mean_interval_ignores_order_and_names_of_clusters() -> None:
    values, labels = correlated(np.random.default_rng(4), 30, 2)
    shuffled = np.random.default_rng(5).permutation(60)
    names = np.array([f"prompt {c:02}" for c in labels])
    first, second = mean_interval(values, labels), mean_interval(values[shuffled], names[shuffled])
    assert (second.low, second.high) == pytest.approx((first.low, first.high))


def test_mean_interval_is_equal_for_equal_seeds_only() -> None:
    values, labels = correlated(np.random.default_rng(6), 30, 2)
    assert mean_interval(values, labels, seed=1) == mean_interval(values, labels, seed=1)
    assert mean_interval(values, labels, seed=1) != mean_interval(values, labels, seed=2)


def test_mean_interval_with_higher_confidence_is_wider() -> None:
    values, labels = correlated(np.random.default_rng(7), 30, 2)
    narrow, wide = (mean_interval(values, labels, confidence=confidence) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("prompts", [10, 20])
def test_paired_difference_of_few_mostly_tied_prompts_covers_at_its_level(prompts: int) -> None:
    """The systems fail 3% and 5% of the prompts. BCa alone covers 84% with 10 and 81% with 20 prompts."""
    rng = np.random.default_rng(30)
    covered = n_finite = 0
    for seed in range(400):
        a, b = rng.random(prompts) < 0.97, rng.random(prompts) < 0.95
        result = paired_difference(a.astype(float), b.astype(float), np.arange(prompts), n_bootstrap=199, seed=seed)
        if np.isfinite(result.low):
            n_finite += 1
            covered += result.low <= 0.02 <= result.high
    assert n_finite > 150
    assert covered / n_finite > 0.935


def test_mean_interval_in_ten_blocks_equals_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = correlated(np.random.default_rng(8), 30, 2)
    one_block = mean_interval(values, labels)
    monkeypatch.setattr(clusters, "_BLOCK", 30 * 1000)  # 9999 resamples in ten blocks, the last one short
    ten_blocks = mean_interval(values, labels)
    assert (ten_blocks.low, ten_blocks.high) == pytest.approx((one_block.low, one_block.high), abs=0.05)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_mean_interval_equal_scores_have_no_bounds(value: float) -> None:
    result = mean_interval([value] * 30, np.arange(30) // 3)
    assert result.estimate == pytest.approx(value)
    assert np.isnan([result.low, result.high]).all()


def test_mean_interval_of_two_clusters_equals_numbers_by_hand() -> None:
    """The cluster means 0 and 1 have the standard error 1/2. Student's t with one degree of freedom is 12.706."""
    result = mean_interval([0, 0, 1, 1], [0, 0, 1, 1])
    assert (result.low, result.high) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)


def test_mean_interval_one_cluster_has_no_bounds() -> None:
    result = mean_interval([1, 2], ["a", "a"])
    assert (result.estimate, result.n, result.clusters) == (1.5, 2, 1)
    assert np.isnan([result.low, result.high]).all()


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "no observations"),
        ([1, 2], [1], "one length"),
        ([[1, 2]], [[1, 2]], "one length"),
        ([1, np.nan], [1, 2], "finite"),
        ([1, np.inf], [1, 2], "finite"),
    ],
)
def test_unusable_input_is_rejected(values: Any, clusters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters)
    with pytest.raises(ValueError, match=message):
        paired_difference(values, values, clusters)
    with pytest.raises(ValueError, match=message):
        standard_error(values, clusters)


@pytest.mark.parametrize("wrong", [{"confidence": 0.0}, {"confidence": 1.0}, {"confidence": 95}, {"n_bootstrap": 0}])
def test_settings_out_of_range_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="confidence must be"):
        mean_interval([1, 2], [1, 2], **wrong)


# --- standard_error ---


def test_standard_error_of_single_observations_equals_scipy() -> None:
    values = np.random.default_rng(15).exponential(size=50)
    assert standard_error(values, np.arange(50)) == pytest.approx(stats.sem(values))


def test_standard_error_of_equal_clusters_equals_that_of_their_means() -> None:
    values, labels = correlated(np.random.default_rng(16), 30, 4)
    assert standard_error(values, labels) == pytest.approx(stats.sem(values.reshape(30, 4).mean(axis=1)))


def test_standard_error_of_one_cluster_is_nan() -> None:
    assert np.isnan(standard_error([1, 2], ["a", "a"]))


# --- win_rate ---


def test_win_rate_counts_ties_as_half() -> None:
    result = win_rate([1, 1, 0.5, 0], ["a", "b", "c", "d"])
    assert result.estimate == 0.625
    assert 0 <= result.low < 0.625 < result.high <= 1


@given(st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.sampled_from([0.9, 0.95]))
def test_win_rate_of_wins_and_losses_equals_scipys_exact_interval(counts: tuple[int, int], confidence: float) -> None:
    n, wins = counts
    expected = stats.binomtest(wins, n).proportion_ci(confidence, method="exact")
    result = win_rate(np.arange(n) < wins, np.arange(n), confidence=confidence)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_win_rate_of_only_wins_or_losses_has_exact_bounds() -> None:
    """At the win rate 0.025^(1/20) = 0.8316, the probability of twenty wins is 2.5%."""
    result = win_rate(np.ones(20), np.arange(20))
    assert (result.low, result.high) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    result = win_rate(np.zeros(20), np.arange(20))
    assert (result.low, result.high) == (0.0, pytest.approx(1 - 0.8316, abs=1e-4))


def test_rate_interval_equal_samples_of_a_prompt_are_one_observation() -> None:
    single = rate_interval(np.r_[np.ones(15), np.zeros(5)], np.arange(20))
    eight = rate_interval(np.repeat(np.r_[np.ones(15), np.zeros(5)], 8), np.repeat(np.arange(20), 8))
    assert (eight.low, eight.high) == pytest.approx((single.low, single.high))
    assert (single.n, eight.n, eight.clusters) == (20, 160, 20)


def test_win_rate_of_only_ties_is_uncertain() -> None:
    """`rate_interval` adds one cluster of the largest variance, 1/4. So the ties count as 20^2 independent outcomes.

    t with 2 degrees of freedom is 4.3027, so the effective size is 400 (1.95996 / 4.30265)^2 = 83.0. The bounds are
    scipy's beta quantiles for 41.5 wins of 83.
    """
    result = win_rate(np.full(20, 0.5), np.arange(20))
    n = 400 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 2)) ** 2
    assert result.low == pytest.approx(stats.beta.ppf(0.025, n / 2, n / 2 + 1))
    assert result.high == pytest.approx(1 - result.low)


def test_rate_interval_of_many_clusters_follows_the_standard_error() -> None:
    rng = np.random.default_rng(11)
    values, labels = rng.binomial(8, rng.beta(3, 2, 900)) / 8, np.arange(900)
    result = rate_interval(values, labels)
    half = 1.96 * standard_error(values, labels)
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.03)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 9)), min_size=1, max_size=40))
def test_rate_interval_is_wider_than_zero_and_within_0_and_1(rows: list[tuple[float, int]]) -> None:
    outcomes, labels = zip(*rows, strict=True)
    result = rate_interval(outcomes, labels)
    if result.clusters == 1:
        assert np.isnan([result.low, result.high]).all()
        return
    assert 0 <= result.low <= result.estimate <= result.high <= 1
    assert result.high - result.low > 0.01
    mirrored = rate_interval([1 - outcome for outcome in outcomes], labels)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - result.high, 1 - result.low))


@pytest.mark.parametrize("outcome", [1.5, -0.1])
def test_rate_interval_outcome_out_of_range_is_rejected(outcome: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        rate_interval([1.0, outcome], [0, 1])


@pytest.mark.parametrize("outcome", [2, -1, 0.3, np.nan])
def test_win_rate_outcome_that_is_no_win_tie_or_loss_is_rejected(outcome: float) -> None:
    with pytest.raises(ValueError, match=r"0, 0\.5 or 1"):
        win_rate([1, outcome], [0, 1])


def test_win_rate_without_outcomes_is_rejected() -> None:
    with pytest.raises(ValueError, match="no observations"):
        win_rate([], [])


# --- paired_difference ---


def test_paired_difference_weighs_prompts_equally() -> None:
    # Means by prompt: a = 2, 10; b = 1, 4. The differences are 1 and 6.
    result = paired_difference([1, 3, 10], [1, 4, 3, 5], ["p", "p", "q"], ["p", "q", "q", "q"])
    assert (result.estimate, result.n, result.clusters) == (3.5, 7, 2)
    assert result.estimate == pytest.approx((1 + 6) / 2)


def test_paired_difference_equals_the_interval_of_differences() -> None:
    rng = np.random.default_rng(9)
    a, labels = correlated(rng, 50, 1)
    b = a + 0.1 * rng.normal(size=50)
    paired = paired_difference(a, b, labels)
    of_differences = mean_interval(a - b, labels)
    assert (paired.estimate, paired.low, paired.high) == pytest.approx(
        (of_differences.estimate, of_differences.low, of_differences.high)
    )
    # Prompts vary ten times as much as the systems differ. Pairing removes that variance.
    unpaired = mean_interval(a, labels)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_paired_difference_changes_sign_with_swapped_systems() -> None:
    rng = np.random.default_rng(10)
    a, labels = correlated(rng, 40, 2)
    b, _ = correlated(rng, 40, 2)
    forth, back = (paired_difference(x, y, labels, n_bootstrap=40_000) for x, y in ((a, b), (b, a)))
    assert back.estimate == pytest.approx(-forth.estimate)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.02)


def test_paired_difference_of_different_clusters_is_rejected() -> None:
    for clusters_b in ([0, 2], [0, 0], ["0", "1"]):
        with pytest.raises(ValueError, match="same clusters"):
            paired_difference([1, 2], [1, 2], [0, 1], clusters_b)


def test_paired_difference_ignores_rounding() -> None:
    # Both means are 0.2, but 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit. (`sum` would not: since
    # Python 3.12 it compensates for rounding.)
    a, b = np.tile([0.1, 0.2, 0.3], 10), np.tile([0.3, 0.2, 0.1], 10)
    labels = np.repeat(np.arange(10), 3)
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    result = paired_difference(a, b, labels)
    assert (result.estimate, result.n, result.clusters) == (0, 60, 10)
    assert np.isnan([result.low, result.high]).all()
