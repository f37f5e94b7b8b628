"""Test that GSM8K is read from a folder of the authors' files, a copy of the hub's folder, or single files."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.config import build
from selfcontrast.data.example import Example
from selfcontrast.data.graders import FinalNumber, check_examples
from selfcontrast.data.gsm8k import Gsm8k
from shared import shared_data
from test_config import composed

ROW = {"question": "Half of {i}?", "answer": "It is {i}/2 = <<{i}/2={h}>>{h}.\n#### {h}"}


def row(i: int) -> dict[str, str]:
    return {key: text.format(i=f"{i * 2000:,}", h=f"{i * 1000:,}") for key, text in ROW.items()}


def write(file: Path, numbers: range) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    return file


def gsm8k(*overrides: str) -> Gsm8k:
    source: Gsm8k = build(composed("data=gsm8k", *overrides).data, "data")
    return source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", range(1, 41))
    write(tmp_path / "test.jsonl", range(40, 52))  # one problem is also in train
    return tmp_path


def by_prompt(splits: Any) -> dict[str, Example]:
    return {e.prompt[0]["content"]: e for examples in splits.values() for e in examples}


def test_row_gives_prompt_target_and_answer(folder: Path) -> None:
    splits = gsm8k(f"data.root={folder}", "data.validation=0.2").load()
    assert len(splits["test"]) == 12
    assert len(splits["train"]) + len(splits["validation"]) == 39  # without the problem that is also in test
    assert splits["validation"]
    example = by_prompt(splits)["Half of 6,000?"]
    assert (example.target, example.answer) == ("It is 6,000/2 = 3,000.\n#### 3,000", "3,000")
    unchanged = by_prompt(gsm8k(f"data.root={folder}", "data.calculations=true").load())["Half of 6,000?"]
    assert (unchanged.target, unchanged.answer) == ("It is 6,000/2 = <<6,000/2=3,000>>3,000.\n#### 3,000", "3,000")


def test_limit_applies_to_each_split(folder: Path) -> None:
    splits = gsm8k(f"data.root={folder}", "data.train.limit=16", "data.test.limit=8").load()
    assert len(splits["train"]) + len(splits["validation"]) == 16
    assert len(splits["test"]) == 8


def test_fingerprint_is_independent_of_paths(folder: Path) -> None:
    by_path = gsm8k(f"data.train.path={folder / 'train.jsonl'}", f"data.test.path={folder / 'test.jsonl'}")
    by_root = gsm8k(f"data.root={folder}")
    assert by_path.load() == by_root.load()
    assert by_path.fingerprint() == by_root.fingerprint()
    assert gsm8k(f"data.root={folder}", "data.calculations=true").fingerprint() != by_root.fingerprint()


def test_copy_of_the_hubs_folder_gives_the_same_examples(folder: Path, tmp_path: Path) -> None:
    for split, numbers in (("train", range(1, 41)), ("test", range(40, 52))):
        write(tmp_path / "hub/openai/gsm8k/main" / f"{split}.jsonl", numbers)
    assert gsm8k(f"data.root={tmp_path / 'hub'}").load() == gsm8k(f"data.root={folder}").load()


def test_verifier_is_final_number_by_default(folder: Path) -> None:
    assert composed("data=gsm8k").verifier._target_ == "selfcontrast.data.graders.FinalNumber"
    assert composed("data=gsm8k", "verifier=none").verifier._target_ == "selfcontrast.data.graders.NoVerifier"


def test_all_real_problems_are_read_and_gradable(tmp_path: Path) -> None:
    source = gsm8k(f"data.root={shared_data('gsm8k')}")
    splits = source.load()
    assert len(splits["test"]) == 1319
    assert len(splits["train"]) + len(splits["validation"]) == 7473
    assert 400 < len(splits["validation"]) < 600
    check_examples(FinalNumber(), source, splits)
    assert not any("<<" in e.target for e in by_prompt(splits).values())
