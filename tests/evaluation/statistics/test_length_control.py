from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from selfcontrast.evaluation.statistics import (
    Coefficients,
    ControlledRate,
    Interval,
    LengthControlledRate,
    clusters,
    length_controlled_difference,
    length_controlled_win_rate,
    mean_interval,
    win_rate_at_equal_length,
)

MODEL, LENGTH = 0.5, 1.2


def judgments(
    rng: np.random.Generator, prompts: int, per_prompt: int = 2, correlation: float = 0.7
) -> tuple[Any, Any, Any]:
    """Simulate outcomes, length differences and prompts under the model, with the coefficients `MODEL` and `LENGTH`.

    Outcomes of a prompt depend on normal variables with `correlation`. Length differences of a prompt share a part.
    """
    labels = np.repeat(np.arange(prompts), per_prompt)
    lengths = 400 * (rng.normal(size=prompts)[labels] + rng.normal(size=prompts * per_prompt)) + 300
    shared = np.sqrt(correlation) * rng.normal(size=prompts)[labels]
    uniform = stats.norm.cdf(shared + np.sqrt(1 - correlation) * rng.normal(size=prompts * per_prompt))
    scale = np.sqrt(2) * 400
    return (uniform < expit(MODEL + LENGTH * np.tanh(lengths / scale))).astype(float), lengths, labels


# --- the estimate ---


def test_win_rate_with_two_lengths_equals_numbers_by_hand() -> None:
    """Half of the answers are 100 longer and win 90%, half are 100 shorter and win 40%.

    Two coefficients fit both rates exactly. So the log-odds at equal length are the mean of the two rates' log-odds,
    (2.197 - 0.405) / 2, up to the effect of the ridge.
    """
    outcomes = np.r_[np.ones(900), np.zeros(100), np.ones(400), np.zeros(600)]
    lengths = np.r_[np.full(1000, 100), np.full(1000, -100)]
    result = length_controlled_win_rate(outcomes, lengths, np.arange(2000), n_bootstrap=100)
    expected = (logit(0.9) + logit(0.4)) / 2
    assert result.coefficients.model == pytest.approx(expected, abs=1e-3)
    assert result.win_rate.estimate == pytest.approx(expit(expected), abs=1e-3)
    assert result.win_rate.estimate > outcomes.mean()  # 0.71 against 0.65
    slope = (logit(0.9) - logit(0.4)) / 2 / np.tanh(100 / lengths.std(ddof=1))
    assert result.coefficients.length == pytest.approx(slope, abs=1e-3)
    assert not result.near_separation


def test_coefficients_equal_statsmodels_in_the_input_units() -> None:
    rng = np.random.default_rng(0)
    outcomes, lengths, labels = judgments(rng, 2000)
    difficulty = rng.normal(5, 3, 4000)
    design = np.column_stack([np.ones(4000), np.tanh(lengths / lengths.std(ddof=1)), difficulty])
    expected = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit().params
    result = length_controlled_win_rate(outcomes, lengths, labels, difficulty, n_bootstrap=50)
    coefficients = result.coefficients
    assert [coefficients.model, coefficients.length, coefficients.difficulty] == pytest.approx(expected, abs=1e-3)
    design[:, 1] = 0
    assert result.win_rate.estimate == pytest.approx(expit(design @ expected).mean(), abs=1e-4)
    assert win_rate_at_equal_length(coefficients, difficulty) == pytest.approx(result.win_rate.estimate)


def test_win_rate_due_to_length_alone_is_one_half() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.normal(600, 500, 3000)
    outcomes = (rng.random(3000) < expit(2 * np.tanh(lengths / 500))).astype(float)
    result = length_controlled_win_rate(outcomes, lengths, np.arange(3000), n_bootstrap=200)
    assert outcomes.mean() > 0.7
    assert result.win_rate.low < 0.5 < result.win_rate.high


def test_win_rate_with_equal_lengths_is_the_raw_rate() -> None:
    outcomes = np.r_[np.ones(70), np.full(10, 0.5), np.zeros(20)]
    result = length_controlled_win_rate(outcomes, np.zeros(100), np.arange(100), n_bootstrap=2000)
    raw_rate = mean_interval(outcomes, np.arange(100), n_bootstrap=20_000)
    assert result.win_rate.estimate == pytest.approx(0.75, abs=1e-3)
    assert (result.win_rate.low, result.win_rate.high) == pytest.approx((raw_rate.low, raw_rate.high), abs=0.015)
    assert result.coefficients.length == 0
    assert not result.near_separation


def test_win_rate_of_swapped_systems_is_the_complement() -> None:
    outcomes, lengths, labels = judgments(np.random.default_rng(2), 100)
    forth = length_controlled_win_rate(outcomes, lengths, labels, n_bootstrap=4000)
    back = length_controlled_win_rate(1 - outcomes, -lengths, labels, n_bootstrap=4000)
    assert back.win_rate.estimate == pytest.approx(1 - forth.win_rate.estimate)
    assert back.win_rate.low == pytest.approx(1 - forth.win_rate.high, abs=0.01)
    assert back.coefficients.length == pytest.approx(forth.coefficients.length)


def test_win_rate_at_equal_length_equals_numbers_by_hand() -> None:
    """Log-odds are 0.2 + 0.5 * (1, -1) = 0.7, -0.3."""
    coefficients = Coefficients(0.2, 9.0, 0.5)
    assert win_rate_at_equal_length(coefficients, [1, -1]) == pytest.approx((expit(0.7) + expit(-0.3)) / 2)
    assert win_rate_at_equal_length(coefficients) == pytest.approx(expit(0.2))


# --- the interval ---


def test_interval_half_width_equals_statsmodels_clustered_sandwich() -> None:
    outcomes, lengths, labels = judgments(np.random.default_rng(3), 600, per_prompt=3)
    design = np.column_stack([np.ones(1800), np.tanh(lengths / lengths.std(ddof=1))])
    fit = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": labels})
    rate = expit(fit.params[0])
    result = length_controlled_win_rate(outcomes, lengths, labels, n_bootstrap=4000).win_rate
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * fit.bse[0] * rate * (1 - rate), rel=0.06)
    assert (result.n, result.clusters, result.confidence) == (1800, 600, 0.95)


@pytest.mark.parametrize("prompts", [30, 120])
def test_interval_covers_at_its_level(prompts: int) -> None:
    rng = np.random.default_rng(4)
    simulations = 250
    covered = 0
    for seed in range(simulations):
        result = length_controlled_win_rate(*judgments(rng, prompts), n_bootstrap=199, seed=seed).win_rate
        covered += result.low <= expit(MODEL) <= result.high
    assert 0.92 <= covered / simulations <= 0.98


def test_interval_ignores_repeated_judgments() -> None:
    outcomes, lengths, labels = judgments(np.random.default_rng(5), 200, per_prompt=1)
    single = length_controlled_win_rate(outcomes, lengths, labels, n_bootstrap=2000).win_rate
    double = [np.tile(column, 2) for column in (outcomes, lengths, labels)]
    clustered = length_controlled_win_rate(*double, n_bootstrap=2000).win_rate
    naive = length_controlled_win_rate(*double[:2], np.arange(400), n_bootstrap=2000).win_rate
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.05)
    assert naive.high - naive.low == pytest.approx((single.high - single.low) / np.sqrt(2), rel=0.08)


def test_interval_depends_on_the_seed_not_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, lengths, labels = judgments(np.random.default_rng(6), 50)
    first = length_controlled_win_rate(outcomes, lengths, labels, seed=1)
    assert length_controlled_win_rate(outcomes, lengths, labels, seed=1) == first
    assert length_controlled_win_rate(outcomes, lengths, labels, seed=2) != first
    monkeypatch.setattr(clusters, "_BLOCK", 100 * 150)  # 999 resamples in seven blocks, the last one short
    in_blocks = length_controlled_win_rate(outcomes, lengths, labels, seed=1).win_rate
    assert (in_blocks.low, in_blocks.high) == pytest.approx((first.win_rate.low, first.win_rate.high), abs=0.03)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-9, 9), st.integers(0, 7)), min_size=1, max_size=30)
)
def test_win_rate_of_any_judgments_is_ordered_and_in_range(rows: list[tuple[float, int, int]]) -> None:
    outcomes, lengths, labels = zip(*rows, strict=True)
    result = length_controlled_win_rate(outcomes, lengths, labels, n_bootstrap=50)
    assert 0 <= result.win_rate.estimate <= 1
    if np.isfinite(result.win_rate.low):
        assert 0 <= result.win_rate.low <= result.win_rate.high <= 1
        assert result.win_rate.high - result.win_rate.low > 0.01
    else:
        assert result.win_rate.clusters <= 2
        assert np.isnan(result.fragile_refits)


# --- two systems against the same opponent ---


def two_systems(rng: np.random.Generator, prompts: int, gain: float) -> tuple[Any, Any]:
    """Simulate two systems whose log-odds at equal length differ by `gain`; the second system has 0.5.

    Both systems share a prompt's random variable, so they tend to win and lose on the same prompts. The first system
    has longer answers, which the judge prefers.
    """
    shared = rng.normal(size=prompts)

    def system(model: float, longer: float) -> tuple[Any, Any, Any]:
        labels = np.repeat(np.arange(prompts), 2)
        lengths = 400 * rng.normal(size=2 * prompts) + longer
        uniform = stats.norm.cdf(np.sqrt(0.8) * shared[labels] + np.sqrt(0.2) * rng.normal(size=2 * prompts))
        return (uniform < expit(model + LENGTH * np.tanh(lengths / lengths.std(ddof=1)))).astype(float), lengths, labels

    return system(MODEL + gain, 300.0), system(MODEL, -300.0)


def test_difference_equals_the_first_rate_minus_the_second() -> None:
    a, b = two_systems(np.random.default_rng(20), 300, 0.4)
    rates = [length_controlled_win_rate(*system, n_bootstrap=50).win_rate.estimate for system in (a, b)]
    controlled = length_controlled_difference(a, b, n_bootstrap=200)
    result = controlled.interval
    assert result.estimate == pytest.approx(rates[0] - rates[1], abs=1e-9)
    assert result.low < result.estimate < result.high
    assert (result.n, result.clusters) == (1200, 300)
    assert (controlled.near_separation, controlled.fragile_refits, controlled.weakness) == (False, 0.0, "")
    assert length_controlled_difference(b, a, n_bootstrap=200).interval.estimate == pytest.approx(-result.estimate)


def test_difference_is_weak_if_one_of_its_rates_is() -> None:
    """For all wins against all ties, an earlier version gave +0.4965 [+0.4947, +0.4970], which is far too narrow."""
    rng = np.random.default_rng(9)
    lengths, labels = rng.normal(0, 300, 40), np.arange(40)
    wins, ties = (np.ones(40), lengths, labels), (np.full(40, 0.5), lengths, labels)
    result = length_controlled_difference(wins, ties, n_bootstrap=50)
    assert result.near_separation
    assert result.weakness == "weak: the data hardly determine it"
    assert result.interval.low < 0 < 0.5 < result.interval.high


def test_win_rate_of_all_wins_has_a_wide_interval() -> None:
    """20 wins say little about log-odds that have a prior of standard deviation 10."""
    result = win_rate_of(np.ones(20), np.random.default_rng(7).normal(0, 300, 20)).win_rate
    assert 0 < result.low < 0.6
    assert 0.999 < result.high <= 1


def test_difference_uses_difficulties() -> None:
    """Each rate equals that of `length_controlled_win_rate` with the same difficulties."""
    a, b = two_systems(np.random.default_rng(27), 200, 0.4)
    difficulties_by_prompt = np.random.default_rng(28).normal(size=200)
    with_difficulty = [(*system, difficulties_by_prompt[system[2]]) for system in (a, b)]
    rates = [length_controlled_win_rate(*system, n_bootstrap=50).win_rate.estimate for system in with_difficulty]
    result = length_controlled_difference(*with_difficulty, n_bootstrap=50)
    assert result.interval.estimate == pytest.approx(rates[0] - rates[1], abs=1e-9)


def test_difference_interval_equals_a_bootstrap_with_statsmodels() -> None:
    """The reference draws prompts and refits both systems one sample at a time."""
    rng = np.random.default_rng(21)
    a, b = two_systems(rng, 120, 0.4)

    def rate(system: Any, prompts: Any) -> float:
        outcomes, lengths, labels = system
        rows = np.concatenate([np.flatnonzero(labels == prompt) for prompt in prompts])
        columns = np.column_stack([np.ones(len(rows)), np.tanh(lengths[rows] / lengths.std(ddof=1))])
        return float(expit(sm.GLM(outcomes[rows], columns, family=sm.families.Binomial()).fit().params[0]))

    samples = [rng.integers(0, 120, 120) for _ in range(300)]
    spread = np.std([rate(a, prompts) - rate(b, prompts) for prompts in samples])
    result = length_controlled_difference(a, b, n_bootstrap=2000).interval
    assert (result.high - result.low) / 2 == pytest.approx(1.98 * np.sqrt(120 / 118) * spread, rel=0.12)


def test_difference_pairing_narrows_the_interval() -> None:
    """With shuffled prompts the variances add up. With the same prompts most of the variance cancels."""
    a, b = two_systems(np.random.default_rng(22), 400, 0.4)
    order = np.random.default_rng(23).permutation(400)
    shuffled = (*b[:2], order[b[2]])
    paired, unpaired = (length_controlled_difference(a, system, n_bootstrap=500).interval for system in (b, shuffled))
    assert paired.estimate == pytest.approx(unpaired.estimate)
    assert paired.high - paired.low < 0.85 * (unpaired.high - unpaired.low)


def test_difference_of_a_system_from_itself_has_no_bounds() -> None:
    a, _ = two_systems(np.random.default_rng(24), 50, 0.4)
    result = length_controlled_difference(a, a, n_bootstrap=100).interval
    assert result.estimate == 0
    assert np.isnan([result.low, result.high]).all()  # no variation


def test_difference_interval_covers_at_its_level() -> None:
    truth = float(expit(MODEL + 0.4) - expit(MODEL))
    covered, simulations = 0, 200
    for seed in range(simulations):
        a, b = two_systems(np.random.default_rng([25, seed]), 80, 0.4)
        result = length_controlled_difference(a, b, n_bootstrap=199, seed=seed).interval
        covered += result.low <= truth <= result.high
    assert 0.92 <= covered / simulations <= 0.98


def test_difference_of_systems_on_different_prompts_is_rejected() -> None:
    a, b = two_systems(np.random.default_rng(26), 10, 0.4)
    with pytest.raises(ValueError, match="the same clusters"):
        length_controlled_difference(a, (*b[:2], b[2] + 1))
    few = tuple(column[:4] for column in a)
    assert np.isnan(length_controlled_difference(few, few).interval.low)


# --- near separation ---


def win_rate_of(outcomes: Any, lengths: Any) -> LengthControlledRate:
    return length_controlled_win_rate(outcomes, lengths, np.arange(len(outcomes)), n_bootstrap=100)


@pytest.mark.parametrize("count", [20, 2000])
def test_near_separation_is_flagged(count: int) -> None:
    rng = np.random.default_rng(7)
    lengths, coin = rng.normal(0, 300, count), rng.integers(0, 2, count)
    assert win_rate_of(np.ones(count), lengths).near_separation  # all wins
    assert win_rate_of(np.zeros(count), lengths).near_separation  # all losses
    assert win_rate_of(lengths > 0, lengths).near_separation  # length decides each outcome
    assert win_rate_of(coin, np.full(count, 50)).near_separation  # answers are longer by the same amount
    assert win_rate_of(coin, 5000 + lengths / 100).near_separation  # answers are longer by nearly the same amount
    varied = win_rate_of(coin, lengths)
    assert not varied.near_separation
    assert varied.fragile_refits < 0.5
    assert win_rate_of(np.ones(count), lengths).fragile_refits == 1


def test_fragile_refits_count_samples_without_the_only_loss() -> None:
    outcomes = np.r_[np.ones(59), 0]
    result = win_rate_of(outcomes, np.random.default_rng(8).normal(0, 300, 60))
    # A sample of prompts lacks the loss with probability (1 - 1/60)^60 = 0.36.
    assert result.fragile_refits > 0.3
    assert result.weakness.startswith("weak")


def test_weakness_names_fragile_refits() -> None:
    interval = Interval(0.9, 0.8, 0.95, 60, 60, 0.95)
    assert ControlledRate(interval, False, 0.37).weakness == "weak: the data hardly determine 37% of its refits"
    assert ControlledRate(interval, False, 0.02).weakness == ""
    assert ControlledRate(interval, False, float("nan")).weakness == ""


# --- unusable input ---


@pytest.mark.parametrize(
    ("outcomes", "lengths", "labels", "difficulties", "message"),
    [
        ([], [], [], None, "no observations"),
        ([1, 0], [1], [0, 1], None, "one length"),
        ([1, 0], [1, 2], [0], None, "one length"),
        ([1, 0], [1, 2], [0, 1], [1], "one length"),
        ([[1, 0]], [[1, 2]], [[0, 1]], None, "one length"),
        ([1, np.nan], [1, 2], [0, 1], None, "finite"),
        ([1, 0], [1, np.inf], [0, 1], None, "finite"),
        ([1, 0], [1, 2], [0, 1], [0, np.nan], "finite"),
        ([1, 2], [1, 2], [0, 1], None, r"\[0, 1\]"),
    ],
)
def test_unusable_input_is_rejected(outcomes: Any, lengths: Any, labels: Any, difficulties: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(outcomes, lengths, labels, difficulties)


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"n_bootstrap": 0}])
def test_settings_out_of_range_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="confidence must be"):
        length_controlled_win_rate([1, 0], [1, 2], [0, 1], **wrong)
