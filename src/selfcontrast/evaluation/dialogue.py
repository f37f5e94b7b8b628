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
    token_ids: list[int]


def messages_of(example: Example, replies: Sequence[str]) -> list[Message]:
    """What an answer is an answer to.

    Args:
        replies: the policy's own to the turns before; none for an example without `turns`, whose prompt is all.
    """
    if not example.turns:
        return list(example.prompt)
    messages: list[Message] = []
    for turn, reply in zip(example.turns, replies, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": example.turns[len(replies)]}]


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
        single = [(e.id, messages_of(e, [])) for e in examples if not e.turns]
        answers = [
            _answer(c, name, 0, c.sample) for name, found in self._ask(single, decoding, label).items() for c in found
        ]
        dialogues = {e.id: e for e in examples if e.turns}
        replies: dict[tuple[str, int], list[str]] = {
            (name, sample): [] for name in dialogues for sample in range(decoding.samples)
        }
        one = Decoding(**{**vars(decoding), "samples": 1})
        for turn in range(max((len(e.turns) for e in dialogues.values()), default=0)):
            prompts = [
                (f"{name}#{sample}#{turn}", messages_of(dialogues[name], so_far))
                for (name, sample), so_far in replies.items()
                if turn < len(dialogues[name].turns)
            ]
            for key, found in self._ask(prompts, one, f"{label} turn {turn + 1}").items():
                name, number, _ = key.rsplit("#", 2)
                answers.append(_answer(found[0], name, turn, int(number)))
                replies[name, int(number)].append(found[0].text)
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
    ids = list(candidate.token_ids)
    return Answer(name, sample, turn, candidate.text, len(ids), candidate.log_prob, ids)
