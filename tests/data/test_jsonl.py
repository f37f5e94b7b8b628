import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonl_rows import examples, load_error, pairs, source, user, write

from selfcontrast.data.example import Example
from selfcontrast.data.jsonl import Jsonl, read_rows, split_by_prompt
from shared import shared_data

# --- splitting ---


def test_each_prompt_is_in_one_split_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 60}", "completion": f"a{i}"} for i in range(240)]
    loaded = source(write(tmp_path / "d.jsonl", rows), validation=0.2, test=0.2).load()
    prompts = {name: {e.prompt[0]["content"] for e in split} for name, split in loaded.items()}
    assert sum(len(split) for split in loaded.values()) == 240
    assert sum(len(split) for split in prompts.values()) == 60
    assert all(prompts.values())
    for split in loaded.values():  # a split keeps the order of the file
        order = [int(e.target[1:]) for e in split]
        assert order == sorted(order)


def test_split_sizes_match_the_fractions(tmp_path: Path) -> None:
    loaded = source(write(tmp_path / "d.jsonl", pairs(4000)), validation=0.1, test=0.3).load()
    # The standard deviations of the two sizes are 19 and 29 rows.
    assert abs(len(loaded["validation"]) - 400) < 80
    assert abs(len(loaded["test"]) - 1200) < 120


def test_added_rows_move_no_prompt_to_another_split(tmp_path: Path) -> None:
    few = source(write(tmp_path / "few.jsonl", pairs(300))).load()
    many = source(write(tmp_path / "many.jsonl", pairs(600)[::-1])).load()
    for name, split in few.items():
        assert {e.id for e in split} <= {e.id for e in many[name]}


def test_split_is_the_same_on_every_machine(tmp_path: Path) -> None:
    loaded = source(write(tmp_path / "d.jsonl", pairs(40))).load()
    # A prompt's hash decides its split. To compute it: printf '[{"role": "user", "content": "question 2"}]' | sha256sum
    # Test hashes begin below 0x1999, the fraction 0.1: question 2 has 00aa, 9 has 090e, 33 has 0fc0, 4 has 12ff.
    # Validation hashes begin below 0x2666, the fraction 0.15: question 30 has 1c0f, 6 has 2332.
    # Training hashes are higher: question 8 has 2dde, 39 has 2f8b, 18 has 353b, and so on.
    numbers = {name: [int(e.target.removeprefix("answer ")) for e in split] for name, split in loaded.items()}
    assert (numbers["test"], numbers["validation"]) == ([2, 4, 9, 33], [6, 30])


@given(
    count=st.integers(3, 12),
    fractions=st.sampled_from([(0.001, 0.001), (0.05, 0.1), (0.001, 0.998), (0.998, 0.001)]),
)
def test_no_split_is_empty(count: int, fractions: tuple[float, float]) -> None:
    rows = [Example(id=str(i), prompt=[user(str(i))], target="a") for i in range(count)]
    split = split_by_prompt(rows, *fractions)
    assert all(split.values())
    assert sum(len(part) for part in split.values()) == count


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*pairs(9), *pairs(2), {"prompt": "question 0", "completion": "another answer"}]
    with caplog.at_level(logging.WARNING, logger="selfcontrast.data.jsonl"):
        parsed = examples(write(tmp_path / "d.jsonl", rows))
    assert len(parsed) == len({e.id for e in parsed}) == 10
    assert "exact duplicate: 2" in caplog.text


def test_limit_keeps_the_first_usable_rows(tmp_path: Path) -> None:
    rows = [*pairs(1), *pairs(20), {"prompt": "broken"}]
    parsed = examples(write(tmp_path / "d.jsonl", rows), limit=10)
    assert {e.target for e in parsed} == {f"answer {i}" for i in range(10)}


def test_ids_do_not_depend_on_path_file_format_or_order(tmp_path: Path) -> None:
    first = examples(write(tmp_path / "a.jsonl", pairs(9)))
    second = examples(write(tmp_path / "b.parquet", pairs(9)[::-1]))
    assert first == second


# --- fingerprint ---


def test_fingerprint_depends_on_content_and_settings_not_on_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(8))
    base = source(path).fingerprint()
    assert source(write(tmp_path / "b.jsonl", pairs(8))).fingerprint() == base
    assert json.loads(json.dumps(base)) == base
    changed = [
        source(write(tmp_path / "c.jsonl", pairs(9))).fingerprint(),
        source(path, validation=0.1).fingerprint(),
        source(path, test=0.2).fingerprint(),
        source(path, limit=8).fingerprint(),
    ]
    assert all(other != base for other in changed)


def test_config_builds_the_source(tmp_path: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).parents[2] / "conf/data/jsonl.yaml")
    config.pop("defaults")  # the verifier has its own config group
    assert OmegaConf.missing_keys(config) == {"path"}
    built = instantiate(config, path=str(write(tmp_path / "d.jsonl", pairs(8))))
    assert isinstance(built, Jsonl)
    assert sum(len(split) for split in built.load().values()) == 8


# --- the public files ---

PUBLIC = [  # file, usable rows, rows with a rejected response
    ("instruction_tuning/llamafactory_alpaca_en_demo.json", 999 - 14, 0),
    ("instruction_tuning/rasbt_instruction_1100.json", 1100, 0),
    ("instruction_tuning/rasbt_preference_1100.json", 1100, 1100),
    ("instruction_tuning/gpteacher_roleplay_1923.json", 1923, 0),
    ("instruction_tuning/llamafactory_dpo_en_demo.json", 300 - 5, 295),
    ("hh_rlhf/harmless-base_test.jsonl.gz", 2312 - 12, 2299),
]


@pytest.mark.parametrize(("name", "rows", "rejected"), PUBLIC)
def test_public_files_have_the_known_numbers_of_rows(name: str, rows: int, rejected: int) -> None:
    parsed = examples(shared_data(name))
    assert len(parsed) == len({e.id for e in parsed}) == rows
    assert sum(bool(e.rejected) for e in parsed) == rejected
    assert all(e.prompt[-1]["role"] == "user" and e.target.strip() for e in parsed)


def test_public_file_of_unknown_format_raises() -> None:
    file = shared_data("instruction_tuning/self_instruct_seed_tasks_175.jsonl")
    assert "id, name, instruction, instances" in load_error(file)


def test_small_file_may_exceed_the_compression_limit(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "' + b"b" * 10**6 + b'"}'))
    assert len(list(read_rows(str(file)))) == 1
