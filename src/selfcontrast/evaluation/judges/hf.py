"""A judge in this process: a chat model of transformers."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Count, Temperature, Text, check_numbers
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.example import Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.budget import Account
from selfcontrast.evaluation.judges.judgment import Case, Counting, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.prompts import templates_hash
from selfcontrast.evaluation.judges.reading import Done, Reading, Reply, check_verdict
from selfcontrast.evaluation.judges.verdicts import alternatives, choice_place
from selfcontrast.generators.hf import OomBatcher
from selfcontrast.models.folders import check_causal, check_weights, load_config
from selfcontrast.models.loading import DTYPES, load_model, load_tokenizer
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import note, noted


@dataclass(frozen=True)
class HFJudge:
    """Attributes:
    path: folder of the model, with a chat template.
    verdict: of a comparison, "text" as it is said, or "logprob" weighed by the probabilities of the letters.
    max_length: tokens of prompt and reply together.
    batch: judgments asked for at once, and so lost where the process is killed.
    """

    path: Text
    dtype: str
    temperature: Temperature
    verdict: str
    max_length: Count
    reading: Reading = field(metadata=NOT_IN_KEY)
    batch_size: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "judge")
        check_verdict(self.verdict)
        if self.dtype not in DTYPES:
            raise UserError(f"judge.dtype={self.dtype}: one of {', '.join(DTYPES)}")

    def check(self, verifier: Verifier | None) -> None:
        if not (Path(self.path) / "config.json").is_file():
            raise UserError(f"judge.path={self.path}: no folder of a model; download it first, and name the folder")
        check_causal(load_config(self.path, "judge.path"), f"judge.path={self.path}")
        check_weights(Path(self.path), "judge.path")
        Renderer(load_tokenizer(Path(self.path)))

    def fingerprint(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in fields_of(self).items() if name != "path"},
            "model": note(self, Path(self.path)).hash,
            "templates": templates_hash(),
            "max_tokens": self.reading.max_tokens,
            "max_characters": self.reading.max_characters,
        }

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        fingerprint = self.fingerprint()

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            # Loaded only where something is left to ask for.
            def ask(prompts: Sequence[str], attempt: int, account: Account, done: Done) -> None:
                self._ask(surroundings.device, prompts, attempt, account, done)

            return self.reading.judge(cases, fingerprint, surroundings, ask)

        yield Counting(judging, self.reading.unread)

    def _ask(self, device: str, prompts: Sequence[str], attempt: int, account: Account, done: Done) -> None:
        from selfcontrast.generators.sampling import sample

        renderer = Renderer(load_tokenizer(Path(self.path)))
        decoding = Decoding(1, self.temperature, 1.0, self.reading.max_tokens, self.max_length)
        requests = {at: _request(renderer, prompt) for at, prompt in enumerate(prompts)}
        fitting = [(at, r) for at, r in requests.items() if len(r.prompt) < self.max_length]
        for at, request in requests.items():
            if len(request.prompt) >= self.max_length:
                done(at, Reply("truncated", f"the prompt fills all {self.max_length} tokens of judge.max_length"))
        model = load_model(Path(self.path), self.dtype).to(device).eval()
        if content := noted(self):
            content.check("judge.path")

        def draw(some: Sequence[Request], samples: range, how: Decoding, seed: int) -> list[Candidate]:
            return sample(model, renderer.tokenizer, some, how, seed, renderer.end_ids, samples)

        fit = OomBatcher(self.batch_size, draw)
        for begin in range(0, len(fitting), self.batch_size):
            some = fitting[begin : begin + self.batch_size]
            reserved = [account.reserve(prompts[at], self.reading.max_tokens) for at, _ in some]
            found = fit([request for _, request in some], decoding, attempt)
            for (at, request), reply, tried in zip(some, found, reserved, strict=True):
                tried.settle(len(request.prompt), len(reply.token_ids))
                finish: Any = "stop" if reply.finish_reason == "stop" else "truncated"
                weights = _weights(model, renderer, request.prompt, reply) if self.verdict == "logprob" else None
                done(at, Reply(finish, reply.text, len(request.prompt), len(reply.token_ids), weights))


def _request(renderer: Renderer, prompt: str) -> Request:
    """Named, and so sampled, by what is asked: the same whatever is left to ask for beside it."""
    name = hashlib.sha256(prompt.encode()).hexdigest()
    return Request(name, renderer.prompt([{"role": "user", "content": prompt}]))


def _weights(model: Any, renderer: Renderer, prompt: Sequence[int], reply: Candidate) -> dict[str, float] | None:
    """By letter its log-probability where the reply gives its verdict; None where it gives none."""
    import torch

    tokenizer = renderer.tokenizer
    texts = [str(tokenizer.decode(reply.token_ids[:end])) for end in range(len(reply.token_ids) + 1)]
    if (place := choice_place(texts[-1])) is None:
        return None
    before = texts[-1][: place + 1]
    at = next(i for i, text in enumerate(texts[1:]) if text[: place + 1] == before)
    ids = torch.tensor([[*prompt, *reply.token_ids[:at]]], device=model.device)
    with torch.no_grad():
        log_probs = model(ids, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
    vocabulary = tokenizer.get_vocab()
    said = tokenizer.convert_ids_to_tokens(reply.token_ids[at])
    tokens = alternatives(said, said.rindex(before[-1]))
    return {name: float(log_probs[vocabulary[token]]) for name, token in tokens.items() if token in vocabulary}
