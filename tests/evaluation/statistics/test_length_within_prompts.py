"""Test win rates at equal length for prompts of different, unknown difficulty."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from selfcontrast.evaluation.statistics import (
    OutcomePairs,
    clusters,
    length_controlled_win_rate,
    length_controlled_within_prompts,
)
from selfcontrast.evaluation.statistics.length_within_prompts import SPREAD, _Model
from selfcontrast.evaluation.statistics.logistic import RIDGE


def confounded(
    rng: np.random.Generator, prompts: int, models: tuple[float, ...], each: int, length: float = 1.0
) -> dict[str, OutcomePairs]:
    """Simulate systems whose length difference is confounded with difficulty.

    The opponent's answers are short on easy prompts. Nearly all answers of the systems are shorter than the opponent's.
    Only on easy prompts are both of similar length.
    """
    size = rng.normal(size=prompts)
    opponent, difficulty = np.exp(7 + 0.6 * size), -size + 0.5 * rng.normal(size=prompts)
    systems = {}
    for index, model in enumerate(models):
        lengths = np.exp(rng.normal(6.8, 0.2, (prompts, each))) + 300 * rng.normal(size=(prompts, each))
        lengths -= opponent[:, None]
        draw = rng.random((prompts, each))
        outcomes = draw < expit(model + length * np.tanh(lengths / lengths.std()) + difficulty[:, None])
        labels = np.repeat(np.arange(prompts), each)
        systems[f"s{index}"] = OutcomePairs(outcomes.ravel().astype(float), lengths.ravel(), labels, labels)
    return systems


def truth(model: float) -> float:
    """Compute the mean of expit(model + difficulty) over difficulties with variance 1 + 0.25, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ expit(model + np.sqrt(1.25) * nodes) / weights.sum())


def test_rate_is_not_confounded_by_difficulty() -> None:
    """A fit without difficulties attributes the ease of prompts to length. Its rates are 7 to 9 points too high."""
    rates, naive = [], []
    for seed in range(12):
        systems = confounded(np.random.default_rng([1, seed]), 300, (0.0, 0.5), 2)
        result = length_controlled_within_prompts(systems, n_bootstrap=1)
        assert result is not None
        rates.append([result.rates[name].interval.estimate for name in systems])
        naive.append(
            [
                length_controlled_win_rate(
                    pairs.outcomes, pairs.lengths, pairs.clusters, n_bootstrap=1
                ).win_rate.estimate
                for pairs in systems.values()
            ]
        )
    expected = [truth(0.0), truth(0.5)]
    assert np.mean(rates, axis=0) == pytest.approx(expected, abs=0.025)
    assert (np.mean(naive, axis=0) - expected > 0.05).all()


def test_fit_maximises_the_penalised_likelihood() -> None:
    """The reference is scipy's quasi-Newton method over coefficients and difficulties."""
    systems = confounded(np.random.default_rng(2), 12, (0.0, 0.5), 3)
    model = _Model(systems)
    weights = np.random.default_rng(3).integers(0, 3, 12).astype(float)
    k = model.design.shape[1]

    def loss(values: Any) -> float:
        log_odds = model.design @ values[:k] + values[k:][model.prompt]
        likelihood = weights[model.prompt] @ (model.outcomes * log_odds - np.logaddexp(0, log_odds))
        return float(-likelihood + RIDGE / 2 * (values[:k] ** 2).sum() + weights @ values[k:] ** 2 / (2 * SPREAD**2))

    expected = optimize.minimize(loss, np.zeros(k + 12), options={"gtol": 1e-8}).x
    coefficients, difficulties = model.fit(weights[None])
    assert coefficients[0] == pytest.approx(expected[:k], abs=1e-4)
    weighted = weights > 0
    assert difficulties[0][weighted] == pytest.approx(expected[k:][weighted], abs=1e-4)


def test_influence_equals_the_derivative_by_a_prompts_weight() -> None:
    systems = confounded(np.random.default_rng(4), 15, (0.0, 0.5), 2)
    model = _Model(systems)
    start = model.fit(np.ones((1, 15)))
    for contrast in (("s0", None), ("s1", "s0")):
        derivatives = []
        for prompt in range(15):
            weights = np.ones((2, 15))
            weights[:, prompt] += [1e-4, -1e-4]
            up, down = model.values(model.fit(weights), weights, [contrast])[:, 0]
            derivatives.append((up - down) / 2e-4)
        assert model.influence(start, *contrast)[0] == pytest.approx(
            np.array(derivatives) - np.mean(derivatives), abs=1e-5
        )


def test_rate_with_single_pairs_is_not_identified() -> None:
    systems = confounded(np.random.default_rng(5), 50, (0.0,), 1)
    assert length_controlled_within_prompts(systems) is None
    same = OutcomePairs([1, 0, 1, 1], [5, 5, 7, 7], [0, 0, 1, 1], [0, 0, 1, 1])  # equal lengths in a prompt
    assert length_controlled_within_prompts({"s": same}) is None
    assert length_controlled_within_prompts(confounded(np.random.default_rng(5), 50, (0.0, 0.5), 1)) is not None


def test_rate_without_effects_is_the_raw_rate() -> None:
    """Without effects of length or difficulty, the rate at equal length is the raw one up to noise."""
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(400), 4)
    pairs = OutcomePairs((rng.random(1600) < 0.7).astype(float), rng.normal(0, 100, 1600), labels, labels)
    result = length_controlled_within_prompts({"s": pairs}, n_bootstrap=300)
    assert result is not None
    interval = result.rates["s"].interval
    assert interval.estimate == pytest.approx(np.mean(pairs.outcomes), abs=0.01)
    assert interval.low < 0.7 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 1600), rel=0.15)


def test_difference_from_the_baseline_equals_the_difference_of_rates() -> None:
    systems = confounded(np.random.default_rng(7), 100, (0.0, 0.5), 2)
    result = length_controlled_within_prompts(systems, "s0", n_bootstrap=200)
    assert result is not None
    difference = result.differences["s1"].interval
    rates = [result.rates[name].interval.estimate for name in ("s0", "s1")]
    assert list(result.differences) == ["s1"]
    assert difference.estimate == pytest.approx(rates[1] - rates[0])
    assert (difference.n, difference.clusters) == (400, 100)
    assert difference.low < difference.estimate < difference.high


def test_difference_uses_prompts_judged_for_both_systems() -> None:
    systems = confounded(np.random.default_rng(8), 60, (0.0, 0.5), 2)
    pairs = systems["s1"]
    fewer = OutcomePairs(
        *(np.asarray(column)[:80] for column in (pairs.outcomes, pairs.lengths, pairs.prompts, pairs.clusters))
    )
    result = length_controlled_within_prompts({"s0": systems["s0"], "s1": fewer}, "s0", n_bootstrap=50)
    assert result is not None
    assert result.differences["s1"].interval.clusters == 40
    assert result.rates["s0"].interval.clusters == 60
    assert result.rates["s1"].interval.clusters == 40


def test_rate_weighs_questions_equally_for_unequal_sample_counts() -> None:
    """One question has 40 winning samples. Nine have 4 samples each, of which half win. Lengths have no effect."""
    labels = np.r_[np.zeros(40, dtype=int), np.repeat(np.arange(1, 10), 4)]
    lengths = np.where(np.arange(76) // 2 % 2, 10.0, -10.0)
    pairs = OutcomePairs(np.r_[np.ones(40), np.tile([1.0, 0.0, 1.0, 0.0], 9)], lengths, labels, labels)
    result = length_controlled_within_prompts({"s": pairs}, n_bootstrap=20)
    assert result is not None
    # Nine questions near 0.5 and one near 1 average to 0.55; the mean over pairs is 0.76.
    assert result.rates["s"].interval.estimate == pytest.approx(0.55, abs=0.03)


def test_only_the_rate_of_a_system_that_always_wins_is_weak() -> None:
    systems = confounded(np.random.default_rng(9), 100, (0.0,), 2)
    pairs = systems["s0"]
    systems["always"] = OutcomePairs(np.ones(200), np.asarray(pairs.lengths) + 50, pairs.prompts, pairs.clusters)
    result = length_controlled_within_prompts(systems, "s0", n_bootstrap=50)
    assert result is not None
    assert result.rates["always"].weakness.startswith("weak")
    interval = result.rates["always"].interval
    assert interval.low < 0.025 ** (1 / 100)  # at least as wide as Clopper and Pearson's interval for 100 wins
    difference = result.differences["always"]
    assert difference.near_separation
    assert difference.interval.high - difference.interval.low > 0.04
    assert result.rates["s0"].weakness == ""


def test_interval_depends_on_the_seed_not_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = confounded(np.random.default_rng(10), 30, (0.0, 0.5), 2)
    first = length_controlled_within_prompts(systems, seed=1)
    assert length_controlled_within_prompts(systems, seed=1) == first
    assert length_controlled_within_prompts(systems, seed=2) != first
    monkeypatch.setattr(clusters, "_BLOCK", 120 * 150)  # 999 resamples in seven blocks, the last one short
    in_blocks = length_controlled_within_prompts(systems, seed=1)
    assert first is not None
    assert in_blocks is not None
    assert in_blocks.rates["s0"].interval.low == pytest.approx(first.rates["s0"].interval.low, abs=0.03)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (OutcomePairs([], [], [], []), "no observations"),
        (OutcomePairs([1, 0], [1], [0, 1], [0, 1]), "one length"),
        (OutcomePairs([1, float("nan")], [1, 2], [0, 1], [0, 1]), "finite"),
        (OutcomePairs([1, 2], [1, 2], [0, 1], [0, 1]), r"\[0, 1\]"),
    ],
)
def test_unusable_input_is_rejected(pairs: OutcomePairs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_within_prompts({"s": pairs})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-9, 9), st.integers(0, 7), st.booleans()),
        min_size=2,
        max_size=30,
    )
)
def test_rates_of_any_pairs_are_ordered_and_in_range(rows: list[tuple[float, int, int, bool]]) -> None:
    systems = {}
    for name in (False, True):
        chosen = [row for row in rows if row[3] == name]
        if chosen:
            outcomes, lengths, prompts, _ = zip(*chosen, strict=True)
            systems[str(name)] = OutcomePairs(outcomes, lengths, prompts, prompts)
    result = length_controlled_within_prompts(systems, "False", n_bootstrap=30)
    if result is None:
        return
    for controlled in result.rates.values():
        interval = controlled.interval
        assert 0 <= interval.estimate <= 1
        if np.isfinite(interval.low):
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
            assert interval.high - interval.low > 0.01
