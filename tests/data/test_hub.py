"""Test reading published data sets, from hand-written copies in the formats of the hub."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.data.example import Example
from selfcontrast.data.hub import Hub, Part, split_off
from selfcontrast.errors import UserError
from shared import shared_data
from tiny import example

Row = dict[str, Any]
PART = {"subset": None, "revision": None, "split": "train", "turns": None, "limit": None}


def part(path: Path | str, **changes: Any) -> Part:
    return Part(**{"path": str(path), **PART, **changes})


def hub(train: Part, test: Part | None = None, **changes: Any) -> Hub:
    settings = {"validation": 0.1, "test_fraction": 0.2, "answer_column": None, "root": None, "streaming": True}
    return Hub(train, test, **{**settings, **changes})


def all_examples(source: Hub) -> list[Example]:
    return [example for split in source.load().values() for example in split]


def write_lines(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return file


def write_parquet(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


# --- hh-rlhf


def hh(question: str, good: str, bad: str, before: str = "") -> Row:
    start = f"{before}\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": f"{start} {good}", "rejected": f"{start} {bad}"}


TALK = "\n\nHuman: Hello.\n\nAssistant: Hi: what now?"


def test_hh_rlhf_reads_all_folders_and_splits_dialogues_into_turns(tmp_path: Path) -> None:
    copy = tmp_path / "Anthropic" / "hh-rlhf"
    rows = [hh(f"Question {i}?", f"Good {i}.", f"Bad {i}.") for i in range(20)]
    write_lines(copy / "harmless-base" / "train.jsonl.gz", rows[:10])
    write_lines(copy / "helpful-base" / "train.jsonl.gz", [*rows[10:], hh("And?", "Well: so.", "No.", before=TALK)])
    write_lines(copy / "harmless-base" / "test.jsonl.gz", [hh("Test?", "Yes.", "No.")] * 3)
    loaded = {example.target: example for example in all_examples(hub(part("Anthropic/hh-rlhf"), root=str(tmp_path)))}
    assert len(loaded) == 21
    assert loaded["Good 3."].prompt == [{"role": "user", "content": "Question 3?"}]
    assert loaded["Good 13."].rejected == "Bad 13."
    assert [message["content"] for message in loaded["Well: so."].prompt] == ["Hello.", "Hi: what now?", "And?"]
    harmless = hub(part("Anthropic/hh-rlhf", subset="harmless-base"), root=str(tmp_path))
    assert {example.target for example in all_examples(harmless)} == {f"Good {i}." for i in range(10)}


def test_malformed_rows_are_dropped_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [
        {"chosen": "Human: no.\n\nAssistant: x", "rejected": "x"},
        hh("An empty answer", "", "x"),
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "x"},
        {"chosen": "Once upon a time", "rejected": "x"},
        {"chosen": None, "rejected": "x"},
        hh("Question 0?", "Good 0.", "Another."),
        hh("Too long?", "Yes.", "No.", before=TALK),
    ]
    file = write_lines(
        tmp_path / "train.jsonl.gz", [hh(f"Question {i}?", f"Good {i}.", "Bad.") for i in range(9)] + others
    )
    with caplog.at_level(logging.WARNING):
        assert len(all_examples(hub(part(file, turns=1)))) == 9 + 1 + 1
    (message,) = caplog.messages
    assert message.startswith(f"data.train ({file}): kept 11 rows, dropped 4 (")
    assert {reason.strip() for reason in message.partition("(an")[2].rstrip(")").split(",")} | {"an empty turn: 1"} >= {
        "one speaker twice in a row: 1",
        "does not begin with Human: 1",
        "column 'chosen' is missing or null: 1",
    }


def test_longer_dialogues_are_cut_to_their_first_turns(tmp_path: Path) -> None:
    """The target of a cut dialogue is an answer inside the dialogue, for which the row has no rejected answer."""
    more = f"{TALK}\n\nHuman: And you?\n\nAssistant: Well."
    rows = [hh(f"Question {i}?", f"Good {i}.", f"Bad {i}.") for i in range(8)]
    rows += [hh("Bye?", "Bye.", "No.", before=more), hh("Hello.", "Hi: what now?", "Go away.")]
    file = write_lines(tmp_path / "train.jsonl.gz", rows)

    def loaded(turns: int | None) -> dict[str, tuple[list[str], str, str]]:
        first = {example.prompt[0]["content"]: example for example in all_examples(hub(part(file, turns=turns)))}
        return {name: ([message["content"] for message in e.prompt], e.target, e.rejected) for name, e in first.items()}

    assert len(all_examples(hub(part(file)))) == 10
    assert len(all_examples(hub(part(file, turns=1)))) == 9  # two rows have the same first turn and become one example
    assert loaded(1)["Hello."] == (["Hello."], "Hi: what now?", "Go away.")  # from the row that has only one turn
    assert loaded(1)["Question 1?"] == (["Question 1?"], "Good 1.", "Bad 1.")
    longer = [e for e in all_examples(hub(part(file, turns=2))) if len(e.prompt) > 1]
    assert [([m["content"] for m in e.prompt], e.target, e.rejected) for e in longer] == [
        (["Hello.", "Hi: what now?", "And you?"], "Well.", "")
    ]
    assert [e.target for e in all_examples(hub(part(file, turns=3))) if len(e.prompt) > 1] == ["Bye."]


def test_turns_limit_drops_a_row_with_two_user_messages_in_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def chat(start: str, *roles: str) -> Row:
        return {"messages": [{"role": role, "content": f"{start} {i}"} for i, role in enumerate(roles)]}

    rows = [chat(f"row {i}", "user", "assistant") for i in range(8)]
    file = write_lines(tmp_path / "train.jsonl.gz", [*rows, chat("odd", "user", "user", "assistant")])
    with caplog.at_level(logging.WARNING):
        assert len(all_examples(hub(part(file, turns=1)))) == 8
    assert "one speaker twice in a row: 1" in caplog.text


def test_public_hh_rlhf_file_has_known_numbers_of_dialogues() -> None:
    """12 of 2,312 rows are malformed or repeated. With `turns=1`, rows with the same first turn are repeated, too."""
    file = shared_data("hh_rlhf", "harmless-base_test.jsonl.gz")
    loaded = all_examples(hub(part(file)))
    assert len(loaded) == 2300
    single = all_examples(hub(part(file, turns=1)))
    assert {len(example.prompt) for example in single} == {1}
    dialogues = [(e.prompt, e.target) for e in loaded]
    first_turns = {
        (prompt[0]["content"], [*prompt[1:2], {"content": target}][0]["content"]) for prompt, target in dialogues
    }
    assert {(e.prompt[0]["content"], e.target) for e in single} == first_turns
    assert len(single) == len(first_turns) < 2300
    assert sum(bool(example.rejected) for example in loaded) == 2299
    assert len({example.id for example in loaded}) == 2300


# --- UltraChat and UltraFeedback


def test_ultrachat_drops_training_rows_with_a_test_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A training row is dropped if its prompt is in the test split, or if it ends with a message of the user."""

    def chat(number: int, *more: str) -> Row:
        texts = [f"Question {number}?", f"Answer {number}.", *more]
        roles = ("user", "assistant") * 3
        messages = [{"content": text, "role": role} for text, role in zip(texts, roles, strict=False)]
        return {"prompt": texts[0], "prompt_id": f"{number:064x}", "messages": messages}

    copy = tmp_path / "HuggingFaceH4" / "ultrachat_200k" / "data"
    train = [chat(i) for i in range(30)] + [chat(30, "And then?", "Then this."), chat(31, "Cut short")]
    write_parquet(copy / "train_sft-00000-of-00002-a1.parquet", train[:20])
    write_parquet(copy / "train_sft-00001-of-00002-b2.parquet", train[20:])
    write_parquet(copy / "test_sft-00000-of-00001-c3.parquet", [chat(i) for i in (29, *range(40, 50))])
    write_parquet(copy / "train_gen-00000-of-00001-d4.parquet", [chat(99)])
    train_part = part("HuggingFaceH4/ultrachat_200k", split="train_sft")
    test_part = part("HuggingFaceH4/ultrachat_200k", split="test_sft")
    with caplog.at_level(logging.WARNING):
        splits = hub(train_part, test_part, root=str(tmp_path)).load()
    assert [example.target for example in splits["test"]] == [f"Answer {i}." for i in (29, *range(40, 50))]
    trained = splits["train"] + splits["validation"]
    assert {example.target for example in trained} == {*(f"Answer {i}." for i in range(29)), "Then this."}
    assert len(splits["validation"]) >= 1
    assert {example.rejected for example in trained} == {""}
    assert any("the last message of 'messages' must be the assistant's: 1" in message for message in caplog.messages)
    assert "data.train: removed 1 rows whose prompt is in data.test" in caplog.messages


def test_split_off_a_test_set_with_nearly_all_training_prompts_is_refused() -> None:
    prompts = [example(str(i), f"Q{i}", "A.") for i in range(20)]
    splits = split_off(prompts, prompts[:12], 0.1)
    assert (len(splits["train"]) + len(splits["validation"]), len(splits["test"])) == (8, 12)
    with pytest.raises(UserError, match=r"data\.test .*\b7\b"):
        split_off(prompts, prompts[:13], 0.1)


def test_ultrafeedback_pairs_are_targets_and_rejected_answers(tmp_path: Path) -> None:
    def dialogue(number: int, answer: str) -> list[Row]:
        return [{"content": f"Q{number}", "role": "user"}, {"content": answer, "role": "assistant"}]

    rows = [
        {"prompt": f"Q{i}", "chosen": dialogue(i, "Good."), "rejected": dialogue(i, f"Bad {i}.")}
        | {"messages": dialogue(i, "Good."), "score_chosen": 8.0, "score_rejected": 2.0}
        for i in range(10)
    ]
    file = write_parquet(tmp_path / "uf" / "data" / "train_prefs-00000-of-00001.parquet", rows)
    loaded = all_examples(hub(part(file.parents[1], split="train_prefs")))
    assert {(e.prompt[0]["content"], e.target, e.rejected) for e in loaded} == {
        (f"Q{i}", "Good.", f"Bad {i}.") for i in range(10)
    }


# --- Nectar


def ranked(prompt: str, *answers: tuple[float | None, str]) -> Row:
    ranked_answers = [{"answer": text, "model": "m", "rank": rank} for rank, text in answers]
    return {"prompt": prompt, "answers": ranked_answers, "turns": 1, "source": ["s"], "good_natured": True}


@given(ranks=st.permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
def test_nectar_best_answer_is_target_and_worst_is_rejected(ranks: list[float]) -> None:
    from selfcontrast.data.formats import recognise

    row = ranked(f"{TALK}\n\nHuman: And now: what?\n\nAssistant: ", *((rank, f"answer {rank}") for rank in ranks))
    parse = recognise(row)
    assert parse is not None
    parsed = parse(row)
    assert [message["content"] for message in parsed.prompt] == ["Hello.", "Hi: what now?", "And now: what?"]
    assert (parsed.target, parsed.rejected) == ("answer 1.0", "answer 7.0")


def test_nectar_malformed_rows_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [ranked(f"\n\nHuman: Q{i}\n\nAssistant: ", (2.0, "worse"), (1.0, f"best {i}")) for i in range(9)]
    malformed = [
        ranked("\n\nHuman: Q\n\nAssistant: ", (1.0, " "), (2.0, "")),
        ranked("\n\nHuman: Q\n\nAssistant: ", (None, "a"), (2.0, "b")),
        ranked("\n\nHuman: Q\n\nAssistant: It holds this", (1.0, "a"), (2.0, "b")),
        ranked("\n\nHuman: Q", (1.0, "a"), (2.0, "b")),
        ranked("Q", (1.0, "a"), (2.0, "b")),
    ]
    equal = ranked("\n\nHuman: The same twice\n\nAssistant: ", (1.0, "a"), (2.0, "a "))
    write_parquet(tmp_path / "berkeley-nest" / "Nectar" / "data" / "rlaif.parquet", [*rows, *malformed, equal])
    with caplog.at_level(logging.WARNING):
        splits = hub(part("berkeley-nest/Nectar"), root=str(tmp_path)).load()
    loaded = {e.target: e.rejected for split in splits.values() for e in split}
    assert loaded == {**{f"best {i}": "worse" for i in range(9)}, "a": ""}
    (message,) = caplog.messages
    for reason in (
        "no answer that is not empty: 1",
        "an answer without a text or a rank: 1",
        "the prompt contains its answer: 1",
        "does not end with Assistant: 1",
        "does not begin with Human: 1",
    ):
        assert reason in message
    assert all(splits.values())


# --- fingerprints and errors


def test_fingerprint_hashes_the_content_of_a_copy_or_the_hubs_commit(tmp_path: Path) -> None:
    rows = [hh(f"Question {i}?", "Good.", "Bad.") for i in range(9)]
    for name in ("one", "two"):
        write_lines(tmp_path / name / "a" / "b" / "train.jsonl.gz", rows)
    copy, same = (hub(part("a/b"), root=str(tmp_path / name)).fingerprint() for name in ("one", "two"))
    assert copy == same
    assert str(tmp_path) not in json.dumps(copy)
    write_lines(tmp_path / "two" / "a" / "b" / "train.jsonl.gz", rows[:8])
    assert hub(part("a/b"), root=str(tmp_path / "two")).fingerprint() != copy
    pinned, other = (hub(part("a/b", revision=digit * 40)).fingerprint() for digit in "ab")
    assert pinned != other
    assert hub(part("a/b", revision="a" * 40), streaming=False).fingerprint() == pinned


def test_hub_without_full_commit_raises() -> None:
    for revision in (None, "main", "3c6b4c4"):
        with pytest.raises(UserError, match=rf"data\.train\.revision={revision}"):
            hub(part("berkeley-nest/Nectar", revision=revision)).load()


def test_missing_or_unreadable_data_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        hub(part("nowhere.jsonl")).load()
    with pytest.raises(UserError, match=r"a/b does not exist.*data\.root=null"):
        hub(part("a/b"), root=str(tmp_path)).load()
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", [{"question": "a"}])
    with pytest.raises(UserError, match=r"row 1: no known format has the columns question"):
        hub(part(tmp_path / "set")).load()
    with pytest.raises(UserError, match=r"data\.train\.path=.*set cannot be read \(.*nothing"):
        hub(part(tmp_path / "set", split="nothing")).load()
    few = write_lines(tmp_path / "few.jsonl.gz", [hh(f"Question {i}?", "Good.", "Bad.") for i in range(7)])
    with pytest.raises(UserError, match=r"fewer than 8 .* 7 usable rows"):
        hub(part(few)).load()


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"validation": 0.0}, r"data\.validation=0\.0"),
        ({"validation": 0.5, "test_fraction": 0.5}, r"data\.test_fraction=0\.5"),
    ],
)
def test_invalid_split_fractions_raise(settings: Row, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        hub(part("a/b"), **settings)


@pytest.mark.parametrize(("name", "value"), [("limit", 7), ("turns", 0)])
def test_invalid_limits_raise(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"^data\.(test\.)?{name}={value}"):
        hub(part("a/b"), part("a/b", **{name: value}))
