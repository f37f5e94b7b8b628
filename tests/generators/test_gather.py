"""Test merging the candidates of two iterations, and choosing disjoint parts of the prompts."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfcontrast.data.candidates import Candidate, candidates_table, read_candidates
from selfcontrast.generators import gather as gather_module
from selfcontrast.generators.gather import gather
from selfcontrast.generators.generate import FILE, choose
from tiny import example

NAMES = [f"p{i}" for i in range(8)]
NAME_LISTS = st.lists(st.sampled_from(NAMES), unique=True, min_size=1).map(sorted)


def write_candidates(file: Path, names: list[str], text: str) -> Path:
    rows = [Candidate(name, i, f"{text} {name} {i}", [i + 1], "stop", -1.0) for name in names for i in range(3)]
    pq.write_table(candidates_table(rows), file)
    return file


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAME_LISTS, NAME_LISTS, st.integers(1, 9))
def test_gather_merges_each_prompts_candidates(tmp_path: Path, first: list[str], second: list[str], size: int) -> None:
    files = (
        write_candidates(tmp_path / "one.parquet", first, "old"),
        write_candidates(tmp_path / "two.parquet", second, "new"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather_module, "ROWS_PER_WRITE", size)
        summary = gather(tmp_path, *files, 3)
    merged: dict[str, list[tuple[int, str]]] = {}
    order = []
    for candidate in read_candidates(tmp_path / FILE):
        order += [candidate.id] if order[-1:] != [candidate.id] else []
        merged.setdefault(candidate.id, []).append((candidate.sample, candidate.text))
    assert len(order) == len(set(order))  # the candidates of a prompt are together
    expected = {name: [(i, f"old {name} {i}") for i in range(3)] for name in first}
    for name in second:
        expected.setdefault(name, []).extend((i + 3, f"new {name} {i}") for i in range(3))
    assert merged == expected
    assert summary == {"prompts": len(expected), "responses": sum(map(len, expected.values()))}


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_choose_parts_are_disjoint_and_part_0_is_the_default(prompts: int, count: int, parts: int, seed: int) -> None:
    examples = [example(f"p{i}", "?", "a") for i in range(prompts)]
    count = min(count, prompts // parts)
    if not count:
        return
    drawn_parts = [[chosen.id for chosen in choose(examples, count, seed, part)] for part in range(parts)]
    assert drawn_parts[0] == [chosen.id for chosen in choose(examples, count, seed)]
    assert all(len(part) == count for part in drawn_parts)
    assert len({name for part in drawn_parts for name in part}) == count * parts
