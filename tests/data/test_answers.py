"""Test that no target or rejected answer of a user's row is lost, and that both are read in the same way."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Request
from selfcontrast.data.example import Example
from selfcontrast.data.formats import RowError, prompt_of
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.pool import distinct, excluded
from selfcontrast.generators.importer import Import
from selfcontrast.generators.openai import OpenAI, _ServerSampler
from selfcontrast.generators.pairs import Pairs
from selfcontrast.training.sft import changed_targets, supervised_groups
from shared import shared_data
from tiny import candidates_by_prompt, policy_folder, tokenizer

Row = dict[str, Any]
RENDERER = Renderer(tokenizer())


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def write_lines(file: Path, rows: Sequence[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(file: Path) -> list[Example]:
    data = Jsonl(str(file), 0.05, 0.1, None, None, "required")
    return [example for split in data.load().values() for example in split]


def pair_candidates(folder: Path, policy: Path, examples: Sequence[Example]) -> dict[str, list[Any]]:
    Pairs(None, 120, 0).generate(folder, policy, examples, Local(1, 1), "cpu")
    return dict(candidates_by_prompt(folder))


# Targets and rejected answers are read in the same way


SPACES = [(" A pear.\n", " A pear car.\n"), ("\tA pear.", "A pear car.\n\n"), ("A pear.\u00a0", "\u2003A pear car.")]


@pytest.mark.parametrize(("chosen", "rejected"), SPACES)
def test_white_space_around_targets_and_rejected_answers_is_removed(
    chosen: str, rejected: str, tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = [{"prompt": f"Name fruit {i}.", "chosen": chosen, "rejected": rejected} for i in range(9)]
    rows += [{"prompt": f"Name fruit {i}.", "chosen": "A pear.", "rejected": "A pear car."} for i in range(10, 19)]
    examples = load(write_lines(tmp_path / "a.jsonl", rows))
    candidates = pair_candidates(tmp_path, policy, examples)
    tokens = {(tuple(RENDERER.example(e)[1]), tuple(candidates[e.id][0].token_ids)) for e in examples}
    assert len(tokens) == 1
    assert "white space around an answer in 9 rows" in caplog.text


def test_white_space_around_a_servers_text_is_removed() -> None:
    backend = OpenAI("m", "completions", {}, ["http://localhost:1/v1"], 1, 1.0, 0, 0.1, None)
    request = Request("a", [1], [{"role": "user", "content": "Name a fruit."}])
    choices = [{"text": text, "finish_reason": "stop"} for text in (" A pear.\n", "A pear.")]
    spaced, plain = (_ServerSampler(backend, RENDERER)._candidate(request, 0, choice) for choice in choices)
    assert (spaced.text, spaced.token_ids) == (plain.text, plain.token_ids)
    assert plain.token_ids == RENDERER.response(request.messages, " A pear. ")


# Text and tokens


def test_target_that_contains_the_end_token_is_cut_at_it_and_counted(tmp_path: Path, policy: Path) -> None:
    end = RENDERER.tokenizer.eos_token
    rows = [{"prompt": f"Name fruit {i}.", "target": "A pear."} for i in range(9)]
    rows.append({"prompt": "A strike?", "target": f"Use it {end} for a strike.", "rejected": f"Use it{end} or not."})
    examples = load(write_lines(tmp_path / "a.jsonl", rows))
    groups, _ = supervised_groups(RENDERER, examples, 120)
    cut = next(example for example in examples if example.rejected)
    assert changed_targets(RENDERER, examples, groups) == [cut.id]
    read = RENDERER.as_read(cut)
    assert (read.target, read.rejected) == ("Use it", "Use it")
    [candidate] = pair_candidates(tmp_path, policy, [cut])[cut.id]
    assert candidate.text == "Use it"
    assert (distinct(read.target, [candidate.text]), excluded(read.target, [candidate.text])) == (
        [],
        [0],
    )  # the candidate equals the target


def test_responses_that_contain_special_tokens_are_counted(
    tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    example = Example("a", [{"role": "user", "content": "Name a fruit."}], "A pear.", rejected="A <|user|>car.")
    summary = Pairs(None, 120, 0).generate(tmp_path, policy, [example], Local(1, 1), "cpu")
    assert summary["responses_changed"] == 1
    assert "1 of 1 responses change when tokenized" in caplog.text
    assert next(iter(candidates_by_prompt(tmp_path)))[1][0].text == "A car."


# Rejected answers and targets of a row


def rows_with_three_answers(some_without_rejected: bool) -> Iterator[Row]:
    for i in range(36):
        yield {
            "prompt": f"Name fruit {i % 12}.",
            "chosen": "A pear.",
            "rejected": None if some_without_rejected and i < 12 else f"A car {i}.",
        }


@pytest.mark.parametrize("some_without_rejected", [False, True])
def test_all_rejected_answers_of_a_prompt_are_used(
    some_without_rejected: bool, tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = list(rows_with_three_answers(some_without_rejected))
    examples = load(write_lines(tmp_path / "a.jsonl", [*rows, rows[-1]]))
    assert "dropped 1 (exact duplicate: 1)" in caplog.text
    rejected_by_prompt = {e.prompt[0]["content"]: e.all_rejected for e in examples}
    assert rejected_by_prompt == {
        f"Name fruit {i}.": [f"A car {j}." for j in range(12 if some_without_rejected else 0, 36) if j % 12 == i]
        for i in range(12)
    }
    candidates = pair_candidates(tmp_path, policy, examples)
    assert {e.id: [c.text for c in candidates[e.id]] for e in examples} == {e.id: e.all_rejected for e in examples}
    generator = Pairs(None, 120, 0)
    generator.check(examples)
    assert generator.samples == (2 if some_without_rejected else 3)


@pytest.mark.parametrize("name", ["many_rejected.jsonl", "first_bare.jsonl"])
def test_all_rejected_answers_of_the_public_rows_are_used(name: str) -> None:
    file = shared_data("cases", name)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(len(e.all_rejected) for e in load(file)) == sum(row["rejected"] is not None for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": ["B", "C", " "]},
        {"instruction": "Q", "output": ["A", "B", "C"]},
        {"instruction": "Q", "output": "A", "rejected": ["B", "C"]},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "rejected": ["B", "C"]},
    ],
)
def test_rejected_answers_may_be_a_list(row: Row, tmp_path: Path) -> None:
    text = json.dumps(row)
    rows = [json.loads(text.replace('"Q"', f'"Q{i}"')) for i in range(9)]
    examples = load(write_lines(tmp_path / "a.jsonl", rows))
    assert {(e.target, *e.all_rejected) for e in examples} == {("A", "B", "C")}


TWO_TARGETS: list[tuple[Row, str, str]] = [
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "target": "C"}, "chosen", "target"),
    ({"prompt": "Q", "completion": "A", "target": "C"}, "completion", "target"),
    ({"instruction": "Q", "output": "A", "response": "C"}, "output", "response"),
    ({"instruction": "Q", "chosen": "A", "rejected": "B", "output": ["C", "B"]}, "chosen", "output"),
    (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "chosen": "C"},
        "messages",
        "chosen",
    ),
    (
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "messages": None,
            "chosen": {"from": "gpt", "value": "C"},
        },
        "conversations",
        "chosen",
    ),
]


@pytest.mark.parametrize(("row", "used", "other"), TWO_TARGETS[:5])
def test_row_with_two_possible_targets_logs_the_used_column(
    row: Row, used: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(json.dumps(row).replace('"Q"', f'"Q{i}"')) for i in range(9)]
    same = [json.loads(json.dumps(r).replace('"C"', '"A "').replace("Q", "R")) for r in rows]
    assert {e.target for e in load(write_lines(tmp_path / "a.jsonl", [*rows, *same]))} == {"A"}
    assert f"'{used}' is the target; ignored another text in '{other}' of 9 rows" in caplog.text


def test_chat_that_ends_with_the_user_takes_its_target_from_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Q{i}"}], "chosen": "A", "rejected": "B"} for i in range(9)]
    load(write_lines(tmp_path / "a.jsonl", rows))
    assert caplog.messages == []


def test_import_row_with_two_lists_of_responses_raises(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "target": "A", "responses": ["B"], "negatives": ["C"]}]
    with pytest.raises(UserError, match="line 1: 'responses' and 'negatives'"):
        _ = Import(None, 100, 0, path=str(write_lines(tmp_path / "a.jsonl", rows))).samples


# Rendered prompts


ASSISTANT = "\n\nAssistant:"
DIALOGUE = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant:"
TURNS = ["Hi.", "Hello.", "Name a fruit."]


@pytest.mark.parametrize("prompt", [DIALOGUE, DIALOGUE.strip(), f"{DIALOGUE} ", DIALOGUE.removesuffix(ASSISTANT)])
@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("column", ["prompt", "instruction", "messages"])
def test_rendered_dialogue_is_split_into_turns(prompt: str, with_prompt: bool, column: str, tmp_path: Path) -> None:
    answers = {"chosen": " A pear.", "rejected": " A car."}
    if with_prompt:
        awaits_answer = prompt.rstrip().endswith("Assistant:")
        answers = {name: f"{prompt}{'' if awaits_answer else ASSISTANT}{text}" for name, text in answers.items()}
    content: Any = [{"role": "user", "content": prompt}] if column == "messages" else prompt
    rows = [json.loads(json.dumps({column: content, **answers}).replace("fruit", f"fruit {i}")) for i in range(9)]
    for example in load(write_lines(tmp_path / "a.jsonl", rows)):
        assert [m["role"] for m in example.prompt] == ["user", "assistant", "user"]
        assert [m["content"][:6] for m in example.prompt] == [text[:6] for text in TURNS]
        assert (example.target, example.rejected) == ("A pear.", "A car.")


def test_rendered_dialogue_of_the_public_rows_is_split() -> None:
    for example in load(shared_data("cases", "static_hh_like.jsonl")):
        assert example.prompt[0]["content"].startswith("Name fruit number")
        assert example.target.startswith("A ")


def test_rendered_dialogue_in_prompt_and_in_chosen_give_the_same_prompt() -> None:
    rows = [{"prompt": DIALOGUE, "target": "A pear."}, {"chosen": f"{DIALOGUE} A pear.", "rejected": f"{DIALOGUE} B."}]
    assert prompt_of(rows[0]) == prompt_of(rows[1]) == prompt_of({"prompt": DIALOGUE, "responses": []})


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s>[INST] Hi [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<|user|>\nHi</s>\n<|assistant|>\n",
        "<|system|>\n</s>\n<|user|>\nHi<|end|>\n<|assistant|>",
        "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:",
        "Below is an instruction.\n\n### Instruction:\nHi\n\n### Response:\n",
        "### Human: Hi\n### Assistant:",
        "A chat between a user and an assistant. USER: Hi ASSISTANT:",
        "User: Hi\n\nAssistant:",
    ],
)
def test_prompt_rendered_by_a_chat_template_raises_and_names_messages(prompt: str) -> None:
    with pytest.raises(RowError, match="rendered by a template") as caught:
        prompt_of({"prompt": prompt, "target": "A pear."})
    assert "messages" in caught.value.fix


@pytest.mark.parametrize(
    "prompt",
    [
        "What does <|im_start|>assistant mean?",
        "Write a dialogue that begins with\n\nHuman: Hi\n\nAssistant: Hello",
        "User: is a word.",
        "Human: a species.",
        "What is [/INST]",
        "Complete this: Assistant:",
    ],
)
def test_prompt_that_only_mentions_markers_is_one_message(prompt: str) -> None:
    assert prompt_of({"prompt": prompt, "target": "A pear."}) == [{"role": "user", "content": prompt}]
