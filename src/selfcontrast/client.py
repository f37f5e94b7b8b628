"""A client of servers that speak OpenAI's HTTP API: several endpoints, which rest after failures, and retries.

The key comes from an environment variable, and goes into the request's header and nowhere else.
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

LONGEST_BACKOFF = 60.0  # seconds between two tries
LONGEST_REST = 600.0  # seconds; whatever a server's Retry-After says
LOOK = 5.0  # seconds that `models` waits
LATER = {408, 409, 425, 429, *range(500, 600)}  # statuses after which the same request may well succeed
# Of those, the ones that turn a request away before anybody works on it. After any other an answer may have been made,
# and billed: a proxy says 503 as well where the server behind it has died in the middle of one.
TURNED_AWAY = {425, 429}
PATIENCE = 600.0  # seconds without any answer, after which a client gives up
BETWEEN_LINES = 60.0  # seconds between two lines of the log about failures
SHOWN = 200  # characters of a server's complaint

log = logging.getLogger(__name__)

Answer = dict[str, Any]
T = TypeVar("T")


class Unanswered(Exception):
    """A request that has failed for good; its text is the reason."""


class Unusable(Exception):
    """An answer that cannot be used; its text is the reason. The request is tried again."""


class _Later(Exception):
    """A failure that may pass.

    Attributes:
        rest: the seconds that the server asks for, if it does.
        free: whether nobody can have worked on the request, and so nobody bills it.
    """

    def __init__(self, reason: str, rest: float | None = None, free: bool = False) -> None:
        super().__init__(reason)
        self.rest = rest
        self.free = free


class Meter(Protocol):
    """Counts the tries of a request that may be billed."""

    async def begin(self) -> None:
        """Called before each try. Raises `UserError` where it must not be made."""

    def end(self) -> None:
        """Called after each try, whatever became of it."""

    def free(self) -> None:
        """Called after a try that cost nothing: it has not arrived, or was refused."""


@dataclass(frozen=True)
class Servers:
    """Endpoints of one model, and how patiently they are asked.

    Attributes:
        base_urls: each with its version, such as http://127.0.0.1:8000/v1.
        concurrency: requests under way at once, per endpoint.
        timeout: seconds for a whole answer.
        retries: of a request, before it has failed for good.
        initial_backoff: seconds before the first retry, about; doubled before each next one.
        api_key_env: name of the environment variable that holds the key; None where none is asked for.
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
                f"base_urls={self.base_urls}: one or more different endpoints, such as [http://127.0.0.1:8000/v1]"
            )
        for url in self.base_urls:
            try:
                parts, port = urlsplit(url), urlsplit(url).port
            except ValueError:
                parts, port = urlsplit(""), None
            if parts.username or parts.password:
                raise UserError(
                    f"base_urls: {parts.hostname}: no user or password in a URL; name an api_key_env instead"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
                raise UserError(f"base_urls: {url!r} is no endpoint: http://HOST:PORT/v1, or https")

    @property
    def key(self) -> str | None:
        """Raises `UserError` where the variable is named, and empty or not set."""
        if self.api_key_env is None:
            return None
        if key := os.environ.get(self.api_key_env, "").strip():
            return key
        raise UserError(f"api_key_env={self.api_key_env}: not set; export {self.api_key_env}=…, or name none (null)")


@dataclass
class _Endpoint:
    url: str
    failures: int = 0  # in a row
    rests_until: float = 0.0  # of the monotonic clock


@dataclass
class Client:
    """To be used with `async with`, within one event loop."""

    servers: Servers
    answered: int = field(default=0, init=False)  # requests so far
    failed: int = field(default=0, init=False)  # tries so far
    _silent_since: float | None = field(default=None, init=False)  # the first failure after the last answer
    _gives_up_at: float = field(default=0.0, init=False)
    _said_at: float = field(default=-inf, init=False)

    async def __aenter__(self) -> Self:
        key = self.servers.key
        self._secret = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies are taken from the environment, as every tool does. The endpoints' slots bound what is under way.
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.servers.timeout),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=True,
        )
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in self.servers.base_urls]
        # The slot that has been free longest comes first, so that a slow endpoint gets fewer requests.
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
        """What `read` makes of the answer, from whichever endpoint gives one that it can read.

        Args:
            read: raises `Unusable` for an answer that is not what was asked for.
            meter: is told of each try.

        Raises:
            Unanswered: when the request is refused, or still fails after all retries.
            UserError: when any other request would fail as well: the key, the address or the model is wrong, or no
                request has been answered for `PATIENCE` seconds.
        """
        for tried in range(self.servers.retries + 1):
            if tried:
                await asyncio.sleep(self._backoff(tried - 1))
            endpoint = await self._slot()
            try:
                self._check_patience()
                if meter:
                    await meter.begin()
                try:
                    found = read(await self._metered(endpoint, path, body, meter))
                finally:
                    if meter:
                        meter.end()
            except (_Later, Unusable) as error:
                reason = self._safe(str(error))
                self._rest(endpoint, error)
                self._tell(endpoint, reason, getattr(error, "rest", None))
            except Unanswered:
                self._silent_since = None  # a server that refuses a request is there
                raise
            else:
                endpoint.failures = 0
                self.answered += 1
                self._silent_since = None
                return found
            finally:
                self._slots.put_nowait(endpoint)
        raise Unanswered(f"{reason} (tries: {self.servers.retries + 1})")

    async def _metered(self, endpoint: _Endpoint, path: str, body: Mapping[str, Any], meter: Meter | None) -> Answer:
        if meter is None:
            return await self._ask(endpoint, "POST", path, body)
        try:
            return await self._ask(endpoint, "POST", path, body)
        except (Unanswered, UserError):
            meter.free()
            raise
        except _Later as error:
            if error.free:
                meter.free()
            raise

    def _tell(self, endpoint: _Endpoint, reason: str, rest: float | None) -> None:
        """Log the first failure, and what still fails a minute later; note since when nothing has been answered."""
        now = time.monotonic()
        self.failed += 1
        self._last_reason = reason
        if self._silent_since is None:
            self._silent_since, self._gives_up_at = now, now + PATIENCE
        # A rest that a server asks for is waited for once; one that asks again and again is as good as dead.
        if rest:
            asked = min(now + rest + LOOK, self._silent_since + 2 * PATIENCE)
            self._gives_up_at = max(self._gives_up_at, asked)
        if now - self._said_at >= BETWEEN_LINES:
            self._said_at = now
            log.warning(
                "%s: %s; trying again (%d tries failed, %d requests answered so far)",
                endpoint.url,
                reason,
                self.failed,
                self.answered,
            )

    def _check_patience(self) -> None:
        if self._silent_since is not None and time.monotonic() >= self._gives_up_at:
            raise UserError(
                f"no answer from {', '.join(self.servers.base_urls)} for {time.monotonic() - self._silent_since:.0f} s "
                f"({self._last_reason}): mend or start it, and run the same command again; what was answered is kept"
            )

    async def models(self) -> dict[str, list[Answer] | str]:
        """Per URL the models that it offers, or why it does not say.

        Raises:
            UserError: when an endpoint refuses the key.
        """
        return dict(
            zip(self.servers.base_urls, await asyncio.gather(*(self._models(e) for e in self._endpoints)), strict=True)
        )

    async def _models(self, endpoint: _Endpoint) -> list[Answer] | str:
        try:
            async with asyncio.timeout(LOOK):
                answer = await self._ask(endpoint, "GET", "/models", None)
        except (_Later, Unanswered, TimeoutError) as error:
            return str(error) or f"no answer in {LOOK:.0f} s"
        data = answer.get("data")
        return [model for model in data if isinstance(model, dict)] if isinstance(data, list) else "it does not say"

    async def _slot(self) -> _Endpoint:
        """An endpoint that is free and not resting."""
        while True:
            endpoint = await self._slots.get()
            rest = endpoint.rests_until - time.monotonic()
            if rest <= 0:
                return endpoint
            asyncio.get_running_loop().call_later(rest, self._slots.put_nowait, endpoint)

    def _rest(self, endpoint: _Endpoint, error: Exception) -> None:
        """A server that asks for a rest gets it; one that fails repeatedly, too. One bad request stops nobody."""
        endpoint.failures += 1
        now, asked = time.monotonic(), getattr(error, "rest", None)
        if asked is not None:
            endpoint.rests_until = max(endpoint.rests_until, now + min(asked, LONGEST_REST))
        elif endpoint.failures > 1 and endpoint.rests_until <= now:
            endpoint.rests_until = now + self._backoff(endpoint.failures - 2)

    def _backoff(self, failures: int) -> float:
        """Seconds: exponential, with jitter, so that what failed together does not come back together."""
        return float(
            min(self.servers.initial_backoff * 2.0 ** min(failures, 30), LONGEST_BACKOFF) * random.uniform(0.5, 1)
        )

    async def _ask(self, endpoint: _Endpoint, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        """One HTTP request, its answer as JSON; every way to fail as one of `_Later`, `Unanswered` and `UserError`."""
        try:
            # A redirect is not followed: it might carry the key to another host.
            async with self._session.request(method, endpoint.url + path, json=body, allow_redirects=False) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except TimeoutError:
            raise _Later(f"no answer in {self.servers.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            unsent = isinstance(error, aiohttp.ClientConnectorError)
            raise _Later(self._safe(f"{type(error).__name__}: {error}"), free=unsent) from None
        if status == 200:
            return self._json(content)
        reason = self._safe(f"HTTP {status}: {_complaint(content)}")
        if status in LATER:
            raise _Later(reason, _retry_after(headers.get("Retry-After")), free=status in TURNED_AWAY)
        if status in (401, 403):
            raise UserError(f"{endpoint.url} refuses the key ({reason}): api_key_env={self.servers.api_key_env}")
        if (status == 404 or 300 <= status < 400) and method == "POST":
            raise UserError(f"{endpoint.url}{path} has no such model, or is no such address ({reason})")
        raise Unanswered(reason)

    def _json(self, content: bytes) -> Answer:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise _Later(self._safe(f"no JSON in the answer: {_complaint(content)}")) from None
        if not isinstance(answer, dict):
            raise _Later("no JSON object in the answer")
        return answer

    def _safe(self, text: str) -> str:
        """One line, without the key, which servers have been seen to repeat."""
        text = text.replace(self._secret, "***") if self._secret else text
        return printable(text)[:SHOWN]


def _complaint(content: bytes) -> str:
    """What a server says in the body of an error, in any of the usual forms."""
    text = content[:4096].decode(errors="replace")
    try:
        found = json.loads(content)
        found = found.get("error", found)
        return str(found if isinstance(found, str) else found.get("message") or found.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        return text.strip() or "an empty body"


def _retry_after(value: str | None) -> float | None:
    """Seconds, from either form of the header."""
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
