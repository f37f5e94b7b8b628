"""Test the measurement of the gradient's error on synthetic gradients with known variances and directions."""

from typing import Any

import numpy as np
import pytest

from selfcontrast.errors import UserError
from studies.gradient_error.bandit import BanditSettings
from studies.gradient_error.components import components
from studies.gradient_error.measure import ALL, NONE, GradientError, ResponseGradients, on_bandit, on_model

BANDIT = BanditSettings(6, 2, 0.3, 0.5, 0.2, [1, 4], 1, 3000)
SETTINGS = GradientError(40, 12, None, [1, 3, 12], [4], 3000, 0, 0.95, BANDIT)
BETA = 0.5


def make_responses(noise: float = 1.0, prompts: int = 40, samples: int = 12) -> ResponseGradients:
    """Return noisy gradients in three dimensions. The noise has mean 0.

    In the first dimension a sample with score 1 has +1, a sample with score 0 has -1, and the target has 0. The filter
    keeps the samples that score 0.
    """
    rng = np.random.default_rng(5)
    scores = np.tile(np.arange(samples) % 2, (prompts, 1)).astype(float)
    gradients = noise * rng.standard_normal((prompts, 1 + samples, 3))
    gradients[:, 1:, 0] += 2 * scores - 1
    log_probs = rng.standard_normal((prompts, 1 + samples)) - 5
    kept = scores == 0
    drawn = [np.flatnonzero(row)[:4] for row in kept]
    return ResponseGradients(
        gradients, log_probs, log_probs, np.hstack([np.ones((prompts, 1)), scores]), kept, drawn, (20.0, 10.0)
    )


def test_slope_without_noise_is_positive_for_kept_negatives() -> None:
    """Kept negatives score 0, so the step away from them is +beta/2 in the first dimension, in which scores grow."""
    results = on_model(SETTINGS, make_responses(noise=1e-6), BETA)
    rows = {row["negatives"]: row for row in results["directions"]}
    assert rows["kept by the filter"]["slope"][0] == pytest.approx(BETA / 2, rel=1e-4)
    assert rows["left out by the filter"]["slope"][0] == pytest.approx(-BETA / 2, rel=1e-4)
    # The gradients of right and wrong samples cancel, so only noise is left.
    assert rows[ALL]["slope"][0] == pytest.approx(0, abs=1e-5)
    assert rows[NONE]["slope"][0] == pytest.approx(0, abs=1e-5)
    false = {name: row["false_negatives"] for name, row in rows.items()}
    assert (false[ALL], false["kept by the filter"], false["left out by the filter"]) == (0.5, 0.0, 1.0)
    assert rows["kept by the filter"]["slope"] == rows["worse than the target (oracle)"]["slope"]


def test_on_model_variances_equal_the_components_of_pairs() -> None:
    """At the start every margin is 0, so a pair's gradient is -beta/2 (target's - negative's)."""
    data = make_responses()
    pairs = -BETA / 2 * (data.gradients[:, :1] - data.gradients[:, 1:])
    expected, numbers = components(pairs), on_model(SETTINGS, data, BETA)["all"]
    assert (numbers["between"], numbers["within"]) == pytest.approx((expected.between, expected.within))
    fraction, low, high = numbers["negatives_share"]
    assert fraction == pytest.approx(expected.within / (expected.within + expected.between))
    assert low < fraction < high
    assert numbers["worth"]["3"][0] == pytest.approx(expected.worth(3))
    assert numbers["best_negatives"] == pytest.approx(expected.best_negatives(20, 10))
    assert numbers["prompts_needed"]["1"] == pytest.approx(expected.prompts_needed(1))


def test_measured_error_curves_match_the_formula() -> None:
    """The formula is for fresh prompts. These draws are from 40 prompts without replacement.

    For them the formula holds on average over data sets, and a single data set deviates by a few percent.
    """
    for row in on_model(SETTINGS, make_responses(), BETA)["curves"]:
        assert row["measured"] == pytest.approx(row["formula"], rel=0.15)


def test_on_model_without_a_verifier_has_no_directions() -> None:
    data = make_responses()
    unscored = ResponseGradients(
        data.gradients, data.log_probs, data.reference, None, data.kept, data.drawn, data.tokens
    )
    assert "directions" not in on_model(SETTINGS, unscored, BETA)


def test_filtered_numbers_leave_out_prompts_that_the_filter_drops() -> None:
    data = make_responses()
    drawn = [np.array([], dtype=np.intp), *data.drawn[1:]]
    results = on_model(
        SETTINGS,
        ResponseGradients(data.gradients, data.log_probs, data.reference, data.scores, data.kept, drawn, data.tokens),
        BETA,
    )
    pairs = -BETA / 2 * (data.gradients[:, :1] - data.gradients[:, 1:])
    kept = np.stack([pairs[i, drawn[i]] for i in range(1, 40)])
    assert results["filtered"]["within"] == pytest.approx(components(kept).within)
    assert list(results["filtered"]["worth"]) == ["1", "3"]  # K = 12 is missing: the pool has 4 negatives per prompt


def test_on_bandit_simulation_matches_the_formula() -> None:
    results = on_bandit(BANDIT, [1, 3])
    for row in results["curves"]:
        assert abs(row["simulated"] - row["formula"]) < 4 * row["error"]
    assert results["bias"][-1] == {"left": 0.0, "squared": 0.0}
    assert results["worth"]["1"] == 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"negatives": [1, 13]}, "theory.negatives"),
        ({"estimates": [40]}, "theory.estimates"),
        ({"prompts": 2}, "theory.prompts"),
        ({"draws": 1}, "theory.draws"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        GradientError(**{**vars(SETTINGS), **change})
