"""Sample a policy's answers to evaluation prompts. In dialogues, each turn follows the policy's own earlier replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.backend import Responder


@dataclass(frozen=True)
class SampledAnswer:
    """One sampled answer to one turn. `log_prob` is summed over its tokens, in nats, at temperature 1."""

    id: str
    sample: int
    turn: int
    text: str
    tokens: int
    log_prob: float
    token_ids: list[int]


def messages_of(example: Example, replies: Sequence[str]) -> list[Message]:
    """Return the messages before an answer.

    Args:
        replies: the policy's replies to earlier turns; empty for an example without `turns`.
    """
    if not example.turns:
        return list(example.prompt)
    messages: list[Message] = []
    for turn, reply in zip(example.turns, replies, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": example.turns[len(replies)]}]


@dataclass(frozen=True)
class DialogueSampler:
    """A sampler of a policy's answers to single prompts and, turn by turn, to dialogues."""

    responder: Responder
    model: Path
    renderer: Renderer
    seed: int
    shards: Path

    def play(self, examples: Sequence[Example], decoding: Decoding, label: str) -> list[SampledAnswer]:
        """Answer every turn of every example, `decoding.samples` times.

        An example with `turns` is a dialogue: each turn follows the policy's own earlier replies. Other examples are
        answered once. A prompt that leaves no room for an answer gets an empty answer.
        """
        single = [(e.id, messages_of(e, [])) for e in examples if not e.turns]
        answers = [
            _answer(candidate, name, 0, candidate.sample)
            for name, candidates in self._sample(single, decoding, label).items()
            for candidate in candidates
        ]
        dialogues = {e.id: e for e in examples if e.turns}
        replies: dict[tuple[str, int], list[str]] = {
            (name, sample): [] for name in dialogues for sample in range(decoding.samples)
        }
        single_sample = Decoding(**{**vars(decoding), "samples": 1})
        for turn in range(max((len(e.turns) for e in dialogues.values()), default=0)):
            prompts = [
                (f"{name}#{sample}#{turn}", messages_of(dialogues[name], earlier))
                for (name, sample), earlier in replies.items()
                if turn < len(dialogues[name].turns)
            ]
            for key, candidates in self._sample(prompts, single_sample, f"{label} turn {turn + 1}").items():
                name, number, _ = key.rsplit("#", 2)
                answers.append(_answer(candidates[0], name, turn, int(number)))
                replies[name, int(number)].append(candidates[0].text)
        return answers

    def _sample(
        self, prompts: Sequence[tuple[str, list[Message]]], decoding: Decoding, label: str
    ) -> dict[str, list[Candidate]]:
        requests = [Request(name, self.renderer.prompt(messages), messages) for name, messages in prompts]
        with_room = [request for request in requests if len(request.prompt) < decoding.max_length]
        candidates = {
            request.id: [Candidate(request.id, s, "", [], "length", 0.0) for s in range(decoding.samples)]
            for request in requests
        }
        if with_room:
            folder = self.shards / label.replace(" ", "-")
            candidates |= self.responder.answers(self.model, with_room, decoding, self.seed, folder, label)
        return candidates


def _answer(candidate: Candidate, name: str, turn: int, sample: int) -> SampledAnswer:
    ids = list(candidate.token_ids)
    return SampledAnswer(name, sample, turn, candidate.text, len(ids), candidate.log_prob, ids)
