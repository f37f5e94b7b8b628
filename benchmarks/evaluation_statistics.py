"""Measure the time of the statistics of a large evaluation on one core.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_statistics.py     # 10,000 pairwise judgments, 1,000 resamples
    python benchmarks/evaluation_statistics.py --judgments 2000 --n-bootstrap 5000

Judgments are drawn from the length-control model, two per prompt (one per order). The length-controlled win rate uses
instruction difficulties (three coefficients), so every resample is a logistic fit to all judgments. The contamination
check compares the n-grams of 400 prompts of 30 words with those of 100,000.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from selfcontrast.evaluation.contamination import containment
from selfcontrast.evaluation.statistics import (
    length_controlled_win_rate,
    mean_interval,
    paired_permutation_test,
    position_bias,
    win_rate,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgments", type=int, default=10_000)
    parser.add_argument("--n-bootstrap", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    table = Table("statistic", "seconds, best", "worst")
    for name, compute in statistics(args.judgments, args.n_bootstrap).items():
        seconds = [timed(compute) for _ in range(args.rounds)]
        table.add_row(name, f"{min(seconds):.2f}", f"{max(seconds):.2f}")
    Console().print(table)


def statistics(judgments: int, n_bootstrap: int) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(judgments // 2), 2)
    lengths, difficulty = rng.normal(200, 500, judgments // 2)[prompts], rng.normal(size=judgments // 2)[prompts]
    log_odds = 0.3 + np.tanh(lengths / 500) - 0.5 * difficulty
    outcomes = (rng.random(len(prompts)) < expit(log_odds)).astype(float)
    first, second, labels = outcomes[::2], outcomes[1::2], prompts[::2]
    words = [f"w{i}" for i in range(5_000)]
    texts = [" ".join(rng.choice(words, 30)) for _ in range(100_400)]
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap}
    return {
        "length-controlled win rate": lambda: length_controlled_win_rate(
            outcomes, lengths, prompts, difficulty, **options
        ),
        "win rate": lambda: win_rate(outcomes, prompts),
        "mean of as many clusters as judgments": lambda: mean_interval(outcomes, np.arange(len(outcomes)), **options),
        "paired permutation test": lambda: paired_permutation_test(first, second, labels, **options),
        "position bias": lambda: position_bias(first, second, labels),
        "13-gram containment, 400 in 100,000 prompts": lambda: containment(texts[:400], texts[400:], 13),
    }


def timed(compute: Callable[[], Any]) -> float:
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
