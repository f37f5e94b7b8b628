"""The backend for servers with OpenAI's HTTP API, such as `vllm serve`."""

import asyncio
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, ClassVar

from selfcontrast.client import Answer, Client, InvalidAnswer, RequestFailed, Servers
from selfcontrast.constrained import Seconds, Text, Tries, Workers
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Sampler
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY

log = logging.getLogger(__name__)

APIS = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class OpenAI:
    """Request all N responses of a prompt at once, then the missing ones.

    Attributes:
        model: the name of the model on the server.
        api: completions sends the prompt's token ids, rendered as in training; chat sends the messages, and the server
            renders them.
        extra: further fields of every request's body; null removes a field.
        base_urls, concurrency, timeout, retries, initial_backoff, api_key_env: as in `selfcontrast.client.Servers`.
    """

    follows_model: ClassVar[bool] = False

    model: Text
    api: str
    extra: dict[str, Any]
    base_urls: list[Text] = field(metadata=NOT_IN_KEY)
    concurrency: Workers = field(metadata=NOT_IN_KEY)
    timeout: Seconds = field(metadata=NOT_IN_KEY)
    retries: Tries = field(metadata=NOT_IN_KEY)
    initial_backoff: Seconds = field(metadata=NOT_IN_KEY)
    api_key_env: Text | None = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise UserError(f"backend.api={self.api} must be one of {', '.join(APIS)}")
        _ = self.servers

    @property
    def has_log_probs(self) -> bool:
        """True if log-probabilities are requested; `extra` may remove them. A server may still omit them."""
        requested = self.extra.get("logprobs", True)
        return requested is not None and requested is not False

    @property
    def servers(self) -> Servers:
        return Servers(
            self.base_urls, self.concurrency, self.timeout, self.retries, self.initial_backoff, self.api_key_env
        )

    def check(self) -> None:
        """Raise `UserError` if a server lacks the model. Warn about unreachable servers, which may start later."""
        offers = asyncio.run(self._offered_models())
        if unreachable := {url: why for url, why in offers.items() if isinstance(why, str)}:
            log.warning("server not reachable, but needed once the model is fine-tuned: %s", _join(unreachable))

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        self._require_server(model)
        server = _ServerSampler(self, Renderer(load_tokenizer(model)))
        with asyncio.Runner() as runner:
            client = runner.run(Client(self.servers).__aenter__())
            try:

                def sampler(requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
                    return runner.run(self._sample_all(server, client, requests, decoding, seed))

                yield sampler
            finally:
                runner.run(client.__aexit__(None, None, None))

    async def _sample_all(
        self, server: "_ServerSampler", client: Client, requests: Sequence[Request], decoding: Decoding, seed: int
    ) -> list[Candidate]:
        answered_before = client.answered
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(server.candidates(client, r, decoding, seed)) for r in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first error; the other requests were cancelled
        results = [task.result() for task in tasks]
        if client.answered == answered_before and all(isinstance(o, str) for o in (await client.models()).values()):
            raise UserError(
                f"no server answers any more ({results[0][0].text}). Start one, and run the same command again."
            )
        return [candidate for candidates in results for candidate in candidates]

    def _require_server(self, model: Path) -> None:
        """Raise `UserError` if no server answers. Warn if one serves another folder than the fine-tuned model's."""
        offers = asyncio.run(self._offered_models())
        if all(isinstance(offer, str) for offer in offers.values()):
            raise UserError(
                f"no server answers ({_join(offers)}). Serve the fine-tuned model with vllm serve {model} "
                f"--served-model-name {self.model}, and run the same command again."
            )
        for url, offer in offers.items():
            if isinstance(offer, str):
                log.warning("%s: %s", url, offer)
                continue
            roots = [m["root"] for m in offer if m.get("id") == self.model and isinstance(m.get("root"), str)]
            if roots and Path(roots[0]).is_dir() and Path(roots[0]).resolve() != model.resolve():
                log.warning("%s serves %s, not the fine-tuned model %s", url, roots[0], model)

    async def _offered_models(self) -> dict[str, list[Answer] | str]:
        """Return each endpoint's models, or why it failed. Raise `UserError` if `self.model` is not among them."""
        async with Client(self.servers) as client:
            offers = await client.models()
        for url, offer in offers.items():
            names = [str(model.get("id")) for model in offer] if not isinstance(offer, str) else [self.model]
            if self.model not in names:
                raise UserError(
                    f"backend.model={self.model}: {url} offers {', '.join(names) or 'no model'}. Set it to one of them."
                )
        return offers


class _ServerSampler:
    """Sample candidates from a server and tokenize them with the model's tokenizer."""

    def __init__(self, backend: OpenAI, renderer: Renderer) -> None:
        self.backend = backend
        self.renderer = renderer
        self.logged = False

    async def candidates(self, client: Client, request: Request, decoding: Decoding, seed: int) -> list[Candidate]:
        """Return all N candidates, or one failed candidate."""
        candidates: list[Candidate] = []
        try:
            while len(candidates) < decoding.samples:
                # Servers may return fewer choices. The missing ones are requested with another seed.
                first, missing = len(candidates), decoding.samples - len(candidates)
                body = self._body(request, decoding, missing, _seed(seed, request, first))
                choices = await client.post(APIS[self.backend.api], body, self._read)
                candidates += [
                    self._candidate(request, first + i, choice) for i, choice in enumerate(choices[:missing])
                ]
        except RequestFailed as reason:
            return [Candidate.failure(request.id, str(reason))]
        return candidates

    def _body(self, request: Request, decoding: Decoding, choices: int, seed: int) -> dict[str, Any]:
        chat = self.backend.api == "chat"
        body = {
            "model": self.backend.model,
            **({"messages": request.messages} if chat else {"prompt": request.prompt}),
            "n": choices,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": min(decoding.max_new_tokens, decoding.max_length - len(request.prompt)),
            "logprobs": True if chat else 1,
            "seed": seed,
            **self.backend.extra,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, answer: Answer) -> list[Answer]:
        """Return the usable choices. Raise `InvalidAnswer` if there are none."""
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise InvalidAnswer("no choices in the answer")
        # Choices that a content filter emptied, or that the server aborted, are not responses.
        usable = [c for c in choices if isinstance(c, dict) and c.get("finish_reason") in ("stop", "length")]
        usable = [choice for choice in usable if isinstance(_text(choice), str)]
        if not usable:
            reason = choices[0].get("finish_reason") if isinstance(choices[0], dict) else None
            raise InvalidAnswer(f"no usable choice in the answer (finish_reason {str(reason)[:40]})")
        return usable

    def _candidate(self, request: Request, sample: int, choice: Answer) -> Candidate:
        finish, ids = choice["finish_reason"], self._ids(choice)
        log_prob = _log_prob(choice, len(ids) if ids else None)
        if ids:
            text = self.renderer.text(ids)
        else:
            # JSON can hold half of a surrogate pair, which is not valid text.
            text = _text(choice).encode(errors="replace").decode().strip()
            ids = self.renderer.response(request.messages, text)
            ids = ids if finish == "stop" else ids[:-1]
            text = self.renderer.text(ids)  # differs if the text contains a special token
        if finish == "stop" and ids[-1] not in self.renderer.end_ids:
            ids = [*ids, self.renderer.end_id]
        return Candidate(request.id, sample, text, ids, finish, log_prob)

    def _ids(self, choice: Answer) -> list[int] | None:
        ids = choice.get("token_ids")
        size = len(self.renderer.tokenizer)
        if isinstance(ids, list) and ids and all(isinstance(i, int) and 0 <= i < size for i in ids):
            return ids
        if not self.logged:
            foreign = f"token ids outside the tokenizer's vocabulary of {size}" if ids else "no token ids"
            log.info(
                "the server returns %s. Its texts are tokenized again, perhaps into other tokens than were sampled.",
                foreign,
            )
            self.logged = True
        return None


def _text(choice: Answer) -> Any:
    message = choice.get("message")
    return message.get("content") if isinstance(message, dict) else choice.get("text")


def _log_prob(choice: Answer, tokens: int | None) -> float:
    """Return the sum of the tokens' log-probabilities; NaN if the server omits any of them."""
    log_probs = choice.get("logprobs")
    if not isinstance(log_probs, dict):
        return nan
    content = log_probs.get("content")
    values = [t.get("logprob") for t in content] if isinstance(content, list) else log_probs.get("token_logprobs")
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return nan
    return float(sum(values)) if tokens in (None, len(values)) else nan


def _seed(seed: int, request: Request, first: int) -> int:
    """Return a 31-bit seed that depends on (seed, id, sample) alone, so a resumed run samples the same."""
    digest = hashlib.sha256(f"{seed}\0{request.id}\0{first}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _join(offers: dict[str, Any]) -> str:
    return "; ".join(f"{url}: {why}" for url, why in offers.items())
