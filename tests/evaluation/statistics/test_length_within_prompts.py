"""Win rates at equal length where prompts differ in how hard they are, and nobody has measured it."""

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
    """Easy prompts have short answers of the opponent. So a system's answers, nearly all shorter than the opponent's,
    come near to it in length on easy prompts only."""
    size = rng.normal(size=prompts)
    opponent, difficulty = np.exp(7 + 0.6 * size), -size + 0.5 * rng.normal(size=prompts)
    found = {}
    for at, model in enumerate(models):
        lengths = np.exp(rng.normal(6.8, 0.2, (prompts, each))) + 300 * rng.normal(size=(prompts, each))
        lengths -= opponent[:, None]
        draw = rng.random((prompts, each))
        outcomes = draw < expit(model + length * np.tanh(lengths / lengths.std()) + difficulty[:, None])
        labels = np.repeat(np.arange(prompts), each)
        found[f"s{at}"] = OutcomePairs(outcomes.ravel().astype(float), lengths.ravel(), labels, labels)
    return found


def truth(model: float) -> float:
    """The mean of expit(model + difficulty) over difficulties with variance 1 + 0.25, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ expit(model + np.sqrt(1.25) * nodes) / weights.sum())


def test_the_rate_is_not_confounded_by_how_hard_a_prompt_is() -> None:
    """The raw fit takes the ease of prompts with short answers for a merit of length, and is 7 to 9 points off."""
    rates, naive = [], []
    for seed in range(12):
        systems = confounded(np.random.default_rng([1, seed]), 300, (0.0, 0.5), 2)
        found = length_controlled_within_prompts(systems, n_bootstrap=1)
        assert found is not None
        rates.append([found.rates[name].interval.estimate for name in systems])
        naive.append(
            [
                length_controlled_win_rate(own.outcomes, own.lengths, own.clusters, n_bootstrap=1).win_rate.estimate
                for own in systems.values()
            ]
        )
    expected = [truth(0.0), truth(0.5)]
    assert np.mean(rates, axis=0) == pytest.approx(expected, abs=0.025)
    assert (np.mean(naive, axis=0) - expected > 0.05).all()


def test_the_fit_is_the_maximum_of_the_penalised_likelihood() -> None:
    """Found again by a quasi-Newton method of scipy's, over coefficients and difficulties at once."""
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
    drawn = weights > 0
    assert difficulties[0][drawn] == pytest.approx(expected[k:][drawn], abs=1e-4)


def test_the_influence_is_the_derivative_by_a_prompts_weight() -> None:
    systems = confounded(np.random.default_rng(4), 15, (0.0, 0.5), 2)
    model = _Model(systems)
    start = model.fit(np.ones((1, 15)))
    for contrast in (("s0", None), ("s1", "s0")):
        moved = []
        for prompt in range(15):
            weights = np.ones((2, 15))
            weights[:, prompt] += [1e-4, -1e-4]
            up, down = model.values(model.fit(weights), weights, [contrast])[:, 0]
            moved.append((up - down) / 2e-4)
        assert model.influence(start, *contrast)[0] == pytest.approx(np.array(moved) - np.mean(moved), abs=1e-5)


def test_a_single_pair_per_prompt_is_not_identified() -> None:
    systems = confounded(np.random.default_rng(5), 50, (0.0,), 1)
    assert length_controlled_within_prompts(systems) is None
    same = OutcomePairs([1, 0, 1, 1], [5, 5, 7, 7], [0, 0, 1, 1], [0, 0, 1, 1])  # two pairs, of the same length
    assert length_controlled_within_prompts({"s": same}) is None
    assert length_controlled_within_prompts(confounded(np.random.default_rng(5), 50, (0.0, 0.5), 1)) is not None


def test_a_prompt_that_nobody_wins_more_often_at_any_length_leaves_the_raw_rate() -> None:
    """Without an effect of length or difficulty, the rate at equal length is the raw one, but for noise."""
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(400), 4)
    own = OutcomePairs((rng.random(1600) < 0.7).astype(float), rng.normal(0, 100, 1600), labels, labels)
    found = length_controlled_within_prompts({"s": own}, n_bootstrap=300)
    assert found is not None
    interval = found.rates["s"].interval
    assert interval.estimate == pytest.approx(np.mean(own.outcomes), abs=0.01)
    assert interval.low < 0.7 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 1600), rel=0.15)


def test_a_systems_difference_from_the_baseline() -> None:
    systems = confounded(np.random.default_rng(7), 100, (0.0, 0.5), 2)
    found = length_controlled_within_prompts(systems, "s0", n_bootstrap=200)
    assert found is not None
    difference = found.differences["s1"].interval
    rates = [found.rates[name].interval.estimate for name in ("s0", "s1")]
    assert list(found.differences) == ["s1"]
    assert difference.estimate == pytest.approx(rates[1] - rates[0])
    assert (difference.n, difference.clusters) == (400, 100)
    assert difference.low < difference.estimate < difference.high


def test_a_difference_is_over_the_prompts_that_both_were_judged_on() -> None:
    systems = confounded(np.random.default_rng(8), 60, (0.0, 0.5), 2)
    own = systems["s1"]
    fewer = OutcomePairs(
        *(np.asarray(column)[:80] for column in (own.outcomes, own.lengths, own.prompts, own.clusters))
    )
    found = length_controlled_within_prompts({"s0": systems["s0"], "s1": fewer}, "s0", n_bootstrap=50)
    assert found is not None
    assert found.differences["s1"].interval.clusters == 40
    assert found.rates["s0"].interval.clusters == 60
    assert found.rates["s1"].interval.clusters == 40


def test_a_question_counts_once_however_many_samples_it_has() -> None:
    """One question has 40 samples that all win, nine have 4 that lose half: lengths vary, and have no effect."""
    labels = np.r_[np.zeros(40, dtype=int), np.repeat(np.arange(1, 10), 4)]
    lengths = np.where(np.arange(76) // 2 % 2, 10.0, -10.0)
    own = OutcomePairs(np.r_[np.ones(40), np.tile([1.0, 0.0, 1.0, 0.0], 9)], lengths, labels, labels)
    found = length_controlled_within_prompts({"s": own}, n_bootstrap=20)
    assert found is not None
    # Nine questions of about a half and one of nearly 1: 0.55, where the mean over pairs is 0.76.
    assert found.rates["s"].interval.estimate == pytest.approx(0.55, abs=0.03)


def test_one_system_that_always_wins_is_weak_and_the_other_is_not() -> None:
    systems = confounded(np.random.default_rng(9), 100, (0.0,), 2)
    own = systems["s0"]
    systems["always"] = OutcomePairs(np.ones(200), np.asarray(own.lengths) + 50, own.prompts, own.clusters)
    found = length_controlled_within_prompts(systems, "s0", n_bootstrap=50)
    assert found is not None
    assert found.rates["always"].weakness.startswith("weak")
    interval = found.rates["always"].interval
    assert interval.low < 0.025 ** (1 / 100)  # no surer than Clopper and Pearson of 100 wins
    difference = found.differences["always"]
    assert difference.near_separation
    assert difference.interval.high - difference.interval.low > 0.04
    assert found.rates["s0"].weakness == ""


def test_blocks_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = confounded(np.random.default_rng(10), 30, (0.0, 0.5), 2)
    first = length_controlled_within_prompts(systems, seed=1)
    assert length_controlled_within_prompts(systems, seed=1) == first
    assert length_controlled_within_prompts(systems, seed=2) != first
    monkeypatch.setattr(clusters, "_BLOCK", 120 * 150)  # 999 resamples in seven blocks, the last one short
    parts = length_controlled_within_prompts(systems, seed=1)
    assert first is not None
    assert parts is not None
    assert parts.rates["s0"].interval.low == pytest.approx(first.rates["s0"].interval.low, abs=0.03)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (OutcomePairs([], [], [], []), "no observations"),
        (OutcomePairs([1, 0], [1], [0, 1], [0, 1]), "one length"),
        (OutcomePairs([1, float("nan")], [1, 2], [0, 1], [0, 1]), "finite"),
        (OutcomePairs([1, 2], [1, 2], [0, 1], [0, 1]), r"\[0, 1\]"),
    ],
)
def test_wrong_input(own: OutcomePairs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_within_prompts({"s": own})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-9, 9), st.integers(0, 7), st.booleans()),
        min_size=2,
        max_size=30,
    )
)
def test_any_pairs_give_ordered_numbers_in_range(rows: list[tuple[float, int, int, bool]]) -> None:
    systems = {}
    for name in (False, True):
        own = [row for row in rows if row[3] == name]
        if own:
            outcomes, lengths, prompts, _ = zip(*own, strict=True)
            systems[str(name)] = OutcomePairs(outcomes, lengths, prompts, prompts)
    found = length_controlled_within_prompts(systems, "False", n_bootstrap=30)
    if found is None:
        return
    for controlled in found.rates.values():
        interval = controlled.interval
        assert 0 <= interval.estimate <= 1
        if np.isfinite(interval.low):
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
            assert interval.high - interval.low > 0.01
