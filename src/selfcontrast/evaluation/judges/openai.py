"""A judge behind an HTTP endpoint that speaks OpenAI's API, among them a local `vllm serve`."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from selfcontrast.client import Answer, Client, Servers, Unanswered, Unusable
from selfcontrast.data.example import Verifier
from selfcontrast.evaluation.judges.judgment import Case, Judging, Judgment, Surroundings
from selfcontrast.evaluation.judges.ledger import Budget, estimated_tokens
from selfcontrast.evaluation.judges.reading import Done, Reading, Reply
from selfcontrast.store import NOT_IN_KEY, settings_of

FINISHED = {"stop": "stop", "length": "truncated", "content_filter": "refused"}


@dataclass(frozen=True)
class OpenAIJudge:
    """Attributes:
    model: the name that the servers give it; part of what decides a judgment, as the servers' addresses are not.
    extra: further fields of each request.
    """

    model: str
    temperature: float
    extra: dict[str, Any]
    reading: Reading = field(metadata=NOT_IN_KEY)
    servers: Servers = field(metadata=NOT_IN_KEY)

    def check(self, verifier: Verifier | None) -> None:
        _ = self.servers.key

    def fingerprint(self) -> dict[str, Any]:
        return {
            **settings_of(self),
            "max_tokens": self.reading.max_tokens,
            "max_characters": self.reading.max_characters,
        }

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, surroundings: Surroundings) -> Iterator[Judging]:
        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return self.reading.judge(cases, self.fingerprint(), surroundings.judgments, self._ask)

        yield judging

    def _ask(self, prompts: Sequence[str], attempt: int, budget: Budget, done: Done) -> None:
        asyncio.run(self._all(prompts, attempt, budget, done))

    async def _all(self, prompts: Sequence[str], attempt: int, budget: Budget, done: Done) -> None:
        # As many workers as requests may be under way: what is asked for next is only paid for when it is its turn.
        places = iter(range(len(prompts)))
        async with Client(self.servers) as client:

            async def work() -> None:
                for at in places:
                    reserved = budget.reserve(prompts[at], self.reading.max_tokens)
                    reply = await self._reply(client, prompts[at], attempt)
                    budget.settle(reserved, reply.prompt_tokens, reply.completion_tokens)
                    done(at, reply)

            workers = min(len(prompts), self.servers.concurrency * len(self.servers.urls))
            found = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
        for error in found:  # after the others have kept what they had asked for, and so paid for
            if isinstance(error, BaseException):
                raise error

    async def _reply(self, client: Client, prompt: str, attempt: int) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.reading.max_tokens,
            "seed": attempt,
            **self.extra,
        }
        try:
            return await client.post("/chat/completions", body, lambda answer: _read(answer, prompt))
        except Unanswered as reason:
            return Reply("api_error", str(reason))


def _read(answer: Answer, prompt: str) -> Reply:
    """Raises `Unusable` for what is no answer to a chat request, which is then made again."""
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unusable("no message in the answer") from None
    if isinstance(refusal, str) and refusal:
        return Reply("refused", refusal, *_used(answer, prompt, refusal))
    if finish not in FINISHED or not isinstance(text, str):
        raise Unusable(f"no usable message in the answer (finish_reason {str(finish)[:40]})")
    text = text.encode(errors="replace").decode()  # half of a surrogate pair is JSON, but no text
    return Reply(FINISHED[finish], text, *_used(answer, prompt, text))  # type: ignore[arg-type]


def _used(answer: Answer, prompt: str, text: str) -> tuple[int, int]:
    """Tokens read and written, as the server counts them; estimated where it does not say."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt_tokens, completion_tokens = (c if isinstance(c, int) and c >= 0 else None for c in counts)
    return (
        estimated_tokens(prompt) if prompt_tokens is None else prompt_tokens,
        estimated_tokens(text) if completion_tokens is None else completion_tokens,
    )
