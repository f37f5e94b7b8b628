"""A judge behind an HTTP endpoint that speaks OpenAI's API, among them a local `vllm serve`."""

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
from selfcontrast.evaluation.judges.judgment import Case, Counting, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.prompts import templates_hash
from selfcontrast.evaluation.judges.reading import Done, Reading, Reply, check_verdict
from selfcontrast.evaluation.judges.verdicts import alternatives, choice_place
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.artifact import key_of

MOST_LOGPROBS = 20  # of a token's alternatives, that OpenAI gives
LOOKS = 3
PROBE = "Is anybody there? Reply with [[5]] and nothing else."
FINISHED = {"stop": "stop", "length": "truncated", "content_filter": "refused"}


@dataclass(frozen=True)
class OpenAIJudge:
    """Attributes:
    model: the name that the servers give it; part of what decides a judgment, as the servers' addresses are not.
    verdict: of a comparison, "text" as it is said, or "logprob" weighed by the probabilities of the letters.
    extra: further fields of each request.
    """

    model: Text
    temperature: Temperature
    verdict: str
    extra: dict[str, Any]
    reading: Reading = field(metadata=NOT_IN_KEY)
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
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return self.reading.judge(cases, self.fingerprint(), surroundings, self._ask)

        yield Counting(judging, self.reading.unread)

    def _ask(self, prompts: Sequence[str], attempt: int, account: Account, done: Done) -> None:
        asyncio.run(self._all(prompts, attempt, account, done))

    async def _all(self, prompts: Sequence[str], attempt: int, account: Account, done: Done) -> None:
        # As many workers as requests may be under way: what is asked for next is only paid for when it is its turn.
        places = iter(range(len(prompts)))
        async with Client(self.servers) as client:
            ended = asyncio.Event()

            async def work() -> None:
                for at in places:
                    done(at, await self._reply(client, prompts[at], attempt, account, ended))

            workers = min(len(prompts), self.servers.concurrency * len(self.servers.base_urls))
            found = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
        for error in found:  # after the others have kept what they had asked for, and so paid for
            if isinstance(error, BaseException):
                raise error

    def ready(self, surroundings: JudgeContext) -> None:
        """Ask before anything costly is computed. Raises `UserError` where `LOOKS` requests get no reply."""
        account = self.reading.account(self.fingerprint(), surroundings)
        spent = self.reading.price.of(*account.bills.tokens(PROBE)) if self.reading.price else 0.0
        surroundings.budget.count(key_of({"probe": self.fingerprint()}), spent)

        async def once() -> Reply:
            async with Client(self.servers) as client:
                return await self._reply(client, PROBE, 0, account, asyncio.Event())

        for _ in range(LOOKS):  # one failure may be chance
            reply = asyncio.run(once())
            if reply.finish != "api_error":
                break
        else:
            urls = ", ".join(self.servers.base_urls)
            raise UserError(
                f"the judge {self.model} does not answer at {urls} ({reply.text}): start it, or mend its settings, and "
                "run the same command again; nothing was trained yet"
            )

    @property
    def _most(self) -> int:
        """Bound the tokens of a reply, which `extra` may change."""
        given = (self.extra.get(name) for name in ("max_tokens", "max_completion_tokens"))
        longest = max([self.reading.max_tokens, *(value for value in given if isinstance(value, int))])
        choices = self.extra.get("n")
        return longest * (choices if isinstance(choices, int) and choices > 1 else 1)

    async def _reply(self, client: Client, prompt: str, attempt: int, account: Account, ended: asyncio.Event) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.reading.max_tokens,
            "seed": attempt,
            **({"logprobs": True, "top_logprobs": MOST_LOGPROBS} if self.verdict == "logprob" else {}),
            **self.extra,
        }
        weigh = self.verdict == "logprob"
        meter = _Meter(account, prompt, self._most, ended)

        def read(answer: Answer) -> Reply:
            try:
                reply = _read(answer, prompt, weigh)
            except InvalidAnswer:
                meter.paid(_usage(answer))  # what cannot be used is billed all the same
                raise
            meter.paid((reply.prompt_tokens, reply.completion_tokens))
            return reply

        try:
            return await client.post("/chat/completions", body, read, meter)
        except RequestFailed as reason:
            return Reply("api_error", str(reason))


@dataclass
class _Meter:
    """Counts the tries of one request. `ended` is set whenever a request has ended, this one or another."""

    account: Account
    prompt: str
    most: int
    ended: asyncio.Event
    last: Try | None = None

    async def begin(self) -> None:
        """Set aside what the try may cost; where the cap has no room, wait for what others turn out to cost."""
        while True:
            try:
                self.last = self.account.reserve(self.prompt, self.most)
                return
            except UserError:
                if not self.account.budget.under_way:
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
        """Settle the last try; what is not known stays at its most."""
        if self.last and tokens[0] is not None and tokens[1] is not None:
            self.last.settle(tokens[0], tokens[1])


def _read(answer: Answer, prompt: str, weigh: bool) -> Reply:
    """Raises `InvalidAnswer` for what is no answer to a chat request, which is then made again.

    Args:
        weigh: whether log-probabilities were asked for; without them a verdict cannot be used.
    """
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise InvalidAnswer("no message in the answer") from None
    if isinstance(refusal, str) and refusal:
        return Reply("refused", refusal, *_used(answer, prompt, refusal))
    if text is None and finish == "length":
        text = ""  # a judge that reasons, and used up all it may write before it came to an answer
    if finish not in FINISHED or not isinstance(text, str):
        raise InvalidAnswer(f"no usable message in the answer (finish_reason {str(finish)[:40]})")
    text = text.encode(errors="replace").decode()  # half of a surrogate pair is JSON, but no text
    weights = _weights(choice.get("logprobs"), text) if weigh and finish == "stop" else None
    return Reply(FINISHED[finish], text, *_used(answer, prompt, text), weights)  # type: ignore[arg-type]


def _weights(log_probs: Any, text: str) -> dict[str, float] | None:
    """By letter its log-probability where the reply gives its verdict; None where it gives none."""
    if (place := choice_place(text)) is None:
        return None
    # In bytes: a character that the tokenizer splits is whole in no token's text.
    begin, sought = 0, len(text[:place].encode())
    try:
        for token in log_probs["content"]:
            said, raw = token["token"], token.get("bytes")
            end = begin + len(raw if isinstance(raw, list) else said.encode())
            if begin <= sought < end:
                at = len(said.encode()[: sought - begin].decode(errors="ignore"))
                given = {other["token"]: float(other["logprob"]) for other in token["top_logprobs"]}
                given[said] = float(token["logprob"])
                if said[at] != text[place]:
                    break  # a server that gives no bytes, after a character that is split
                tokens = alternatives(said, at)
                return {letter: given[token] for letter, token in tokens.items() if token in given}
            begin = end
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    raise InvalidAnswer("no log-probabilities of the verdict in the answer, which judge.verdict=logprob needs")


def _used(answer: Answer, prompt: str, text: str) -> tuple[int, int]:
    """Tokens read and written, as the server counts them; estimated where it does not say."""
    prompt_tokens, completion_tokens = _usage(answer)
    return (
        estimated_tokens(prompt) if prompt_tokens is None else prompt_tokens,
        estimated_tokens(text) if completion_tokens is None else completion_tokens,
    )


def _usage(answer: Answer) -> tuple[int | None, int | None]:
    """Tokens read and written, as the server counts them; None where it does not say."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    read, written = (
        count if isinstance(count, int) and count >= 0 else None
        for count in (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    )
    return read, written
