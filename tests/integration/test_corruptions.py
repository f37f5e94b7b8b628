"""Damage to a store changes no result without a word: twelve of the script's fifty damages."""

import random
from pathlib import Path

import pytest

from corruptions import damaged, stores


@pytest.mark.slow
def test_no_damage_to_a_store_changes_a_result(tmp_path: Path) -> None:
    places, expected = stores(tmp_path / "stores")
    draw = random.Random(1)
    outcomes = [damaged(places[i % len(places)], tmp_path / str(i), expected, draw) for i in range(12)]
    assert [outcome for outcome in outcomes if outcome.fault] == []
