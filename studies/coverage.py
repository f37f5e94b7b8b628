"""Coverage of every interval that a conclusion rests on, with its Monte Carlo error, on simulated evaluations.

    OMP_NUM_THREADS=1 python -m studies.coverage              # about 8 minutes on one core
    OMP_NUM_THREADS=1 python -m studies.coverage --scale 0.1  # the same cells, with a tenth of the simulations

The nominal level is 95%. *told* is the fraction of simulations that gave an interval; coverage is over these. Without
variation there is no interval, which does not count as coverage. A cell is marked if it is outside 95 +- 1.5% by more
than two Monte Carlo errors: "high" is too wide, "LOW" is wrong.
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
"""The ends of an interval from seeded draws, and the truth."""


@dataclass(frozen=True)
class Cell:
    """A simulated case: simulations, intervals that were given (`told`), and intervals that `covered` the truth."""

    estimand: str
    setting: str
    simulations: int
    told: int
    covered: int

    @property
    def coverage(self) -> float:
        return self.covered / self.told if self.told else float("nan")

    @property
    def error(self) -> float:
        """Monte Carlo standard error at the nominal level."""
        return float(np.sqrt(LEVEL * (1 - LEVEL) / max(self.told, 1)))

    @property
    def mark(self) -> str:
        if self.coverage < LEVEL - TOLERANCE - 2 * self.error:
            return "LOW"
        return "high" if self.coverage > LEVEL + TOLERANCE + 2 * self.error else ""


def measure(estimand: str, setting: str, simulate: Simulation, simulations: int) -> Cell:
    """Simulate with one generator per simulation, so that cells do not depend on each other."""
    ends = [simulate(np.random.default_rng([7, seed]), seed) for seed in range(simulations)]
    told = [(low, high, truth) for low, high, truth in ends if np.isfinite([low, high]).all()]
    covered = sum(low - 1e-12 <= truth <= high + 1e-12 for low, high, truth in told)
    return Cell(estimand, setting, simulations, len(told), int(covered))


# --- paired differences

Difference = tuple[str, Callable[[np.random.Generator, int], Floats], float]


def _wins(better: float, worse: float, each: int) -> Difference:
    """Two systems' shares of `each` right answers per prompt, at two rates."""
    name = f"right {better:g} and {worse:g}, {each} answers each"
    return name, lambda rng, n: (rng.binomial(each, better, n) - rng.binomial(each, worse, n)) / each, better - worse


def _grades(rng: np.random.Generator, n: int) -> Floats:
    """Two systems' grades from 1 to 10 of a question, mostly ties."""
    level = rng.normal(8, 1, n)
    own, other = (np.clip(np.round(level + 0.5 * rng.normal(size=n)), 1, 10) for _ in range(2))
    return own - other


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
                found = paired_difference(draw(rng, n), np.zeros(n), np.arange(n), n_bootstrap=RESAMPLES, seed=seed)
                return found.low, found.high, truth

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
                found = rate_interval(draw(rng, n), np.arange(n))
                return found.low, found.high, truth

            yield measure("rate", f"n={n}, {name}", simulate, round(scale * 4000))


# --- rates at equal length


def confounded(
    rng: np.random.Generator, prompts: int, models: list[float], each: int
) -> tuple[list[OutcomePairs], Floats]:
    """The pairs of each system, and the prompts' difficulties: easy prompts have short answers of the opponent."""
    size = rng.normal(size=prompts)
    opponent, difficulty = np.exp(7 + 0.6 * size), -size + 0.5 * rng.normal(size=prompts)
    labels = np.repeat(np.arange(prompts), each)
    found = []
    for model in models:
        lengths = np.exp(rng.normal(6.8, 0.2, (prompts, each))) + 300 * rng.normal(size=(prompts, each))
        lengths -= opponent[:, None]
        chance = expit(model + np.tanh(lengths / 1000) + difficulty[:, None])
        outcomes = (rng.random((prompts, each)) < chance).astype(float)
        found.append(OutcomePairs(outcomes.ravel(), lengths.ravel(), labels, labels))
    return found, difficulty


def at_equal_length(model: float) -> float:
    """The mean of expit(model + difficulty) over difficulties of variance 1.25, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ expit(model + np.sqrt(1.25) * nodes) / weights.sum())


def _given(rng: np.random.Generator, seed: int, n: int, model: float) -> tuple[float, float, float]:
    """One pair per prompt, whose difficulty is known."""
    (own,), difficulty = confounded(rng, n, [model], 1)
    columns = own.outcomes, own.lengths, own.clusters, difficulty
    found = length_controlled_win_rate(*columns, n_bootstrap=RESAMPLES, seed=seed).win_rate
    return found.low, found.high, at_equal_length(model)


def _estimated(
    rng: np.random.Generator, seed: int, n: int, models: list[float], each: int, difference: bool
) -> tuple[float, float, float]:
    """Difficulties that are estimated from all systems' pairs."""
    pairs, _ = confounded(rng, n, models, each)
    systems = dict(zip(("a", "b"), pairs, strict=False))
    found = length_controlled_within_prompts(systems, "a", n_bootstrap=RESAMPLES, seed=seed)
    if found is None:
        return float("nan"), float("nan"), 0.0
    last = list(systems)[-1]
    interval: Interval = (found.differences if difference else found.rates)[last].interval
    truth = at_equal_length(models[-1]) - (at_equal_length(models[0]) if difference else 0.0)
    return interval.low, interval.high, truth


def equal_length(scale: float, sizes: Sequence[int] = SIZES) -> Iterator[Cell]:
    for n in sizes:
        simulations = round(scale * {10: 1000, 20: 1000, 100: 500, 400: 250}[n])
        for model in (0.0, -2.5):
            where = f"n={n}, rate {at_equal_length(model):.2f}"
            yield measure(
                "rate at equal length, difficulty given",
                where,
                partial(_given, n=n, model=model),
                simulations,
            )
            yield measure(
                "the same, difficulty estimated",
                f"{where}, 4 samples of one system",
                partial(_estimated, n=n, models=[model], each=4, difference=False),
                simulations,
            )
        for each in (1, 4):
            yield measure(
                "difference at equal length, difficulty estimated",
                f"n={n}, rates {at_equal_length(0.0):.2f} and {at_equal_length(0.5):.2f}, {each} samples",
                partial(_estimated, n=n, models=[0.0, 0.5], each=each, difference=True),
                simulations,
            )


# --- claims

SPREADS = [
    (0.0, 0.2, 0.3),
    (0.02, 0.2, 0.3),
    (0.1, 0.2, 0.3),
    (0.05, 0.0, 0.3),
]  # spreads of seeds, prompts and the rest


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
                    found = crossed_mean(crossed_table(rng, seeds, n, spread))
                    return found.low, found.high, 0.0

                where = f"S={seeds}, n={n}, spread of seeds {spread[0]:g}, prompts {spread[1]:g}, rest {spread[2]:g}"
                yield measure("claim's effect", where, simulate, round(scale * 2000))


def false_claims(seeds: int, prompts: int, spread: tuple[float, float, float], families: int) -> float:
    """The share of families of eight null claims in which one is supported."""
    wrong = 0
    for family in range(families):
        rng = np.random.default_rng([8, family])
        found = [crossed_mean(crossed_table(rng, seeds, prompts, spread)) for _ in range(8)]
        corrected = holm([effect.p_value for effect in found])
        wrong += any(verdict(e, float(p)) == SUPPORTED for e, p in zip(found, corrected, strict=True))
    return wrong / families


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    table = Table("interval", "setting", "told", "coverage", "")
    for part in (paired, rates, equal_length, claims):
        for cell in part(scale):
            shown = f"{100 * cell.coverage:.1f} ± {100 * cell.error:.1f}%"
            table.add_row(cell.estimand, cell.setting, f"{cell.told / cell.simulations:.0%}", shown, cell.mark)
    console = Console(width=140)
    console.print(table)
    falsely = Table("eight null claims", "falsely supported")
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            families = round(scale * 1000)
            rate = false_claims(seeds, 100, spread, families)
            error = float(np.sqrt(max(rate * (1 - rate), 1 / families) / families))
            falsely.add_row(f"S={seeds}, n=100, spreads {spread}", f"{100 * rate:.1f} ± {100 * error:.1f}%")
    console.print(falsely)


if __name__ == "__main__":
    main()
