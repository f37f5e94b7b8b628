"""Measure the coverage of every interval behind a conclusion, with its Monte Carlo error, on simulated evaluations.

    OMP_NUM_THREADS=1 python -m studies.coverage              # about 7 minutes on one core
    OMP_NUM_THREADS=1 python -m studies.coverage --scale 0.1  # the same cells, with a tenth of the simulations

The nominal level is 95%. The column "intervals" is the fraction of simulations that gave an interval: data without
variation give none. Coverage is computed over the simulations with an interval. A cell is marked if its coverage is
outside 95 +- 1.5% by more than two Monte Carlo errors. "high" means that its intervals are too wide. "LOW" means that
they miss the true value too often.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from selfcontrast.evaluation.statistics import (
    Interval,
    OutcomePairs,
    crossed_mean,
    holm,
    length_controlled_win_rate,
    length_controlled_within_prompts,
    paired_difference,
    rate_interval,
)
from studies.claims.judge import SUPPORTED, verdict

LEVEL, TOLERANCE = 0.95, 0.015
RESAMPLES = 399
SIZES = (10, 20, 100, 400)  # prompts
Floats = NDArray[np.float64]
Simulation = Callable[[np.random.Generator, int], tuple[float, float, float]]
"""Return the ends of an interval from seeded draws, and the true value."""


@dataclass(frozen=True)
class Cell:
    """The coverage of one interval in one setting.

    Attributes:
        simulations: number of simulations.
        intervals: number of simulations that gave an interval.
        covered: number of intervals that contain the true value.
    """

    estimand: str
    setting: str
    simulations: int
    intervals: int
    covered: int

    @property
    def coverage(self) -> float:
        return self.covered / self.intervals if self.intervals else float("nan")

    @property
    def error(self) -> float:
        """Return the Monte Carlo standard error at the nominal level."""
        return float(np.sqrt(LEVEL * (1 - LEVEL) / max(self.intervals, 1)))

    @property
    def mark(self) -> str:
        if self.coverage < LEVEL - TOLERANCE - 2 * self.error:
            return "LOW"
        return "high" if self.coverage > LEVEL + TOLERANCE + 2 * self.error else ""


def measure(estimand: str, setting: str, simulate: Simulation, simulations: int) -> Cell:
    """Run the simulations. Each has its own seeded generator, so a cell's result does not depend on which cells run."""
    ends = [simulate(np.random.default_rng([7, seed]), seed) for seed in range(simulations)]
    finite = [(low, high, truth) for low, high, truth in ends if np.isfinite([low, high]).all()]
    covered = sum(low - 1e-12 <= truth <= high + 1e-12 for low, high, truth in finite)
    return Cell(estimand, setting, simulations, len(finite), int(covered))


# --- paired differences

Difference = tuple[str, Callable[[np.random.Generator, int], Floats], float]


def _wins(better: float, worse: float, each: int) -> Difference:
    """Return the name, the sampler and the true difference of two systems with these rates of right answers.

    Args:
        each: answers per prompt."""
    name = f"right {better:g} and {worse:g}, {each} answers each"
    return name, lambda rng, n: (rng.binomial(each, better, n) - rng.binomial(each, worse, n)) / each, better - worse


def _grades(rng: np.random.Generator, n: int) -> Floats:
    """Draw differences of two systems' grades from 1 to 10. Many are ties."""
    quality = rng.normal(8, 1, n)
    first, second = (np.clip(np.round(quality + 0.5 * rng.normal(size=n)), 1, 10) for _ in range(2))
    return first - second


DIFFERENCES: list[Difference] = [
    ("grades from 1 to 10, many ties", _grades, 0.0),
    _wins(0.5, 0.4, 1),
    _wins(0.97, 0.95, 1),
    _wins(0.05, 0.01, 1),
    _wins(0.6, 0.55, 8),
    _wins(0.05, 0.02, 8),
]


def paired(scale: float, sizes: Sequence[int] = SIZES) -> Iterator[Cell]:
    for n in sizes:
        for name, draw, truth in DIFFERENCES:

            def simulate(
                rng: np.random.Generator, seed: int, draw: Any = draw, truth: float = truth, n: int = n
            ) -> tuple[float, float, float]:
                interval = paired_difference(draw(rng, n), np.zeros(n), np.arange(n), n_bootstrap=RESAMPLES, seed=seed)
                return interval.low, interval.high, truth

            yield measure("paired difference", f"n={n}, {name}", simulate, round(scale * 2000))


# --- rates


def _ties(rate: float, tie: float) -> Difference:
    def draw(rng: np.random.Generator, n: int) -> Floats:
        u = rng.random(n)
        return np.where(u < rate - tie / 2, 1.0, np.where(u < rate + tie / 2, 0.5, 0.0))

    return f"rate {rate:g}, ties {tie:g}", draw, rate


def _samples(rate: float, correlation: float, each: int = 8) -> Difference:
    def draw(rng: np.random.Generator, n: int) -> Floats:
        alpha, beta = rate * (1 / correlation - 1), (1 - rate) * (1 / correlation - 1)
        return rng.binomial(each, rng.beta(alpha, beta, n)) / each

    return f"rate {rate:g}, {each} samples correlated {correlation:g}", draw, rate


RATES: list[Difference] = [
    _ties(0.5, 0.0),
    _ties(0.95, 0.0),
    _ties(0.02, 0.0),
    _ties(0.5, 0.5),
    _ties(0.5, 0.9),
    _ties(0.95, 0.08),
    _samples(0.5, 0.3),
    _samples(0.97, 0.3),
    _samples(0.99, 0.3),
]


def rates(scale: float, sizes: Sequence[int] = SIZES) -> Iterator[Cell]:
    for n in sizes:
        for name, draw, truth in RATES:

            def simulate(
                rng: np.random.Generator, seed: int, draw: Any = draw, truth: float = truth, n: int = n
            ) -> tuple[float, float, float]:
                interval = rate_interval(draw(rng, n), np.arange(n))
                return interval.low, interval.high, truth

            yield measure("rate", f"n={n}, {name}", simulate, round(scale * 4000))


# --- rates at equal length


def confounded(
    rng: np.random.Generator, prompts: int, models: list[float], each: int
) -> tuple[list[OutcomePairs], Floats]:
    """Draw each system's outcomes against the opponent, and the prompts' difficulties.

    On easy prompts the opponent's answers are short.
    """
    size = rng.normal(size=prompts)
    opponent, difficulty = np.exp(7 + 0.6 * size), -size + 0.5 * rng.normal(size=prompts)
    labels = np.repeat(np.arange(prompts), each)
    pairs = []
    for model in models:
        lengths = np.exp(rng.normal(6.8, 0.2, (prompts, each))) + 300 * rng.normal(size=(prompts, each))
        lengths -= opponent[:, None]
        probability = expit(model + np.tanh(lengths / 1000) + difficulty[:, None])
        outcomes = (rng.random((prompts, each)) < probability).astype(float)
        pairs.append(OutcomePairs(outcomes.ravel(), lengths.ravel(), labels, labels))
    return pairs, difficulty


def at_equal_length(model: float) -> float:
    """Return the mean of expit(model + difficulty) over difficulties of variance 1.25, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ expit(model + np.sqrt(1.25) * nodes) / weights.sum())


def _known_difficulty(rng: np.random.Generator, seed: int, n: int, model: float) -> tuple[float, float, float]:
    """Simulate one pair per prompt, with known difficulties."""
    (pairs,), difficulty = confounded(rng, n, [model], 1)
    columns = pairs.outcomes, pairs.lengths, pairs.clusters, difficulty
    interval = length_controlled_win_rate(*columns, n_bootstrap=RESAMPLES, seed=seed).win_rate
    return interval.low, interval.high, at_equal_length(model)


def _estimated_difficulty(
    rng: np.random.Generator, seed: int, n: int, models: list[float], each: int, difference: bool
) -> tuple[float, float, float]:
    """Simulate with difficulties that are estimated from all systems' pairs."""
    pairs, _ = confounded(rng, n, models, each)
    systems = dict(zip(("a", "b"), pairs, strict=False))
    controlled = length_controlled_within_prompts(systems, "a", n_bootstrap=RESAMPLES, seed=seed)
    if controlled is None:
        return float("nan"), float("nan"), 0.0
    last = list(systems)[-1]
    interval: Interval = (controlled.differences if difference else controlled.rates)[last].interval
    truth = at_equal_length(models[-1]) - (at_equal_length(models[0]) if difference else 0.0)
    return interval.low, interval.high, truth


def equal_length(scale: float, sizes: Sequence[int] = SIZES) -> Iterator[Cell]:
    for n in sizes:
        simulations = round(scale * {10: 1000, 20: 1000, 100: 500, 400: 250}[n])
        for model in (0.0, -2.5):
            setting = f"n={n}, rate {at_equal_length(model):.2f}"
            yield measure(
                "rate at equal length, difficulty known",
                setting,
                partial(_known_difficulty, n=n, model=model),
                simulations,
            )
            yield measure(
                "rate at equal length, difficulty estimated",
                f"{setting}, 4 samples of one system",
                partial(_estimated_difficulty, n=n, models=[model], each=4, difference=False),
                simulations,
            )
        for each in (1, 4):
            yield measure(
                "difference at equal length, difficulty estimated",
                f"n={n}, rates {at_equal_length(0.0):.2f} and {at_equal_length(0.5):.2f}, {each} samples",
                partial(_estimated_difficulty, n=n, models=[0.0, 0.5], each=each, difference=True),
                simulations,
            )


# --- claims

SPREADS = [
    (0.0, 0.2, 0.3),
    (0.02, 0.2, 0.3),
    (0.1, 0.2, 0.3),
    (0.05, 0.0, 0.3),
]  # stds of seeds, prompts, rest


def crossed_table(rng: np.random.Generator, seeds: int, prompts: int, spread: tuple[float, float, float]) -> Floats:
    seed, prompt, rest = spread
    table: Floats = seed * rng.standard_normal((seeds, 1)) + prompt * rng.standard_normal((1, prompts))
    return table + rest * rng.standard_normal((seeds, prompts))


def claims(scale: float, sizes: Sequence[int] = SIZES) -> Iterator[Cell]:
    for seeds in (1, 2, 3, 5):
        for n in sizes:
            for spread in SPREADS if seeds > 1 else [(0.0, 0.2, 0.3)]:

                def simulate(
                    rng: np.random.Generator, seed: int, seeds: int = seeds, n: int = n, spread: Any = spread
                ) -> tuple[float, float, float]:
                    effect = crossed_mean(crossed_table(rng, seeds, n, spread))
                    return effect.low, effect.high, 0.0

                setting = f"S={seeds}, n={n}, spread of seeds {spread[0]:g}, prompts {spread[1]:g}, rest {spread[2]:g}"
                yield measure("claim's effect", setting, simulate, round(scale * 2000))


def false_claims(seeds: int, prompts: int, spread: tuple[float, float, float], families: int) -> float:
    """Return the fraction of families of eight null claims in which at least one is supported."""
    falsely_supported = 0
    for family in range(families):
        rng = np.random.default_rng([8, family])
        effects = [crossed_mean(crossed_table(rng, seeds, prompts, spread)) for _ in range(8)]
        corrected = holm([effect.p_value for effect in effects])
        falsely_supported += any(verdict(e, float(p)) == SUPPORTED for e, p in zip(effects, corrected, strict=True))
    return falsely_supported / families


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    table = Table("interval", "setting", "intervals", "coverage", "")
    for part in (paired, rates, equal_length, claims):
        for cell in part(scale):
            coverage = f"{100 * cell.coverage:.1f} ± {100 * cell.error:.1f}%"
            table.add_row(cell.estimand, cell.setting, f"{cell.intervals / cell.simulations:.0%}", coverage, cell.mark)
    console = Console(width=140)
    console.print(table)
    error_rates = Table("eight null claims", "falsely supported")
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            families = round(scale * 1000)
            rate = false_claims(seeds, 100, spread, families)
            error = float(np.sqrt(max(rate * (1 - rate), 1 / families) / families))
            error_rates.add_row(f"S={seeds}, n=100, spreads {spread}", f"{100 * rate:.1f} ± {100 * error:.1f}%")
    console.print(error_rates)


if __name__ == "__main__":
    main()
