"""benchmarks/coverage.py, short and seeded: every kind of interval covers the truth as often as it says."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

# By its path: the package that measures test coverage has the same name.
SPEC = importlib.util.spec_from_file_location(
    "coverage_cells", Path(__file__).parents[3] / "benchmarks" / "coverage.py"
)
assert SPEC is not None
assert SPEC.loader is not None
simulated: Any = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = simulated  # dataclasses look their module up
SPEC.loader.exec_module(simulated)

SCALE = {"paired": 0.1, "rates": 0.1, "equal_length": 0.03, "claims": 0.1}
SIZES = {"equal_length": (20,)}  # a model is fitted 399 times for each interval


@pytest.mark.parametrize("kind", list(SCALE))
def test_no_cell_covers_less_than_its_level(kind: str) -> None:
    """Each cell within 1.5% of 95% or above, but for three Monte Carlo errors; and all of them together."""
    found = list(getattr(simulated, kind)(SCALE[kind], sizes=SIZES.get(kind, (20, 100))))
    told, covered = sum(cell.told for cell in found), sum(cell.covered for cell in found)
    assert covered / told > 0.95 - 0.015
    for cell in found:
        assert cell.told == 0 or cell.coverage > 0.95 - 0.015 - 3 * cell.error, cell
        if kind != "paired":  # of which some have no variation, and then no interval
            assert cell.told == cell.simulations, cell


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_family_of_null_claims_is_seldom_supported(seeds: int) -> None:
    """At most 3%. Degrees of freedom pooled over seeds and prompts gave 15% with two seeds and 10% with three."""
    assert simulated.false_claims(seeds, 100, (0.1, 0.2, 0.3), families=150) <= 0.03 + 2 * 0.014
