"""Test the answers to single prompts and, turn by turn, to dialogues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.example import Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.evaluation.dialogue import DialogueSampler, SampledAnswer
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF
from tiny import example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
DECODING = Decoding(samples=2, temperature=1.0, top_p=1.0, max_new_tokens=5, max_length=120)
SINGLE = example("s#1", "cat?", "a cat")  # the id contains #, the separator of request keys
DIALOGUE = example("d", "unused", "a dog", turns=["what is the cat?", "and the dog?"])
LONGER = example("l#0#1", "unused", "a dog", turns=["the", "cat", "sat"])


@dataclass
class RecordingResponder:
    """A responder that records its requests and replies with their ids."""

    calls: list[tuple[str, Decoding, list[Request]]] = field(default_factory=list)

    def answers(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> dict[str, list[Candidate]]:
        assert all(len(request.prompt) < decoding.max_length for request in requests)
        self.calls.append((folder.name, decoding, list(requests)))
        return {
            request.id: [
                Candidate(request.id, s, f"reply to {request.id} {s}", [1, 2], "stop", -1.0 - s)
                for s in range(decoding.samples)
            ]
            for request in requests
        }


def dialogue(responder: Any, model: Path = Path("none"), shards: Path = Path("shards")) -> DialogueSampler:
    return DialogueSampler(responder, model, RENDERER, 0, shards)


def test_play_answers_a_single_prompt() -> None:
    responder = RecordingResponder()
    answers = dialogue(responder).play([SINGLE], DECODING, "SFT T=1")
    assert responder.calls == [("SFT-T=1", DECODING, [Request("s#1", RENDERER.prompt(SINGLE.prompt), SINGLE.prompt)])]
    assert answers == [SampledAnswer("s#1", s, 0, f"reply to s#1 {s}", 2, -1.0 - s, [1, 2]) for s in range(2)]


def test_play_continues_each_sample_from_its_own_replies() -> None:
    responder = RecordingResponder()
    answers = dialogue(responder).play([SINGLE, DIALOGUE, LONGER], DECODING, "x")
    assert [(a.id, a.sample, a.turn) for a in answers if a.id != "s#1"] == [
        (e.id, sample, turn)
        for turn in range(3)
        for e in (DIALOGUE, LONGER)
        if turn < len(e.turns)
        for sample in (0, 1)
    ]
    prompts = {request.id: request.prompt for _, _, requests in responder.calls[1:] for request in requests}
    assert {decoding.samples for _, decoding, _ in responder.calls[1:]} == {1}
    assert len({folder for folder, _, _ in responder.calls}) == 4  # turns have separate shards
    for source in (DIALOGUE, LONGER):
        for sample in range(2):
            messages: list[Message] = []
            for turn, question in enumerate(source.turns):
                key = f"{source.id}#{sample}#{turn}"
                messages.append({"role": "user", "content": question})
                assert prompts.pop(key) == RENDERER.prompt(messages)
                messages.append({"role": "assistant", "content": f"reply to {key} 0"})
    assert not prompts


def test_play_prompt_without_room_gets_an_empty_answer() -> None:
    long = example("long", "the cat " * 99, "a cat")
    late = example("late", "unused", "a dog", turns=["the", "cat " * 200, "sat"])
    answers = dialogue(RecordingResponder()).play([long, SINGLE, late], DECODING, "x")
    by_turn = {(a.id, a.turn): a for a in answers if a.sample == 0}
    assert by_turn["long", 0] == SampledAnswer("long", 0, 0, "", 0, 0.0, [])
    assert by_turn["s#1", 0].text
    assert [by_turn["late", turn].text == "" for turn in range(3)] == [False, True, True]
    assert len(answers) == 2 * (1 + 1 + 3)


def test_play_without_fitting_prompts_sends_no_request() -> None:
    responder = RecordingResponder()
    dialogue(responder).play([example("long", "the cat " * 99, "a cat")], DECODING, "x")
    assert responder.calls == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_play_again_reads_a_real_policys_answers_from_shards(tmp_path: Path, temperature: float) -> None:
    model = policy_folder(tmp_path / "policy")
    decoding = Decoding(1 if temperature == 0 else 2, temperature, 1.0, 5, 120)
    responder = Responder(HF("float32", 3), Local(2, 1), "cpu")
    first = dialogue(responder, model, tmp_path / "a").play([SINGLE, DIALOGUE], decoding, "x")
    assert len(first) == 3 * decoding.samples
    assert all(1 <= answer.tokens <= 5 and answer.log_prob < 0 for answer in first)
    again = dialogue(responder, model, tmp_path / "a").play([SINGLE, DIALOGUE], decoding, "x")  # read from shards
    assert again == first
