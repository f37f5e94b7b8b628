"""Compare scores at equal KL with numbers computed by hand and with a plain loop."""

import numpy as np
import pytest

from selfcontrast.evaluation.statistics.equal_kl import KLPath, at_equal_kl, score_at

OPTIONS = {"confidence": 0.95, "n_bootstrap": 500, "seed": 0}


def constant(kl: list[float], scores: list[float], prompts: int = 3) -> KLPath:
    """Return a path on which all prompts are equal."""
    return KLPath(*(np.repeat(np.array(values)[:, None], prompts, axis=1) for values in (kl, scores)))


def test_at_equal_kl_interpolates_at_the_smallest_final_kl() -> None:
    """The common KL is 3, where the first path ends and the other two are halfway between points."""
    paths = [constant([0, 1, 3], [0.5, 0.6, 0.7]), constant([0, 2, 4], [0.5, 0.8, 0.4]), constant([0, 6], [0.5, 0.9])]
    result = at_equal_kl(paths, **OPTIONS)  # type: ignore[arg-type]
    assert result.kl == 3
    assert [score.estimate for score in result.scores] == pytest.approx([0.7, 0.6, 0.7])
    assert [difference.estimate for difference in result.differences] == pytest.approx([0, -0.1, 0])


def test_score_at_uses_the_first_place_where_a_path_reaches_the_kl() -> None:
    kl, scores = np.array([[0, 4, 1, 5]]), np.array([[0.0, 0.4, 0.9, 1.0]])
    assert score_at(kl, scores, np.array([2.0])).tolist() == pytest.approx([0.2])
    assert score_at(kl, scores, np.array([9.0])).tolist() == [1.0]
    assert score_at(kl, scores, np.array([0.0])).tolist() == [0.0]


def random_paths(seed: int, prompts: int) -> list[KLPath]:
    rng = np.random.default_rng(seed)
    paths = []
    for points, gain in ((3, 0.3), (4, 0.2)):
        kl = (
            np.linspace(0, points, points)[:, None]
            + rng.normal(0, 0.5, (points, prompts)) * (np.arange(points) > 0)[:, None]
        )
        scores = np.linspace(0.4, 0.4 + gain, points)[:, None] + rng.normal(0, 0.3, (points, prompts))
        paths.append(KLPath(kl, scores))
    return paths


def test_at_equal_kl_intervals_equal_a_plain_loop() -> None:
    paths, prompts = random_paths(0, 30), 30
    result = at_equal_kl(paths, **OPTIONS)  # type: ignore[arg-type]
    rng, values = np.random.default_rng(0), []
    for _ in range(500):
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts))
        chosen = np.repeat(np.arange(prompts), counts)
        means = [(np.asarray(p.kl)[:, chosen].mean(1), np.asarray(p.scores)[:, chosen].mean(1)) for p in paths]
        common_kl = min(kl[-1] for kl, _ in means)
        values.append([np.interp(common_kl, kl, scores) for kl, scores in means])  # the KL of these paths only rises
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    assert [score.low for score in result.scores] == pytest.approx(low)
    assert [score.high for score in result.scores] == pytest.approx(high)
    low, high = np.quantile(np.diff(values, axis=1)[:, 0], [0.025, 0.975])
    assert [result.differences[1].low, result.differences[1].high] == pytest.approx([low, high])
    assert (result.differences[0].low, result.differences[0].high) == (0, 0)


def test_at_equal_kl_one_prompt_has_no_interval() -> None:
    result = at_equal_kl([constant([0, 1], [0, 1], prompts=1)], **OPTIONS)  # type: ignore[arg-type]
    assert np.isnan([result.scores[0].low, result.scores[0].high]).all()


@pytest.mark.parametrize(
    "wrong",
    [constant([0.0], [0.5]), constant([0, 1], [0.5, 0.6], prompts=4), constant([0, np.nan], [0.5, 0.6])],
    ids=["one point", "another number of prompts", "NaN"],
)
def test_at_equal_kl_unusable_path_is_rejected(wrong: KLPath) -> None:
    with pytest.raises(ValueError, match=r"path|finite"):
        at_equal_kl([constant([0, 1], [0.5, 0.6]), wrong], **OPTIONS)  # type: ignore[arg-type]
