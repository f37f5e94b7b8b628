"""Candidates made elsewhere: matched by their prompts, tokenized as training would, and checked before compute."""

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
from selfcontrast.generators.imported import Import
from tiny import candidates_by_prompt, example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
TALK: list[Message] = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "Paris?"},
]
EXAMPLES = [example("a", "what is the cat?", "a cat"), example("b", "我的猫 🙂", "猫"), example("c", "unasked", "x")]
EXAMPLES[2] = type(EXAMPLES[2])("c", TALK, "is in France")
Row = dict[str, Any]


def rows() -> list[Row]:
    return [
        {"prompt": " what is the cat?\n", "target": "not looked at", "responses": ["a dog ", "", "the cat"]},
        {"prompt": "nobody asks this", "responses": ["x"]},
        {"messages": [*TALK, {"role": "assistant", "content": "y"}], "responses": ["in France"]},
        {"prompt": "我的猫 🙂", "responses": ["狗", "猫 🙂"]},
        {"prompt": [{"role": "user", "content": "what is the cat?"}], "negatives": ["a mat"]},
    ]


def write(folder: Path, content: list[Row], name: str = "candidates.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return file


def imported(file: Path, prompts: int | None = None, max_length: int = 120) -> Import:
    return Import(str(file), prompts, max_length, 0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def generated(own: Import, folder: Path, policy: Path) -> tuple[dict[str, list[Candidate]], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    summary = own.generate(folder, policy, EXAMPLES, Local(1, 1), "cpu")
    return dict(candidates_by_prompt(folder)), summary


def test_responses_are_matched_by_prompt_and_tokenized_as_training_would(tmp_path: Path, policy: Path) -> None:
    found, summary = generated(imported(write(tmp_path, rows())), tmp_path / "out", policy)
    assert {name: [c.text for c in candidates] for name, candidates in found.items()} == {
        "a": ["a dog", "", "the cat", "a mat"],
        "b": ["狗", "猫 🙂"],
        "c": ["in France"],
    }
    for one in EXAMPLES:
        for number, candidate in enumerate(found[one.id]):
            assert candidate.sample == number
            assert candidate.token_ids == RENDERER.response(one.prompt, candidate.text)
            assert candidate.finish_reason == "stop"
            assert math.isnan(candidate.log_prob)
    tokens = sum(len(c.token_ids) for candidates in found.values() for c in candidates)
    assert summary == {
        "prompts": 3,
        "prompts_without_room": 0,
        "responses": 7,
        "responses_without_room": 0,
        "tokens": tokens,
        "tokens_per_response": tokens / 7,
    }


def test_what_does_not_match_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = imported(write(tmp_path, rows()[:3]))
    with caplog.at_level(logging.WARNING):
        own.check(EXAMPLES)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 of 3 prompts are not in the training split: not used",
        "1 of 3 training prompts have no responses: not used",
    ]
    assert own.samples == 3
    with pytest.raises(UserError, match="none of its 3 prompts is one of the training split's"):
        own.check([example("z", "another", "x")])


def test_responses_without_room_are_left_out_and_counted(tmp_path: Path, policy: Path) -> None:
    """Prompt b has 24 tokens or more: it has no room at all. Of a's responses the two shortest fit."""
    sizes = [len(RENDERER.response(EXAMPLES[0].prompt, text)) for text in ("a dog", "", "the cat", "a mat")]
    room = len(RENDERER.prompt(EXAMPLES[0].prompt)) + sorted(sizes)[1]
    kept = [i for i, size in enumerate(sizes) if size <= sorted(sizes)[1]]
    own = imported(write(tmp_path, [row for row in rows() if "messages" not in row]), max_length=room)
    found, summary = generated(own, tmp_path / "out", policy)
    assert [c.sample for c in found["a"]] == kept
    assert summary["responses_without_room"] == 6 - sum(map(len, found.values()))
    with pytest.raises(UserError, match=r"no response has room in generator\.max_length=3"):
        generated(imported(write(tmp_path, rows()), max_length=3), tmp_path / "out", policy)


def test_fewer_prompts_are_drawn_from_those_with_responses(tmp_path: Path, policy: Path) -> None:
    own = imported(write(tmp_path, rows()[2:4]), prompts=1)
    found, summary = generated(own, tmp_path / "out", policy)
    assert len(found) == summary["prompts"] == 1
    assert set(found) < {"b", "c"}


def test_the_content_is_in_the_key_and_the_path_is_not(tmp_path: Path) -> None:
    one, same = write(tmp_path, rows()), write(tmp_path, rows(), "same.jsonl")
    other = write(tmp_path, rows()[1:], "other.jsonl")
    assert imported(one).fingerprint() == imported(same).fingerprint() != imported(other).fingerprint()
    assert str(tmp_path) not in json.dumps(imported(one).fingerprint())


@pytest.mark.parametrize(
    ("row", "said"),
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
def test_a_row_that_cannot_be_is_named_by_its_line(tmp_path: Path, row: Any, said: str) -> None:
    file = write(tmp_path, [rows()[0], row])
    with pytest.raises(UserError, match=rf"candidates\.jsonl, line 2: {said}"):
        _ = imported(file).samples


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.path=\S+none\.jsonl does not exist"):
        _ = imported(tmp_path / "none.jsonl").samples
    with pytest.raises(UserError, match="the file is empty"):
        _ = imported(write(tmp_path, [])).samples
    with pytest.raises(UserError, match=r"generator\.prompts=0"):
        imported(tmp_path, prompts=0)
