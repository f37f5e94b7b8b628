"""A client for servers with OpenAI's HTTP API: several endpoints, pauses after failures, and retries.

The key is read from an environment variable and sent in the request's header only.
"""

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import inf
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from selfcontrast.constrained import Seconds, Text, Tries, Workers, check_numbers
from selfcontrast.errors import UserError, printable

MAX_BACKOFF = 60.0  # seconds between two tries
MAX_PAUSE = 600.0  # seconds, even if a server's Retry-After is longer
MODELS_TIMEOUT = 5.0  # seconds that `models` waits
RETRY_STATUSES = {408, 409, 425, 429, *range(500, 600)}  # the same request may succeed later
# With these statuses, the server did not work on the request. With the other statuses that are retried, an answer may
# have been billed: a proxy also returns 503 if the server behind it died during an answer.
UNBILLED_STATUSES = {425, 429}
PATIENCE = 600.0  # seconds without any answer until a client gives up
LOG_INTERVAL = 60.0  # seconds between two log lines about failures
MAX_REASON = 200  # characters of a server's error message

log = logging.getLogger(__name__)

Answer = dict[str, Any]
T = TypeVar("T")


class RequestFailed(Exception):
    """A request that has failed permanently. Its text is the reason."""


class InvalidAnswer(Exception):
    """An answer that cannot be used; the request is retried. Its text is the reason."""


class _TransientFailure(Exception):
    """A failure that a retry may resolve.

    Attributes:
        pause: seconds to pause, if the server requests a pause.
        free: True if the server did not work on the request, so that it is not billed.
    """

    def __init__(self, reason: str, pause: float | None = None, free: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        self.free = free


class Meter(Protocol):
    """Count the tries of a request that may be billed."""

    async def begin(self) -> None:
        """Start a try. Raise `UserError` to forbid it."""

    def end(self) -> None:
        """End a try, successful or not."""

    def free(self) -> None:
        """Mark the try as free: it did not arrive, or was refused."""


@dataclass(frozen=True)
class Servers:
    """Endpoints of one model, and the settings of requests to them.

    Attributes:
        base_urls: URLs of the endpoints, with the API's version, such as http://127.0.0.1:8000/v1.
        concurrency: simultaneous requests per endpoint.
        timeout: seconds for a whole answer.
        retries: number of retries after which a request has failed permanently.
        initial_backoff: approximate seconds before the first retry; doubled before each further retry.
        api_key_env: name of the environment variable with the key; None if the servers need no key.
    """

    base_urls: list[Text]
    concurrency: Workers
    timeout: Seconds
    retries: Tries
    initial_backoff: Seconds
    api_key_env: Text | None

    def __post_init__(self) -> None:
        check_numbers(self, "")
        if not self.base_urls or len(set(self.base_urls)) < len(self.base_urls):
            raise UserError(
                f"base_urls={self.base_urls} must be one or more different endpoints, such as [http://127.0.0.1:8000/v1]"
            )
        for url in self.base_urls:
            try:
                parts, port = urlsplit(url), urlsplit(url).port
            except ValueError:
                parts, port = urlsplit(""), None
            if parts.username or parts.password:
                raise UserError(
                    f"base_urls: {parts.hostname} has a user or password in its URL. Use api_key_env instead."
                )
            if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
                raise UserError(f"base_urls: {url!r} is not an endpoint. Write it as http://HOST:PORT/v1, or https.")

    @property
    def key(self) -> str | None:
        """The key. Raises `UserError` if `api_key_env` is set but its variable is empty."""
        if self.api_key_env is None:
            return None
        if key := os.environ.get(self.api_key_env, "").strip():
            return key
        raise UserError(
            f"api_key_env={self.api_key_env} is not set. Run export {self.api_key_env}=…, or set api_key_env=null."
        )


@dataclass
class _Endpoint:
    url: str
    failures: int = 0  # number of failures since the last answer
    paused_until: float = 0.0  # by time.monotonic()


@dataclass
class Client:
    """An HTTP client. Use it with `async with`, within one event loop."""

    servers: Servers
    answered: int = field(default=0, init=False)  # number of requests
    failed: int = field(default=0, init=False)  # number of tries
    _silent_since: float | None = field(default=None, init=False)  # time of the first failure after the last answer
    _gives_up_at: float = field(default=0.0, init=False)
    _logged_at: float = field(default=-inf, init=False)

    async def __aenter__(self) -> Self:
        key = self.servers.key
        self._secret = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies come from the environment, as in most tools. The endpoints' slots limit simultaneous requests.
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.servers.timeout),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=True,
        )
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in self.servers.base_urls]
        # The slot that has been free longest is used first, so a slow endpoint gets fewer requests.
        self._slots: asyncio.Queue[_Endpoint] = asyncio.Queue()
        for _ in range(self.servers.concurrency):
            for endpoint in self._endpoints:
                self._slots.put_nowait(endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(
        self, path: str, body: Mapping[str, Any], read: Callable[[Answer], T], meter: Meter | None = None
    ) -> T:
        """Send a request to any free endpoint, and retry on failure. Return the answer, converted by `read`.

        Args:
            read: raises `InvalidAnswer` for an unusable answer.
            meter: counts the tries.

        Raises:
            RequestFailed: if the request is refused, or still fails after all retries.
            UserError: if other requests would fail too: the key, the address or the model is wrong, or no request was
                answered for `PATIENCE` seconds.
        """
        for attempt in range(self.servers.retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff(attempt - 1))
            endpoint = await self._slot()
            try:
                self._check_patience()
                if meter:
                    await meter.begin()
                try:
                    result = read(await self._metered(endpoint, path, body, meter))
                finally:
                    if meter:
                        meter.end()
            except (_TransientFailure, InvalidAnswer) as error:
                reason = self._safe(str(error))
                self._pause(endpoint, error)
                self._record_failure(endpoint, reason, getattr(error, "pause", None))
            except RequestFailed:
                self._silent_since = None  # a server that refuses a request is reachable
                raise
            else:
                endpoint.failures = 0
                self.answered += 1
                self._silent_since = None
                return result
            finally:
                self._slots.put_nowait(endpoint)
        raise RequestFailed(f"{reason} (tries: {self.servers.retries + 1})")

    async def _metered(self, endpoint: _Endpoint, path: str, body: Mapping[str, Any], meter: Meter | None) -> Answer:
        if meter is None:
            return await self._request(endpoint, "POST", path, body)
        try:
            return await self._request(endpoint, "POST", path, body)
        except (RequestFailed, UserError):
            meter.free()
            raise
        except _TransientFailure as error:
            if error.free:
                meter.free()
            raise

    def _record_failure(self, endpoint: _Endpoint, reason: str, pause: float | None) -> None:
        """Log the first failure, then at most one a minute. Set the time to give up if nothing is answered."""
        now = time.monotonic()
        self.failed += 1
        self._last_reason = reason
        if self._silent_since is None:
            self._silent_since, self._gives_up_at = now, now + PATIENCE
        # A requested pause delays giving up, but to `2 * PATIENCE` at most: a server could request pauses forever.
        if pause:
            until = min(now + pause + MODELS_TIMEOUT, self._silent_since + 2 * PATIENCE)
            self._gives_up_at = max(self._gives_up_at, until)
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            log.warning(
                "%s: %s; retrying (%d failed tries and %d answered requests so far)",
                endpoint.url,
                reason,
                self.failed,
                self.answered,
            )

    def _check_patience(self) -> None:
        if self._silent_since is not None and time.monotonic() >= self._gives_up_at:
            raise UserError(
                f"no answer from {', '.join(self.servers.base_urls)} for {time.monotonic() - self._silent_since:.0f} s "
                f"({self._last_reason}). Start or repair the server, and run the same command again. Answers are kept."
            )

    async def models(self) -> dict[str, list[Answer] | str]:
        """Return the models that each URL offers, or the reason why they are unknown.

        Raises:
            UserError: if an endpoint refuses the key.
        """
        return dict(
            zip(self.servers.base_urls, await asyncio.gather(*(self._models(e) for e in self._endpoints)), strict=True)
        )

    async def _models(self, endpoint: _Endpoint) -> list[Answer] | str:
        try:
            async with asyncio.timeout(MODELS_TIMEOUT):
                answer = await self._request(endpoint, "GET", "/models", None)
        except (_TransientFailure, RequestFailed, TimeoutError) as error:
            return str(error) or f"no answer in {MODELS_TIMEOUT:.0f} s"
        data = answer.get("data")
        return (
            [model for model in data if isinstance(model, dict)]
            if isinstance(data, list)
            else "it does not list its models"
        )

    async def _slot(self) -> _Endpoint:
        """Wait for an endpoint that has a free slot and is not paused, and return it."""
        while True:
            endpoint = await self._slots.get()
            pause = endpoint.paused_until - time.monotonic()
            if pause <= 0:
                return endpoint
            asyncio.get_running_loop().call_later(pause, self._slots.put_nowait, endpoint)

    def _pause(self, endpoint: _Endpoint, error: Exception) -> None:
        """Pause an endpoint if its server requests a pause, or from its second failure in a row on."""
        endpoint.failures += 1
        now, requested = time.monotonic(), getattr(error, "pause", None)
        if requested is not None:
            endpoint.paused_until = max(endpoint.paused_until, now + min(requested, MAX_PAUSE))
        elif endpoint.failures > 1 and endpoint.paused_until <= now:
            endpoint.paused_until = now + self._backoff(endpoint.failures - 2)

    def _backoff(self, failures: int) -> float:
        """Return seconds to wait: exponential, with jitter, so that failed requests do not all retry at once."""
        return float(min(self.servers.initial_backoff * 2.0 ** min(failures, 30), MAX_BACKOFF) * random.uniform(0.5, 1))

    async def _request(self, endpoint: _Endpoint, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        """Send one HTTP request and return its JSON answer.

        Raise `_TransientFailure`, `RequestFailed` or `UserError`.
        """
        try:
            # Redirects are not followed: they could send the key to another host.
            async with self._session.request(method, endpoint.url + path, json=body, allow_redirects=False) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except TimeoutError:
            raise _TransientFailure(f"no answer in {self.servers.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            unsent = isinstance(error, aiohttp.ClientConnectorError)
            raise _TransientFailure(self._safe(f"{type(error).__name__}: {error}"), free=unsent) from None
        if status == 200:
            return self._json(content)
        reason = self._safe(f"HTTP {status}: {_error_message(content)}")
        if status in RETRY_STATUSES:
            raise _TransientFailure(reason, _retry_after(headers.get("Retry-After")), free=status in UNBILLED_STATUSES)
        if status in (401, 403):
            raise UserError(f"{endpoint.url} refuses the key ({reason}). Check api_key_env={self.servers.api_key_env}.")
        if (status == 404 or 300 <= status < 400) and method == "POST":
            raise UserError(
                f"{endpoint.url}{path} has no such model, or is a wrong address ({reason}). Check model and base_urls."
            )
        raise RequestFailed(reason)

    def _json(self, content: bytes) -> Answer:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise _TransientFailure(self._safe(f"no JSON in the answer: {_error_message(content)}")) from None
        if not isinstance(answer, dict):
            raise _TransientFailure("no JSON object in the answer")
        return answer

    def _safe(self, text: str) -> str:
        """Return the text as one line, without the key, which some servers repeat."""
        text = text.replace(self._secret, "***") if self._secret else text
        return printable(text)[:MAX_REASON]


def _error_message(content: bytes) -> str:
    """Return the error message in the body of a response, in any of the usual forms."""
    text = content[:4096].decode(errors="replace")
    try:
        body = json.loads(content)
        body = body.get("error", body)
        return str(body if isinstance(body, str) else body.get("message") or body.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        return text.strip() or "an empty body"


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header gives as a number or as a date; None if it gives neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
