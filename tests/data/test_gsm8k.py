"""GSM8K as examples: from a folder of the authors' files, from the hub's layout, and from single files."""

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
    write(tmp_path / "test.jsonl", range(40, 52))  # one of training's problems among them
    return tmp_path


def by_prompt(splits: Any) -> dict[str, Example]:
    return {e.prompt[0]["content"]: e for examples in splits.values() for e in examples}


def test_a_row_is_question_solution_and_number(folder: Path) -> None:
    splits = gsm8k(f"data.root={folder}", "data.validation=0.2").load()
    assert len(splits["test"]) == 12
    assert len(splits["train"]) + len(splits["validation"]) == 39  # less the one that is tested
    assert splits["validation"]
    one = by_prompt(splits)["Half of 6,000?"]
    assert (one.target, one.answer) == ("It is 6,000/2 = 3,000.\n#### 3,000", "3,000")
    kept = by_prompt(gsm8k(f"data.root={folder}", "data.calculations=true").load())["Half of 6,000?"]
    assert (kept.target, kept.answer) == ("It is 6,000/2 = <<6,000/2=3,000>>3,000.\n#### 3,000", "3,000")


def test_only_some_rows_of_each_split(folder: Path) -> None:
    splits = gsm8k(f"data.root={folder}", "data.train.limit=16", "data.test.limit=8").load()
    assert len(splits["train"]) + len(splits["validation"]) == 16
    assert len(splits["test"]) == 8


def test_the_files_may_be_named_and_where_they_lie_is_no_part_of_the_key(folder: Path) -> None:
    named = gsm8k(f"data.train.path={folder / 'train.jsonl'}", f"data.test.path={folder / 'test.jsonl'}")
    rooted = gsm8k(f"data.root={folder}")
    assert named.load() == rooted.load()
    assert named.fingerprint() == rooted.fingerprint()
    assert gsm8k(f"data.root={folder}", "data.calculations=true").fingerprint() != rooted.fingerprint()


def test_a_copy_of_the_hubs_folder_is_read(folder: Path, tmp_path: Path) -> None:
    for split, numbers in (("train", range(1, 41)), ("test", range(40, 52))):
        write(tmp_path / "hub/openai/gsm8k/main" / f"{split}.jsonl", numbers)
    assert gsm8k(f"data.root={tmp_path / 'hub'}").load() == gsm8k(f"data.root={folder}").load()


def test_it_is_graded_by_the_final_number_unless_another_verifier_is_chosen(folder: Path) -> None:
    assert composed("data=gsm8k").verifier._target_ == "selfcontrast.data.graders.FinalNumber"
    assert composed("data=gsm8k", "verifier=none").verifier._target_ == "selfcontrast.data.graders.NoVerifier"


def test_all_of_it(tmp_path: Path) -> None:
    source = gsm8k(f"data.root={shared_data('gsm8k')}")
    splits = source.load()
    assert len(splits["test"]) == 1319
    assert len(splits["train"]) + len(splits["validation"]) == 7473
    assert 400 < len(splits["validation"]) < 600
    check_examples(FinalNumber(), source, splits)
    assert not any("<<" in e.target for e in by_prompt(splits).values())
