"""Published data sets, from copies in the formats of the hub; the test's own rows are written out by hand."""

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
from selfcontrast.data.hub import Hub, Part
from selfcontrast.errors import UserError
from shared import shared_data

Row = dict[str, Any]
PART = {"subset": None, "revision": None, "split": "train", "turns": None, "limit": None}


def part(path: Path | str, **changes: Any) -> Part:
    return Part(**{"path": str(path), **PART, **changes})


def hub(train: Part, test: Part | None = None, **changes: Any) -> Hub:
    own = {"validation": 0.1, "test_fraction": 0.2, "answer_column": None, "root": None, "streaming": True}
    return Hub(train, test, **{**own, **changes})


def every(source: Hub) -> list[Example]:
    return [example for split in source.load().values() for example in split]


def lines(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return file


def parquet(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


# --- hh-rlhf


def hh(question: str, good: str, bad: str, before: str = "") -> Row:
    start = f"{before}\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": f"{start} {good}", "rejected": f"{start} {bad}"}


TALK = "\n\nHuman: Hello.\n\nAssistant: Hi: what now?"


def test_hh_rlhf_is_split_into_turns_and_its_folders_are_read_together(tmp_path: Path) -> None:
    copy = tmp_path / "Anthropic" / "hh-rlhf"
    rows = [hh(f"Question {i}?", f"Good {i}.", f"Bad {i}.") for i in range(20)]
    lines(copy / "harmless-base" / "train.jsonl.gz", rows[:10])
    lines(copy / "helpful-base" / "train.jsonl.gz", [*rows[10:], hh("And?", "Well: so.", "No.", before=TALK)])
    lines(copy / "harmless-base" / "test.jsonl.gz", [hh("Test?", "Yes.", "No.")] * 3)
    found = {example.target: example for example in every(hub(part("Anthropic/hh-rlhf"), root=str(tmp_path)))}
    assert len(found) == 21
    assert found["Good 3."].prompt == [{"role": "user", "content": "Question 3?"}]
    assert found["Good 13."].rejected == "Bad 13."
    assert [message["content"] for message in found["Well: so."].prompt] == ["Hello.", "Hi: what now?", "And?"]
    one = hub(part("Anthropic/hh-rlhf", subset="harmless-base"), root=str(tmp_path))
    assert {example.target for example in every(one)} == {f"Good {i}." for i in range(10)}


def test_odd_rows_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [
        {"chosen": "Human: no.\n\nAssistant: x", "rejected": "x"},
        hh("An empty answer", "", "x"),
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "x"},
        {"chosen": "Once upon a time", "rejected": "x"},
        {"chosen": None, "rejected": "x"},
        hh("Question 0?", "Good 0.", "Another."),
        hh("Too long?", "Yes.", "No.", before=TALK),
    ]
    file = lines(tmp_path / "train.jsonl.gz", [hh(f"Question {i}?", f"Good {i}.", "Bad.") for i in range(9)] + odd)
    with caplog.at_level(logging.WARNING):
        assert len(every(hub(part(file, turns=1)))) == 9 + 1 + 1
    (said,) = caplog.messages
    assert said.startswith(f"data.train ({file}): kept 11 rows, dropped 4 (")
    assert {reason.strip() for reason in said.partition("(an")[2].rstrip(")").split(",")} | {"an empty turn: 1"} >= {
        "one speaker twice in a row: 1",
        "does not begin with Human: 1",
        "column 'chosen' is missing or null: 1",
    }


def test_longer_dialogues_are_cut_to_their_first_turns(tmp_path: Path) -> None:
    """The target is then the answer inside the dialogue, which no other answer was rejected for."""
    more = f"{TALK}\n\nHuman: And you?\n\nAssistant: Well."
    rows = [hh(f"Question {i}?", f"Good {i}.", f"Bad {i}.") for i in range(8)]
    rows += [hh("Bye?", "Bye.", "No.", before=more), hh("Hello.", "Hi: what now?", "Go away.")]
    file = lines(tmp_path / "train.jsonl.gz", rows)

    def found(turns: int | None) -> dict[str, tuple[list[str], str, str]]:
        first = {example.prompt[0]["content"]: example for example in every(hub(part(file, turns=turns)))}
        return {name: ([message["content"] for message in e.prompt], e.target, e.rejected) for name, e in first.items()}

    assert len(every(hub(part(file)))) == 10
    assert len(every(hub(part(file, turns=1)))) == 9  # the two that begin alike are one
    assert found(1)["Hello."] == (["Hello."], "Hi: what now?", "Go away.")  # of the row that is as short
    assert found(1)["Question 1?"] == (["Question 1?"], "Good 1.", "Bad 1.")
    whole = [e for e in every(hub(part(file, turns=2))) if len(e.prompt) > 1]
    assert [([m["content"] for m in e.prompt], e.target, e.rejected) for e in whole] == [
        (["Hello.", "Hi: what now?", "And you?"], "Well.", "")
    ]
    assert [e.target for e in every(hub(part(file, turns=3))) if len(e.prompt) > 1] == ["Bye."]


def test_two_messages_of_the_user_in_a_row_cannot_be_cut_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(start: str, *roles: str) -> Row:
        return {"messages": [{"role": role, "content": f"{start} {i}"} for i, role in enumerate(roles)]}

    rows = [said(f"row {i}", "user", "assistant") for i in range(8)]
    file = lines(tmp_path / "train.jsonl.gz", [*rows, said("odd", "user", "user", "assistant")])
    with caplog.at_level(logging.WARNING):
        assert len(every(hub(part(file, turns=1)))) == 8
    assert "one speaker twice in a row: 1" in caplog.text


def test_real_dialogues_of_hh_rlhf() -> None:
    """2,312 rows, of which 12 are odd or repeated; cut to one turn, those that begin alike are repeated, too."""
    file = shared_data("hh_rlhf", "harmless-base_test.jsonl.gz")
    found = every(hub(part(file)))
    assert len(found) == 2300
    single = every(hub(part(file, turns=1)))
    assert {len(example.prompt) for example in single} == {1}
    dialogues = [(e.prompt, e.target) for e in found]
    begin = {(prompt[0]["content"], [*prompt[1:2], {"content": target}][0]["content"]) for prompt, target in dialogues}
    assert {(e.prompt[0]["content"], e.target) for e in single} == begin
    assert len(single) == len(begin) < 2300
    assert sum(bool(example.rejected) for example in found) == 2299
    assert len({example.id for example in found}) == 2300


# --- UltraChat, and the pairs that go with it


def test_ultrachat_messages_and_its_own_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A training row with a prompt of the test split is left out, and a row that ends with the user is odd."""

    def chat(number: int, *more: str) -> Row:
        said = [f"Question {number}?", f"Answer {number}.", *more]
        roles = ("user", "assistant") * 3
        messages = [{"content": text, "role": role} for text, role in zip(said, roles, strict=False)]
        return {"prompt": said[0], "prompt_id": f"{number:064x}", "messages": messages}

    copy = tmp_path / "HuggingFaceH4" / "ultrachat_200k" / "data"
    train = [chat(i) for i in range(30)] + [chat(30, "And then?", "Then this."), chat(31, "Cut short")]
    parquet(copy / "train_sft-00000-of-00002-a1.parquet", train[:20])
    parquet(copy / "train_sft-00001-of-00002-b2.parquet", train[20:])
    parquet(copy / "test_sft-00000-of-00001-c3.parquet", [chat(i) for i in (29, *range(40, 50))])
    parquet(copy / "train_gen-00000-of-00001-d4.parquet", [chat(99)])
    own = part("HuggingFaceH4/ultrachat_200k", split="train_sft")
    held = part("HuggingFaceH4/ultrachat_200k", split="test_sft")
    with caplog.at_level(logging.WARNING):
        splits = hub(own, held, root=str(tmp_path)).load()
    assert [example.target for example in splits["test"]] == [f"Answer {i}." for i in (29, *range(40, 50))]
    trained = splits["train"] + splits["validation"]
    assert {example.target for example in trained} == {*(f"Answer {i}." for i in range(29)), "Then this."}
    assert len(splits["validation"]) >= 1
    assert {example.rejected for example in trained} == {""}
    assert any("the last message of 'messages' must be the assistant's: 1" in message for message in caplog.messages)
    assert "data.train: 1 rows have a prompt of data.test: left out" in caplog.messages


def test_pairs_of_ultrafeedback(tmp_path: Path) -> None:
    def dialogue(number: int, answer: str) -> list[Row]:
        return [{"content": f"Q{number}", "role": "user"}, {"content": answer, "role": "assistant"}]

    rows = [
        {"prompt": f"Q{i}", "chosen": dialogue(i, "Good."), "rejected": dialogue(i, f"Bad {i}.")}
        | {"messages": dialogue(i, "Good."), "score_chosen": 8.0, "score_rejected": 2.0}
        for i in range(10)
    ]
    file = parquet(tmp_path / "uf" / "data" / "train_prefs-00000-of-00001.parquet", rows)
    found = every(hub(part(file.parents[1], split="train_prefs")))
    assert {(e.prompt[0]["content"], e.target, e.rejected) for e in found} == {
        (f"Q{i}", "Good.", f"Bad {i}.") for i in range(10)
    }


# --- Nectar


def ranked(prompt: str, *answers: tuple[float | None, str]) -> Row:
    own = [{"answer": text, "model": "m", "rank": rank} for rank, text in answers]
    return {"prompt": prompt, "answers": own, "turns": 1, "source": ["s"], "good_natured": True}


@given(ranks=st.permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
def test_nectars_best_answer_is_the_target_and_its_worst_is_rejected(ranks: list[float]) -> None:
    from selfcontrast.data.formats import recognise

    row = ranked(f"{TALK}\n\nHuman: And now: what?\n\nAssistant: ", *((rank, f"answer {rank}") for rank in ranks))
    parse = recognise(row)
    assert parse is not None
    parsed = parse(row)
    assert [message["content"] for message in parsed.prompt] == ["Hello.", "Hi: what now?", "And now: what?"]
    assert (parsed.target, parsed.rejected) == ("answer 1.0", "answer 7.0")


def test_nectar_from_its_folder_and_its_odd_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [ranked(f"\n\nHuman: Q{i}\n\nAssistant: ", (2.0, "worse"), (1.0, f"best {i}")) for i in range(9)]
    odd = [
        ranked("\n\nHuman: Q\n\nAssistant: ", (1.0, " "), (2.0, "")),
        ranked("\n\nHuman: Q\n\nAssistant: ", (None, "a"), (2.0, "b")),
        ranked("\n\nHuman: Q\n\nAssistant: It holds this", (1.0, "a"), (2.0, "b")),
        ranked("\n\nHuman: Q", (1.0, "a"), (2.0, "b")),
        ranked("Q", (1.0, "a"), (2.0, "b")),
    ]
    equal = ranked("\n\nHuman: The same twice\n\nAssistant: ", (1.0, "a"), (2.0, "a "))
    parquet(tmp_path / "berkeley-nest" / "Nectar" / "data" / "rlaif.parquet", [*rows, *odd, equal])
    with caplog.at_level(logging.WARNING):
        splits = hub(part("berkeley-nest/Nectar"), root=str(tmp_path)).load()
    found = {e.target: e.rejected for split in splits.values() for e in split}
    assert found == {**{f"best {i}": "worse" for i in range(9)}, "a": ""}
    (said,) = caplog.messages
    for reason in (
        "no answer that is not empty: 1",
        "an answer without a text or a rank: 1",
        "the prompt holds its answer: 1",
        "does not end with Assistant: 1",
        "does not begin with Human: 1",
    ):
        assert reason in said
    assert all(splits.values())


# --- what decides the data, and what cannot be


def test_a_copy_is_known_by_its_content_and_the_hub_by_its_commit(tmp_path: Path) -> None:
    rows = [hh(f"Question {i}?", "Good.", "Bad.") for i in range(9)]
    for name in ("one", "two"):
        lines(tmp_path / name / "a" / "b" / "train.jsonl.gz", rows)
    one, same = (hub(part("a/b"), root=str(tmp_path / name)).fingerprint() for name in ("one", "two"))
    assert one == same
    assert str(tmp_path) not in json.dumps(one)
    lines(tmp_path / "two" / "a" / "b" / "train.jsonl.gz", rows[:8])
    assert hub(part("a/b"), root=str(tmp_path / "two")).fingerprint() != one
    there, other = (hub(part("a/b", revision=digit * 40)).fingerprint() for digit in "ab")
    assert there != other
    assert hub(part("a/b", revision="a" * 40), streaming=False).fingerprint() == there


def test_the_hub_is_read_at_a_full_commit_only() -> None:
    for revision in (None, "main", "3c6b4c4"):
        with pytest.raises(UserError, match=rf"data\.train\.revision={revision}: the full commit on the hub"):
            hub(part("berkeley-nest/Nectar", revision=revision)).load()


def test_what_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        hub(part("nowhere.jsonl")).load()
    with pytest.raises(UserError, match=r"a/b does not exist: a copy of a/b; data\.root=null reads it from the hub"):
        hub(part("a/b"), root=str(tmp_path)).load()
    parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", [{"question": "a"}])
    with pytest.raises(UserError, match=r"row 1: no known format has the columns question"):
        hub(part(tmp_path / "set")).load()
    with pytest.raises(UserError, match=r"data\.train\.path=.*set: cannot be read \(.*nothing"):
        hub(part(tmp_path / "set", split="nothing")).load()
    few = lines(tmp_path / "few.jsonl.gz", [hh(f"Question {i}?", "Good.", "Bad.") for i in range(7)])
    with pytest.raises(UserError, match="fewer than 8 different prompts in 7 usable rows"):
        hub(part(few)).load()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation": 0.0}, r"data\.validation=0\.0"),
        ({"validation": 0.5, "test_fraction": 0.5}, r"in sum below 1"),
    ],
)
def test_shares_that_cannot_be(settings: Row, said: str) -> None:
    with pytest.raises(UserError, match=said):
        hub(part("a/b"), **settings)


@pytest.mark.parametrize(("name", "value"), [("limit", 7), ("turns", 0)])
def test_limits_that_cannot_be(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"^data\.(test\.)?{name}={value}"):
        hub(part("a/b"), part("a/b", **{name: value}))
