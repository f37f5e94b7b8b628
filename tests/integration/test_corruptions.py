"""Run twelve of the fifty cases of tests/corruptions.py."""

import random
from pathlib import Path

import pytest

from corruptions import run_damaged, stores


@pytest.mark.slow
def test_job_on_a_damaged_store_gives_the_same_result_or_an_error(tmp_path: Path) -> None:
    folders, expected = stores(tmp_path / "stores")
    draw = random.Random(1)
    outcomes = [run_damaged(folders[i % len(folders)], tmp_path / str(i), expected, draw) for i in range(12)]
    assert [outcome for outcome in outcomes if outcome.fault] == []
