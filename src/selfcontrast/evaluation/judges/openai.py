"""A judge behind an HTTP endpoint with OpenAI's API, for example a local `vllm serve`."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from selfcontrast.client import Answer, Client, InvalidAnswer, RequestFailed, Servers
from selfcontrast.constrained import Temperature, Text
from selfcontrast.data.example import Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.budget import Account, Try, estimated_tokens
from selfcontrast.evaluation.judges.judgment import Case, CountingJudge, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.prompts import templates_hash
from selfcontrast.evaluation.judges.replies import Reply, ReplySettings, StoreReply, check_verdict
from selfcontrast.evaluation.judges.verdicts import choice_position, letter_tokens
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.artifact import key_of

MAX_LOGPROBS = 20  # alternatives per token; OpenAI returns no more
READY_TRIES = 3
PROBE = "Is anybody there? Reply with [[5]] and nothing else."
FINISHED = {"stop": "stop", "length": "truncated", "content_filter": "refused"}


@dataclass(frozen=True)
class OpenAIJudge:
    """A model behind OpenAI's API as a judge.

    Attributes:
        model: the model's name on the servers. It is part of a judgment's key; the servers' addresses are not.
        verdict: how a comparison is read: "text" takes the written letter, "logprob" weights all letters by their
            probabilities.
        extra: more fields for the body of each request.
    """

    model: Text
    temperature: Temperature
    verdict: str
    extra: dict[str, Any]
    reading: ReplySettings = field(metadata=NOT_IN_KEY)
    servers: Servers = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_verdict(self.verdict)

    def check(self, verifier: Verifier | None) -> None:
        _ = self.servers.key

    def fingerprint(self) -> dict[str, Any]:
        return {
            **fields_of(self),
            "templates": templates_hash(),
            "max_tokens": self.reading.max_tokens,
            "max_characters": self.reading.max_characters,
        }

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return self.reading.judge(cases, self.fingerprint(), context, self._ask)

        yield CountingJudge(judging, self.reading.unread)

    def _ask(self, prompts: Sequence[str], attempt: int, account: Account, store: StoreReply) -> None:
        asyncio.run(self._ask_all(prompts, attempt, account, store))

    async def _ask_all(self, prompts: Sequence[str], attempt: int, account: Account, store: StoreReply) -> None:
        # One worker per concurrent request, so that cost is reserved only when a request is sent.
        indices = iter(range(len(prompts)))
        async with Client(self.servers) as client:
            ended = asyncio.Event()

            async def work() -> None:
                for index in indices:
                    store(index, await self._reply(client, prompts[index], attempt, account, ended))

            workers = min(len(prompts), self.servers.concurrency * len(self.servers.base_urls))
            results = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
        for error in results:  # raised only now: all workers have stored the replies that they paid for
            if isinstance(error, BaseException):
                raise error

    def ready(self, context: JudgeContext) -> None:
        """Send a test request before anything costly runs; raise `UserError` if it fails `READY_TRIES` times."""
        account = self.reading.account(self.fingerprint(), context)
        spent = self.reading.price.of(*account.bills.tokens(PROBE)) if self.reading.price else 0.0
        context.budget.count(key_of({"probe": self.fingerprint()}), spent)

        async def probe() -> Reply:
            async with Client(self.servers) as client:
                return await self._reply(client, PROBE, 0, account, asyncio.Event())

        for _ in range(READY_TRIES):  # a single failure may be transient
            reply = asyncio.run(probe())
            if reply.finish != "api_error":
                break
        else:
            urls = ", ".join(self.servers.base_urls)
            raise UserError(
                f"the judge {self.model} does not answer at {urls} ({reply.text}). Start it or fix its settings, and "
                "run the same command again. Nothing was trained yet."
            )

    @property
    def _max_reply_tokens(self) -> int:
        """The bound on a reply's tokens, which `extra` may change."""
        limits = (self.extra.get(name) for name in ("max_tokens", "max_completion_tokens"))
        longest = max([self.reading.max_tokens, *(value for value in limits if isinstance(value, int))])
        choices = self.extra.get("n")
        return longest * (choices if isinstance(choices, int) and choices > 1 else 1)

    async def _reply(self, client: Client, prompt: str, attempt: int, account: Account, ended: asyncio.Event) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.reading.max_tokens,
            "seed": attempt,
            **({"logprobs": True, "top_logprobs": MAX_LOGPROBS} if self.verdict == "logprob" else {}),
            **self.extra,
        }
        weighted = self.verdict == "logprob"
        meter = _Meter(account, prompt, self._max_reply_tokens, ended)

        def read(answer: Answer) -> Reply:
            try:
                reply = _read(answer, prompt, weighted)
            except InvalidAnswer:
                meter.paid(_usage(answer))  # an unusable answer is billed too
                raise
            meter.paid((reply.prompt_tokens, reply.completion_tokens))
            return reply

        try:
            return await client.post("/chat/completions", body, read, meter)
        except RequestFailed as reason:
            return Reply("api_error", str(reason))


@dataclass
class _Meter:
    """Pay for the tries of one request. `ended` is set whenever any request ends."""

    account: Account
    prompt: str
    max_tokens: int
    ended: asyncio.Event
    last: Try | None = None

    async def begin(self) -> None:
        """Reserve the try's maximum cost. If the cap does not allow it, wait until pending requests are settled."""
        while True:
            try:
                self.last = self.account.reserve(self.prompt, self.max_tokens)
                return
            except UserError:
                if not self.account.budget.pending:
                    raise
            self.ended.clear()
            await self.ended.wait()

    def free(self) -> None:
        self.paid((0, 0))

    def end(self) -> None:
        if self.last:
            self.last.end()
        self.last = None
        self.ended.set()

    def paid(self, tokens: tuple[int | None, int | None]) -> None:
        """Settle the last try. If a number of tokens is unknown, the try keeps its maximum cost."""
        if self.last and tokens[0] is not None and tokens[1] is not None:
            self.last.settle(tokens[0], tokens[1])


def _read(answer: Answer, prompt: str, weighted: bool) -> Reply:
    """Read the reply in an answer. Raise `InvalidAnswer` for an unusable answer; the client then repeats the request.

    Args:
        weighted: True if log-probabilities were requested. A verdict without them is unusable.
    """
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise InvalidAnswer("the answer has no message") from None
    if isinstance(refusal, str) and refusal:
        return Reply("refused", refusal, *_usage_or_estimate(answer, prompt, refusal))
    if text is None and finish == "length":
        text = ""  # a reasoning judge that used up all its tokens before it answered
    if finish not in FINISHED or not isinstance(text, str):
        raise InvalidAnswer(f"the answer has no usable message (finish_reason {str(finish)[:40]})")
    text = text.encode(errors="replace").decode()  # half a surrogate pair is valid JSON but not text
    weights = _weights(choice.get("logprobs"), text) if weighted and finish == "stop" else None
    return Reply(FINISHED[finish], text, *_usage_or_estimate(answer, prompt, text), weights)  # type: ignore[arg-type]


def _weights(log_probs: Any, text: str) -> dict[str, float] | None:
    """Return each letter's log-probability at the position of the verdict; None without a verdict."""
    if (position := choice_position(text)) is None:
        return None
    # Count in bytes: if the tokenizer splits a character, no token's text holds that character.
    begin, target = 0, len(text[:position].encode())
    try:
        for token in log_probs["content"]:
            token_text, raw = token["token"], token.get("bytes")
            end = begin + len(raw if isinstance(raw, list) else token_text.encode())
            if begin <= target < end:
                index = len(token_text.encode()[: target - begin].decode(errors="ignore"))
                log_prob_of = {other["token"]: float(other["logprob"]) for other in token["top_logprobs"]}
                log_prob_of[token_text] = float(token["logprob"])
                if token_text[index] != text[position]:
                    break  # the server gives no bytes, and a character before the verdict is split
                tokens = letter_tokens(token_text, index)
                return {letter: log_prob_of[name] for letter, name in tokens.items() if name in log_prob_of}
            begin = end
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    raise InvalidAnswer("the answer has no log-probabilities of the verdict, which judge.verdict=logprob needs")


def _usage_or_estimate(answer: Answer, prompt: str, text: str) -> tuple[int, int]:
    """Return prompt and completion tokens as the server counts them, or estimates if it gives no counts."""
    prompt_tokens, completion_tokens = _usage(answer)
    return (
        estimated_tokens(prompt) if prompt_tokens is None else prompt_tokens,
        estimated_tokens(text) if completion_tokens is None else completion_tokens,
    )


def _usage(answer: Answer) -> tuple[int | None, int | None]:
    """Return prompt and completion tokens as the server counts them; None if it gives no count."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens, completion_tokens = (
        count if isinstance(count, int) and count >= 0 else None
        for count in (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    )
    return prompt_tokens, completion_tokens
