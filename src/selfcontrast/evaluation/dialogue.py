"""A policy's answers to evaluation prompts, dialogues played turn by turn with its own earlier replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.backend import Responder


@dataclass(frozen=True)
class Answer:
    """One sampled answer to one turn. `log_prob` is summed over its tokens, in nats, at temperature 1."""

    id: str
    sample: int
    turn: int
    text: str
    tokens: int
    log_prob: float


@dataclass(frozen=True)
class Player:
    """A policy, and what draws its answers."""

    responder: Responder
    model: Path
    renderer: Renderer
    seed: int
    shards: Path

    def play(self, examples: Sequence[Example], decoding: Decoding, label: str) -> list[Answer]:
        """Every turn of every example, `decoding.samples` times.

        An example with `turns` is a dialogue: each turn is answered after the policy's own earlier replies. Any
        other is answered as its prompt stands. A prompt that leaves no room for an answer gets an empty one.
        """
        single = [(e.id, list(e.prompt)) for e in examples if not e.turns]
        answers = [
            _answer(c, name, 0, c.sample) for name, found in self._ask(single, decoding, label).items() for c in found
        ]
        dialogues = [e for e in examples if e.turns]
        history: dict[tuple[str, int], list[Message]] = {
            (e.id, sample): [] for e in dialogues for sample in range(decoding.samples)
        }
        one = Decoding(**{**vars(decoding), "samples": 1})
        turns = {e.id: e.turns for e in dialogues}
        for turn in range(max((len(t) for t in turns.values()), default=0)):
            prompts = []
            for (name, sample), so_far in history.items():
                if turn < len(turns[name]):
                    so_far.append({"role": "user", "content": turns[name][turn]})
                    prompts.append((f"{name}#{sample}#{turn}", list(so_far)))
            for key, found in self._ask(prompts, one, f"{label} turn {turn + 1}").items():
                name, number, _ = key.rsplit("#", 2)
                answers.append(_answer(found[0], name, turn, int(number)))
                history[name, int(number)].append({"role": "assistant", "content": found[0].text})
        return answers

    def _ask(
        self, prompts: Sequence[tuple[str, list[Message]]], decoding: Decoding, label: str
    ) -> dict[str, list[Candidate]]:
        requests = [Request(name, self.renderer.prompt(messages), messages) for name, messages in prompts]
        fitting = [request for request in requests if len(request.prompt) < decoding.max_length]
        found = {
            request.id: [Candidate(request.id, s, "", [], "length", 0.0) for s in range(decoding.samples)]
            for request in requests
        }
        if fitting:
            folder = self.shards / label.replace(" ", "-")
            found |= self.responder.answers(self.model, fitting, decoding, self.seed, folder, label)
        return found


def _answer(candidate: Candidate, name: str, turn: int, sample: int) -> Answer:
    return Answer(name, sample, turn, candidate.text, len(candidate.token_ids), candidate.log_prob)
