"""Answers to single prompts and to dialogues, which are played with the policy's own replies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.example import Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.evaluation.dialogue import Answer, Player
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF
from tiny import example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
DECODING = Decoding(samples=2, temperature=1.0, top_p=1.0, max_new_tokens=5, max_length=120)
SINGLE = example("s#1", "cat?", "a cat")  # an id with the sign that keys are joined by
DIALOGUE = example("d", "unused", "a dog", turns=["what is the cat?", "and the dog?"])
LONGER = example("l#0#1", "unused", "a dog", turns=["the", "cat", "sat"])


@dataclass
class Recording:
    """A responder that says what it was asked, one word per request, and remembers it all."""

    asked: list[tuple[str, Decoding, list[Request]]] = field(default_factory=list)

    def answers(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> dict[str, list[Candidate]]:
        assert all(len(request.prompt) < decoding.max_length for request in requests)
        self.asked.append((folder.name, decoding, list(requests)))
        return {
            request.id: [
                Candidate(request.id, s, f"reply to {request.id} {s}", [1, 2], "stop", -1.0 - s)
                for s in range(decoding.samples)
            ]
            for request in requests
        }


def player(responder: Any, model: Path = Path("none"), shards: Path = Path("shards")) -> Player:
    return Player(responder, model, RENDERER, 0, shards)


def test_a_single_prompt_is_answered_as_it_stands() -> None:
    recording = Recording()
    answers = player(recording).play([SINGLE], DECODING, "SFT T=1")
    assert recording.asked == [("SFT-T=1", DECODING, [Request("s#1", RENDERER.prompt(SINGLE.prompt), SINGLE.prompt)])]
    assert answers == [Answer("s#1", s, 0, f"reply to s#1 {s}", 2, -1.0 - s, [1, 2]) for s in range(2)]


def test_each_sample_of_a_dialogue_goes_on_from_its_own_replies() -> None:
    recording = Recording()
    answers = player(recording).play([SINGLE, DIALOGUE, LONGER], DECODING, "x")
    assert [(a.id, a.sample, a.turn) for a in answers if a.id != "s#1"] == [
        (e.id, sample, turn)
        for turn in range(3)
        for e in (DIALOGUE, LONGER)
        if turn < len(e.turns)
        for sample in (0, 1)
    ]
    asked = {request.id: request.prompt for _, _, requests in recording.asked[1:] for request in requests}
    assert {decoding.samples for _, decoding, _ in recording.asked[1:]} == {1}
    assert len({folder for folder, _, _ in recording.asked}) == 4  # no turn finds another's shards
    for one in (DIALOGUE, LONGER):
        for sample in range(2):
            said: list[Message] = []
            for turn, question in enumerate(one.turns):
                key = f"{one.id}#{sample}#{turn}"
                said.append({"role": "user", "content": question})
                assert asked.pop(key) == RENDERER.prompt(said)
                said.append({"role": "assistant", "content": f"reply to {key} 0"})
    assert not asked


def test_a_prompt_without_room_gets_an_empty_answer() -> None:
    long = example("long", "the cat " * 99, "a cat")
    late = example("late", "unused", "a dog", turns=["the", "cat " * 200, "sat"])
    answers = player(Recording()).play([long, SINGLE, late], DECODING, "x")
    by = {(a.id, a.turn): a for a in answers if a.sample == 0}
    assert by["long", 0] == Answer("long", 0, 0, "", 0, 0.0, [])
    assert by["s#1", 0].text
    assert [by["late", turn].text == "" for turn in range(3)] == [False, True, True]
    assert len(answers) == 2 * (1 + 1 + 3)


def test_nobody_is_asked_where_nothing_fits() -> None:
    recording = Recording()
    player(recording).play([example("long", "the cat " * 99, "a cat")], DECODING, "x")
    assert recording.asked == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_policy_plays(tmp_path: Path, temperature: float) -> None:
    model = policy_folder(tmp_path / "policy")
    decoding = Decoding(1 if temperature == 0 else 2, temperature, 1.0, 5, 120)
    responder = Responder(HF("float32", 3), Local(2, 1), "cpu")
    first = player(responder, model, tmp_path / "a").play([SINGLE, DIALOGUE], decoding, "x")
    assert len(first) == 3 * decoding.samples
    assert all(1 <= answer.tokens <= 5 and answer.log_prob < 0 for answer in first)
    again = player(responder, model, tmp_path / "a").play([SINGLE, DIALOGUE], decoding, "x")  # from its shards
    assert again == first
