"""Test that imported candidates are matched by prompt, tokenized as in training, and checked before any compute."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Candidate
from selfcontrast.data.example import Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.importer import Import
from tiny import candidates_by_prompt, example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
DIALOGUE: list[Message] = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "Paris?"},
]
EXAMPLES = [example("a", "what is the cat?", "a cat"), example("b", "我的猫 🙂", "猫"), example("c", "unasked", "x")]
EXAMPLES[2] = type(EXAMPLES[2])("c", DIALOGUE, "is in France")
Row = dict[str, Any]


def rows() -> list[Row]:
    return [
        {"prompt": " what is the cat?\n", "target": "ignored", "responses": ["a dog ", "", "the cat"]},
        {"prompt": "nobody asks this", "responses": ["x"]},
        {"messages": [*DIALOGUE, {"role": "assistant", "content": "y"}], "responses": ["in France"]},
        {"prompt": "我的猫 🙂", "responses": ["狗", "猫 🙂"]},
        {"prompt": [{"role": "user", "content": "what is the cat?"}], "negatives": ["a mat"]},
    ]


def write(folder: Path, content: list[Row], name: str = "candidates.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return file


def import_from(file: Path, prompts: int | None = None, max_length: int = 120) -> Import:
    return Import(prompts, max_length, 0, path=str(file))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def generate(importer: Import, folder: Path, policy: Path) -> tuple[dict[str, list[Candidate]], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    summary = importer.generate(folder, policy, EXAMPLES, Local(1, 1), "cpu")
    return dict(candidates_by_prompt(folder)), summary


def test_responses_are_matched_by_prompt_and_tokenized_as_in_training(tmp_path: Path, policy: Path) -> None:
    results, summary = generate(import_from(write(tmp_path, rows())), tmp_path / "out", policy)
    assert {name: [c.text for c in candidates] for name, candidates in results.items()} == {
        "a": ["a dog", "", "the cat", "a mat"],
        "b": ["狗", "猫 🙂"],
        "c": ["in France"],
    }
    for ex in EXAMPLES:
        for number, candidate in enumerate(results[ex.id]):
            assert candidate.sample == number
            assert candidate.token_ids == RENDERER.response(ex.prompt, candidate.text)
            assert candidate.finish_reason == "stop"
            assert math.isnan(candidate.log_prob)
    tokens = sum(len(c.token_ids) for candidates in results.values() for c in candidates)
    assert summary == {
        "prompts": 3,
        "prompts_without_room": 0,
        "responses": 7,
        "responses_without_room": 0,
        "tokens": tokens,
        "tokens_per_response": tokens / 7,
    }


def test_check_logs_unmatched_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    importer = import_from(write(tmp_path, rows()[:3]))
    with caplog.at_level(logging.WARNING):
        importer.check(EXAMPLES)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 of 3 prompts are not in the training split and not used",
        "1 of 3 training prompts have no responses and are not used",
    ]
    assert importer.samples == 3
    with pytest.raises(UserError, match="none of its 3 prompts"):
        importer.check([example("z", "another", "x")])


def test_responses_without_room_are_dropped_and_counted(tmp_path: Path, policy: Path) -> None:
    """Prompt b alone exceeds max_length. Of prompt a's responses, only the two shortest fit."""
    sizes = [len(RENDERER.response(EXAMPLES[0].prompt, text)) for text in ("a dog", "", "the cat", "a mat")]
    max_length = len(RENDERER.prompt(EXAMPLES[0].prompt)) + sorted(sizes)[1]
    fitting = [i for i, size in enumerate(sizes) if size <= sorted(sizes)[1]]
    importer = import_from(write(tmp_path, [row for row in rows() if "messages" not in row]), max_length=max_length)
    results, summary = generate(importer, tmp_path / "out", policy)
    assert [c.sample for c in results["a"]] == fitting
    assert summary["responses_without_room"] == 6 - sum(map(len, results.values()))
    with pytest.raises(UserError, match=r"generator\.max_length=3"):
        generate(import_from(write(tmp_path, rows()), max_length=3), tmp_path / "out", policy)


def test_prompts_setting_draws_only_prompts_with_responses(tmp_path: Path, policy: Path) -> None:
    importer = import_from(write(tmp_path, rows()[2:4]), prompts=1)
    results, summary = generate(importer, tmp_path / "out", policy)
    assert len(results) == summary["prompts"] == 1
    assert set(results) < {"b", "c"}


def test_fingerprint_depends_on_the_files_content_not_its_path(tmp_path: Path) -> None:
    first, same = write(tmp_path, rows()), write(tmp_path, rows(), "same.jsonl")
    other = write(tmp_path, rows()[1:], "other.jsonl")
    assert import_from(first).fingerprint() == import_from(same).fingerprint() != import_from(other).fingerprint()
    assert str(tmp_path) not in json.dumps(import_from(first).fingerprint())


@pytest.mark.parametrize(
    ("row", "pattern"),
    [
        ({"prompt": "x", "responses": "text"}, r"'responses' must be a list of at least one text"),
        ({"prompt": "x", "responses": []}, r"'responses' must be a list of at least one text"),
        ({"prompt": "x"}, r"'responses' must be a list"),
        ({"prompt": "x", "responses": ["a", 3]}, r"2 of 'responses' must be text, not int"),
        ({"responses": ["a"]}, r"column 'prompt' is missing or null"),
        ({"prompt": " ", "responses": ["a"]}, r"'prompt' is empty"),
        ([1], r"a row must be an object"),
    ],
    ids=str,
)
def test_invalid_row_error_names_its_line(tmp_path: Path, row: Any, pattern: str) -> None:
    file = write(tmp_path, [rows()[0], row])
    with pytest.raises(UserError, match=rf"candidates\.jsonl, line 2: {pattern}"):
        _ = import_from(file).samples


def test_invalid_files_and_settings_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.path=\S+none\.jsonl does not exist"):
        _ = import_from(tmp_path / "none.jsonl").samples
    with pytest.raises(UserError, match="the file is empty"):
        _ = import_from(write(tmp_path, [])).samples
    with pytest.raises(UserError, match=r"generator\.prompts=0"):
        import_from(tmp_path, prompts=0)
