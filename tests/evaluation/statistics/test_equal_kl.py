"""Scores at the same KL, by hand and against a plain loop."""

import numpy as np
import pytest

from selfcontrast.evaluation.statistics.equal_kl import Path, at_equal_kl, score_at

OPTIONS = {"confidence": 0.95, "n_bootstrap": 500, "seed": 0}


def constant(kl: list[float], scores: list[float], prompts: int = 3) -> Path:
    """All prompts alike."""
    return Path(*(np.repeat(np.array(values)[:, None], prompts, axis=1) for values in (kl, scores)))


def test_at_the_smallest_final_kl_by_straight_lines() -> None:
    """Common KL 3: the first ends there; the second is halfway from (2, 0.8) to (4, 0.4), the third halfway."""
    paths = [constant([0, 1, 3], [0.5, 0.6, 0.7]), constant([0, 2, 4], [0.5, 0.8, 0.4]), constant([0, 6], [0.5, 0.9])]
    found = at_equal_kl(paths, **OPTIONS)  # type: ignore[arg-type]
    assert found.kl == 3
    assert [score.estimate for score in found.scores] == pytest.approx([0.7, 0.6, 0.7])
    assert [difference.estimate for difference in found.differences] == pytest.approx([0, -0.1, 0])


def test_a_path_that_turns_back_counts_where_it_first_comes_by() -> None:
    kl, scores = np.array([[0, 4, 1, 5]]), np.array([[0.0, 0.4, 0.9, 1.0]])
    assert score_at(kl, scores, np.array([2.0])).tolist() == pytest.approx([0.2])
    assert score_at(kl, scores, np.array([9.0])).tolist() == [1.0]
    assert score_at(kl, scores, np.array([0.0])).tolist() == [0.0]


def random_paths(seed: int, prompts: int) -> list[Path]:
    rng = np.random.default_rng(seed)
    found = []
    for points, gain in ((3, 0.3), (4, 0.2)):
        kl = (
            np.linspace(0, points, points)[:, None]
            + rng.normal(0, 0.5, (points, prompts)) * (np.arange(points) > 0)[:, None]
        )
        scores = np.linspace(0.4, 0.4 + gain, points)[:, None] + rng.normal(0, 0.3, (points, prompts))
        found.append(Path(kl, scores))
    return found


def test_intervals_are_those_of_a_loop_over_the_same_samples() -> None:
    paths, prompts = random_paths(0, 30), 30
    found = at_equal_kl(paths, **OPTIONS)  # type: ignore[arg-type]
    rng, values = np.random.default_rng(0), []
    for _ in range(500):
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts))
        chosen = np.repeat(np.arange(prompts), counts)
        means = [(np.asarray(p.kl)[:, chosen].mean(1), np.asarray(p.scores)[:, chosen].mean(1)) for p in paths]
        where = min(kl[-1] for kl, _ in means)
        values.append([np.interp(where, kl, scores) for kl, scores in means])  # these paths rise
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    assert [score.low for score in found.scores] == pytest.approx(low)
    assert [score.high for score in found.scores] == pytest.approx(high)
    low, high = np.quantile(np.diff(values, axis=1)[:, 0], [0.025, 0.975])
    assert [found.differences[1].low, found.differences[1].high] == pytest.approx([low, high])
    assert (found.differences[0].low, found.differences[0].high) == (0, 0)


def test_one_prompt_has_no_interval() -> None:
    found = at_equal_kl([constant([0, 1], [0, 1], prompts=1)], **OPTIONS)  # type: ignore[arg-type]
    assert np.isnan([found.scores[0].low, found.scores[0].high]).all()


@pytest.mark.parametrize(
    "wrong",
    [constant([0.0], [0.5]), constant([0, 1], [0.5, 0.6], prompts=4), constant([0, np.nan], [0.5, 0.6])],
    ids=["one point", "other prompts", "no number"],
)
def test_what_is_no_path_is_refused(wrong: Path) -> None:
    with pytest.raises(ValueError, match=r"path|finite"):
        at_equal_kl([constant([0, 1], [0.5, 0.6]), wrong], **OPTIONS)  # type: ignore[arg-type]
