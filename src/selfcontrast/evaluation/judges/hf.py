"""A judge that runs in this process: a chat model from a local folder, with transformers."""

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
from selfcontrast.evaluation.judges.judgment import Case, CountingJudge, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.prompts import templates_hash
from selfcontrast.evaluation.judges.replies import Reply, ReplySettings, StoreReply, check_verdict
from selfcontrast.evaluation.judges.verdicts import choice_position, letter_tokens
from selfcontrast.generators.hf import OomBatcher
from selfcontrast.models.folders import check_causal, check_weights, load_config
from selfcontrast.models.loading import DTYPES, load_model, load_tokenizer
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import note, noted


@dataclass(frozen=True)
class HFJudge:
    """A local chat model as a judge.

    Attributes:
        path: folder of the model, which needs a chat template.
        verdict: how a comparison is read: "text" takes the written letter, "logprob" weights all letters by their
            probabilities.
        max_length: bound on the tokens of prompt and reply together.
        batch_size: judgments per batch. If the process is killed, the batch in progress is lost.
    """

    path: Text
    dtype: str
    temperature: Temperature
    verdict: str
    max_length: Count
    reading: ReplySettings = field(metadata=NOT_IN_KEY)
    batch_size: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "judge")
        check_verdict(self.verdict)
        if self.dtype not in DTYPES:
            raise UserError(f"judge.dtype={self.dtype}: unknown. Use {' or '.join(DTYPES)}.")

    def check(self, verifier: Verifier | None) -> None:
        if not (Path(self.path) / "config.json").is_file():
            raise UserError(f"judge.path={self.path}: not a model's folder. Download the model and name its folder.")
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
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        fingerprint = self.fingerprint()

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            # `ask` loads the model. It is called only if judgments are missing.
            def ask(prompts: Sequence[str], attempt: int, account: Account, store: StoreReply) -> None:
                self._ask(context.device, prompts, attempt, account, store)

            return self.reading.judge(cases, fingerprint, context, ask)

        yield CountingJudge(judging, self.reading.unread)

    def _ask(self, device: str, prompts: Sequence[str], attempt: int, account: Account, store: StoreReply) -> None:
        from selfcontrast.generators.sampling import sample

        renderer = Renderer(load_tokenizer(Path(self.path)))
        decoding = Decoding(1, self.temperature, 1.0, self.reading.max_tokens, self.max_length)
        requests = {index: _request(renderer, prompt) for index, prompt in enumerate(prompts)}
        with_room = [(index, r) for index, r in requests.items() if len(r.prompt) < self.max_length]
        for index, request in requests.items():
            if len(request.prompt) >= self.max_length:
                message = f"the prompt fills judge.max_length={self.max_length} tokens. Raise it."
                store(index, Reply("truncated", message))
        model = load_model(Path(self.path), self.dtype).to(device).eval()
        if content := noted(self):
            content.check("judge.path")

        def sample_batch(batch: Sequence[Request], samples: range, decoding: Decoding, seed: int) -> list[Candidate]:
            return sample(model, renderer.tokenizer, batch, decoding, seed, renderer.end_ids, samples)

        batcher = OomBatcher(self.batch_size, sample_batch)
        for begin in range(0, len(with_room), self.batch_size):
            batch = with_room[begin : begin + self.batch_size]
            tries = [account.reserve(prompts[index], self.reading.max_tokens) for index, _ in batch]
            replies = batcher([request for _, request in batch], decoding, attempt)
            for (index, request), reply, paid_try in zip(batch, replies, tries, strict=True):
                paid_try.settle(len(request.prompt), len(reply.token_ids))
                finish: Any = "stop" if reply.finish_reason == "stop" else "truncated"
                weights = _weights(model, renderer, request.prompt, reply) if self.verdict == "logprob" else None
                store(index, Reply(finish, reply.text, len(request.prompt), len(reply.token_ids), weights))


def _request(renderer: Renderer, prompt: str) -> Request:
    """Make a request with a hash of its prompt as id. The id seeds sampling, so other prompts do not change a reply."""
    name = hashlib.sha256(prompt.encode()).hexdigest()
    return Request(name, renderer.prompt([{"role": "user", "content": prompt}]))


def _weights(model: Any, renderer: Renderer, prompt: Sequence[int], reply: Candidate) -> dict[str, float] | None:
    """Return each letter's log-probability at the position of the reply's verdict; None without a verdict."""
    import torch

    tokenizer = renderer.tokenizer
    texts = [str(tokenizer.decode(reply.token_ids[:end])) for end in range(len(reply.token_ids) + 1)]
    if (position := choice_position(texts[-1])) is None:
        return None
    before = texts[-1][: position + 1]
    index = next(i for i, text in enumerate(texts[1:]) if text[: position + 1] == before)
    ids = torch.tensor([[*prompt, *reply.token_ids[:index]]], device=model.device)
    with torch.no_grad():
        log_probs = model(ids, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
    vocabulary = tokenizer.get_vocab()
    token = tokenizer.convert_ids_to_tokens(reply.token_ids[index])
    tokens = letter_tokens(token, token.rindex(before[-1]))
    return {name: float(log_probs[vocabulary[token]]) for name, token in tokens.items() if token in vocabulary}
