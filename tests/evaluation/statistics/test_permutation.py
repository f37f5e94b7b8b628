import numpy as np
import pytest
from scipy import stats

from clustered import correlated
from selfcontrast.evaluation.statistics import clusters, paired_permutation_test
from selfcontrast.evaluation.statistics.permutation import least_p_value


def test_permutation_test_of_three_clusters_equals_numbers_by_hand() -> None:
    # Differences 1, 2, 3: |sum| >= 6 for 2 of 8 sign patterns.
    assert paired_permutation_test([1, 2, 3], [0, 0, 0], [0, 1, 2]) == 2 / 8
    # Differences 1, 2, -3 sum to 0: every pattern is at least as extreme.
    assert paired_permutation_test([1, 2, 0], [0, 0, 3], [0, 1, 2]) == 1


def test_permutation_test_exact_equals_scipy() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.normal(0.5, 1, 12), rng.normal(0, 1, 12)
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_permutation_test(a, b, np.arange(12)) == pytest.approx(expected.pvalue)


def test_permutation_test_sampled_is_near_exact() -> None:
    rng = np.random.default_rng(12)
    a, b = rng.normal(0.5, 1, 14), rng.normal(0, 1, 14)
    exact = paired_permutation_test(a, b, np.arange(14), n_bootstrap=2**14)
    sampled = paired_permutation_test(a, b, np.arange(14), n_bootstrap=2**14 - 1)
    assert exact != sampled  # the first enumerates the sign patterns, the second samples them
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 2**14))


def test_permutation_test_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    a, b, labels = rng.normal(0.3, 1, 30), rng.normal(0, 1, 30), np.arange(30)
    one_block = paired_permutation_test(a, b, labels)
    monkeypatch.setattr(clusters, "_BLOCK", 30 * 1000)
    assert 0.02 < one_block < 0.98
    assert paired_permutation_test(a, b, labels) == pytest.approx(one_block, abs=0.02)


def test_permutation_test_p_value_is_never_zero() -> None:
    assert paired_permutation_test(np.ones(100), np.zeros(100), np.arange(100), n_bootstrap=999) == 1 / 1000


def test_permutation_test_ignores_rounding() -> None:
    # Both means are 0.2, but (0.1 + 0.2 + 0.3) / 3 and (0.3 + 0.2 + 0.1) / 3 differ in the last bit.
    a, b = np.tile([0.1, 0.2, 0.3], 10), np.tile([0.3, 0.2, 0.1], 10)
    assert paired_permutation_test(a, b, np.repeat(np.arange(10), 3)) == 1


def test_permutation_test_rejects_a_true_null_at_its_level() -> None:
    rng = np.random.default_rng(13)
    labels = np.repeat(np.arange(20), 3)
    rejected = 0
    for seed in range(500):
        (a, _), (b, _) = correlated(rng, 20, 3), correlated(rng, 20, 3)
        rejected += paired_permutation_test(a, b, labels, n_bootstrap=199, seed=seed) <= 0.05
    assert 0.02 <= rejected / 500 <= 0.08


def test_permutation_test_of_swapped_systems_is_equal() -> None:
    rng = np.random.default_rng(10)
    (a, labels), (b, _) = correlated(rng, 40, 2), correlated(rng, 40, 2)
    assert paired_permutation_test(a, b, labels) == paired_permutation_test(b, a, labels)


def test_permutation_test_of_different_clusters_is_rejected() -> None:
    for clusters_b in ([0, 2], [0, 0], ["0", "1"]):
        with pytest.raises(ValueError, match="same clusters"):
            paired_permutation_test([1, 2], [1, 2], [0, 1], clusters_b)


def test_permutation_test_unusable_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="no observations"):
        paired_permutation_test([], [], [])
    with pytest.raises(ValueError, match="one length"):
        paired_permutation_test([1, 2], [1, 2], [1])
    with pytest.raises(ValueError, match="finite"):
        paired_permutation_test([1, np.nan], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="n_bootstrap"):
        paired_permutation_test([1, 2], [1, 2], [1, 2], n_bootstrap=0)


@pytest.mark.parametrize(("prompts", "n_bootstrap"), [(3, 100), (6, 100), (40, 100)])
def test_least_p_value_is_reached_by_a_system_that_always_wins(prompts: int, n_bootstrap: int) -> None:
    """Two of 2^3 or 2^6 sign patterns are as extreme as the data. Of 100 patterns sampled from 2^40, none is."""
    p_value = paired_permutation_test(np.ones(prompts), np.zeros(prompts), np.arange(prompts), n_bootstrap=n_bootstrap)
    assert least_p_value(prompts, n_bootstrap) == p_value
    assert p_value == pytest.approx({3: 2 / 8, 6: 2 / 64, 40: 1 / 101}[prompts])
