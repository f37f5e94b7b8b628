"""The estimates for a model, on hand-made gradients with known components and directions."""

from typing import Any

import numpy as np
import pytest

from selfcontrast.errors import UserError
from studies.gradient_error.bandit import BanditSettings
from studies.gradient_error.components import components
from studies.gradient_error.measure import ALL, NONE, GradientError, Measured, on_bandit, on_model

BANDIT = BanditSettings(6, 2, 0.3, 0.5, 0.2, [1, 4], 1, 3000)
SETTINGS = GradientError(40, 12, None, [1, 3, 12], [4], 3000, 0, 0.95, BANDIT)
BETA = 0.5


def measured(noise: float = 1.0, prompts: int = 40, samples: int = 12) -> Measured:
    """Responses' gradients in three dimensions. A sample that scores 1 has +1 in the first, one of 0 has -1; the target
    is between them. The filter keeps the samples of 0."""
    rng = np.random.default_rng(5)
    scores = np.tile(np.arange(samples) % 2, (prompts, 1)).astype(float)
    gradients = noise * rng.standard_normal((prompts, 1 + samples, 3))
    gradients[:, 1:, 0] += 2 * scores - 1
    log_probs = rng.standard_normal((prompts, 1 + samples)) - 5
    kept = scores == 0
    drawn = [np.flatnonzero(row)[:4] for row in kept]
    return Measured(
        gradients, log_probs, log_probs, np.hstack([np.ones((prompts, 1)), scores]), kept, drawn, (20.0, 10.0)
    )


def test_with_hardly_any_noise_the_filtered_gradient_points_uphill() -> None:
    """Negatives of 0 alone: a step of beta/2 (u+ - u-) = beta/2 (+1) in the first dimension, where scores grow."""
    found = on_model(SETTINGS, measured(noise=1e-6), BETA)
    rows = {row["negatives"]: row for row in found["directions"]}
    assert rows["kept by the filter"]["slope"][0] == pytest.approx(BETA / 2, rel=1e-4)
    assert rows["left out by the filter"]["slope"][0] == pytest.approx(-BETA / 2, rel=1e-4)
    # All of them: the gradients of right and wrong samples cancel, and nothing is left but noise.
    assert rows[ALL]["slope"][0] == pytest.approx(0, abs=1e-5)
    assert rows[NONE]["slope"][0] == pytest.approx(0, abs=1e-5)
    false = {name: row["false_negatives"] for name, row in rows.items()}
    assert (false[ALL], false["kept by the filter"], false["left out by the filter"]) == (0.5, 0.0, 1.0)
    assert rows["kept by the filter"]["slope"] == rows["worse than the target (oracle)"]["slope"]


def test_parts_are_those_of_the_pairs() -> None:
    """At the start every margin is 0, so a pair's gradient is -beta/2 (u+ - u-)."""
    data = measured()
    pairs = -BETA / 2 * (data.gradients[:, :1] - data.gradients[:, 1:])
    expected, found = components(pairs), on_model(SETTINGS, data, BETA)["all"]
    assert (found["between"], found["within"]) == pytest.approx((expected.between, expected.within))
    share, low, high = found["negatives_share"]
    assert share == pytest.approx(expected.within / (expected.within + expected.between))
    assert low < share < high
    assert found["worth"]["3"][0] == pytest.approx(expected.worth(3))
    assert found["best_negatives"] == pytest.approx(expected.best_negatives(20, 10))
    assert found["prompts_needed"]["1"] == pytest.approx(expected.prompts_needed(1))


def test_drawn_estimates_have_the_error_of_the_formula() -> None:
    """The formula is for fresh prompts; drawing from 40 without replacement, against the rest, it holds on average over
    data. One data set's own deviation is a few percent."""
    for row in on_model(SETTINGS, measured(), BETA)["curves"]:
        assert row["measured"] == pytest.approx(row["formula"], rel=0.15)


def test_without_a_verifier_there_are_no_directions() -> None:
    data = measured()
    blind = Measured(data.gradients, data.log_probs, data.reference, None, data.kept, data.drawn, data.tokens)
    assert "directions" not in on_model(SETTINGS, blind, BETA)


def test_prompts_that_the_filter_drops_are_left_out_of_what_is_told_of_it() -> None:
    data = measured()
    drawn = [np.array([], dtype=np.intp), *data.drawn[1:]]
    found = on_model(
        SETTINGS,
        Measured(data.gradients, data.log_probs, data.reference, data.scores, data.kept, drawn, data.tokens),
        BETA,
    )
    pairs = -BETA / 2 * (data.gradients[:, :1] - data.gradients[:, 1:])
    kept = np.stack([pairs[i, drawn[i]] for i in range(1, 40)])
    assert found["filtered"]["within"] == pytest.approx(components(kept).within)
    assert list(found["filtered"]["worth"]) == ["1", "3"]  # no more than the pool has


def test_bandit_formula_and_simulation() -> None:
    found = on_bandit(BANDIT, [1, 3])
    for row in found["curves"]:
        assert abs(row["simulated"] - row["formula"]) < 4 * row["error"]
    assert found["bias"][-1] == {"left": 0.0, "squared": 0.0}
    assert found["worth"]["1"] == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"negatives": [1, 13]}, "theory.negatives"),
        ({"estimates": [40]}, "theory.estimates"),
        ({"prompts": 2}, "theory.prompts"),
        ({"draws": 1}, "theory.draws"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        GradientError(**{**vars(SETTINGS), **change})
