"""Test reading the authors' release, from hand-written rows in the format of the reference implementation."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.example import Example
from selfcontrast.data.release import Release
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.importer import Import
from selfcontrast.generators.pairs import Pairs
from tiny import candidates_by_prompt, policy_folder

Row = dict[str, Any]
HISTORY = [["the cat?", "a dog"]]


def pair(number: int, rejected: str, history: Any = ()) -> Row:
    """Return a row as src/construct_synthetic_data.py of the reference implementation writes it."""
    output = [f"Answer {number}.", rejected]
    return {"instruction": f"Q{number}?", "input": "", "output": output, "system": "", "history": list(history)}


def write(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write training rows of twelve prompts, and nine evaluation prompts. Prompt 11 is in both.

    In Self-Contrast_2, each prompt has two pairs, and the rows are in two files.
    """
    folder = tmp_path / "data" / "HH-RLHF"
    pairs = [pair(i, f"No {i}{letter}.", HISTORY if i == 3 else []) for i in range(12) for letter in "ab"]
    write(folder / "Self-Contrast_2" / "a.jsonl", pairs[:10])
    write(folder / "Self-Contrast_2" / "b.jsonl", pairs[10:])
    write(folder / "DPO" / "train.jsonl", [pair(i, f"Bad {i}.") for i in range(12)])
    write(folder / "SFT" / "train.jsonl", [{**pair(i, ""), "output": f"Answer {i}."} for i in range(12)])
    write(folder / "test.jsonl", [pair(i, f"Bad {i}.") for i in range(11, 20)])
    return tmp_path / "data"


def release(root: Path, rows: str = "Self-Contrast_2", dataset: str = "HH-RLHF") -> Release:
    return Release(str(root), dataset, rows, "test.jsonl", 0.1)


def training_examples(source: Release) -> dict[str, Example]:
    splits = source.load()
    return {example.target: example for example in [*splits["train"], *splits["validation"]]}


def test_pairs_of_a_prompt_are_one_example(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loaded = training_examples(release(root))
    assert set(loaded) == {f"Answer {i}." for i in range(11)}  # prompt 11 is an evaluation prompt
    assert loaded["Answer 5."].prompt == [{"role": "user", "content": "Q5?"}]
    assert loaded["Answer 5."].rejected == "No 5a."
    assert [message["content"] for message in loaded["Answer 3."].prompt] == ["the cat?", "a dog", "Q3?"]
    assert "12 examples, with 12 further pairs" in caplog.text
    assert "data.train: removed 1 rows whose prompt is in data.test" in caplog.messages


def test_test_split_has_the_evaluation_prompts(root: Path) -> None:
    test = release(root).load()["test"]
    assert [(e.prompt[0]["content"], e.target) for e in test] == [(f"Q{i}?", f"Answer {i}.") for i in range(11, 20)]


@pytest.mark.parametrize(("rows", "rejected"), [("DPO", "Bad 4."), ("SFT", "")])
def test_dpo_and_sft_rows_are_read(root: Path, rows: str, rejected: str) -> None:
    assert training_examples(release(root, rows))["Answer 4."].rejected == rejected


def test_import_and_pairs_read_the_releases_negatives(root: Path, tmp_path: Path) -> None:
    """generator=import on the folder gives each prompt the rejected answers of its rows, as generator=pairs does."""
    examples = release(root).load()["train"]
    policy = policy_folder(tmp_path / "policy")
    importer = Import(None, 120, 0, path=str(root / "HH-RLHF" / "Self-Contrast_2"))
    assert importer.samples == 2
    importer.check(examples)
    for name, generator in (("import", importer), ("pairs", Pairs(None, 120, 0))):
        (tmp_path / name).mkdir()
        generator.generate(tmp_path / name, policy, examples, Local(1, 1), "cpu")
    numbers = {example.id: int(example.target[7:-1]) for example in examples}
    imported = {numbers[name]: [c.text for c in rows] for name, rows in candidates_by_prompt(tmp_path / "import")}
    assert imported == {n: [f"No {n}a.", f"No {n}b."] for n in numbers.values()}
    paired = {numbers[name]: [c.text for c in rows] for name, rows in candidates_by_prompt(tmp_path / "pairs")}
    assert paired == imported


def test_fingerprint_depends_on_content_not_on_path(root: Path, tmp_path: Path) -> None:
    import shutil

    folder = "HH-RLHF/Self-Contrast_2"
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    before = release(root).fingerprint(), Import(None, 120, 0, path=str(root / folder)).fingerprint()
    assert before == (release(copy).fingerprint(), Import(None, 120, 0, path=str(copy / folder)).fingerprint())
    assert str(root) not in json.dumps(before)
    write(copy / folder / "c.jsonl", [pair(40, "No.")])
    assert release(copy).fingerprint() != before[0]
    assert Import(None, 120, 0, path=str(copy / folder)).fingerprint() != before[1]
    assert release(root, "DPO").fingerprint() != before[0]


def test_ultrachat_prompts_are_messages(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Q{i}?",
            "messages": [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": "A."}],
        }
        for i in range(9)
    ]
    write(tmp_path / "UltraChat" / "for_inference" / "train.jsonl", rows)
    write(tmp_path / "UltraChat" / "test.jsonl", [pair(i, "") for i in range(9, 18)])
    splits = release(tmp_path, "for_inference", "UltraChat").load()
    assert {e.prompt[0]["content"] for split in ("train", "validation") for e in splits[split]} == {
        f"Q{i}?" for i in range(9)
    }
    assert splits["test"][0].target == "Answer 9."


@pytest.mark.parametrize("answer_columns", [{"target": "Best."}, {"answers": [{"answer": "Best.", "rank": 1.0}]}])
def test_nectar_evaluation_prompts_are_dialogue_strings(tmp_path: Path, answer_columns: Row) -> None:
    write(tmp_path / "Nectar" / "DPO" / "train.jsonl", [pair(i, "No.") for i in range(9)])
    talk = "\n\nHuman: the cat?\n\nAssistant: a dog\n\nHuman: And {}?\n\nAssistant: "
    write(tmp_path / "Nectar" / "test.jsonl", [{"prompt": talk.format(i), **answer_columns} for i in range(9)])
    first = release(tmp_path, "DPO", "Nectar").load()["test"][0]
    assert [message["content"] for message in first.prompt] == ["the cat?", "a dog", "And 0?"]
    assert first.target == "Best."


def test_missing_or_unusable_data_raises(root: Path) -> None:
    for source in (release(root, "Self-Contrast_3"), release(root / "nowhere")):
        with pytest.raises(UserError, match=r"data\.rows=.* does not exist.*docs/reproduction\.md"):
            source.load()
    (root / "HH-RLHF" / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.rows=.*empty: no file"):
        release(root, "empty").load()
    write(root / "HH-RLHF" / "few" / "a.jsonl", [pair(i, "No.") for i in range(7)])
    with pytest.raises(UserError, match=r"fewer than 8 .* 7 usable rows"):
        release(root, "few").load()
    with pytest.raises(UserError, match=r"data\.validation=0"):
        Release(str(root), "HH-RLHF", "DPO", "test.jsonl", 0)
