"""Test the HTTP client against servers that fail in many ways."""

import asyncio
import re
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from openai_server import Body, Fault, OpenAIServer
from selfcontrast import client
from selfcontrast.client import Answer, Client, InvalidAnswer, RequestFailed, Servers
from selfcontrast.errors import UserError

KEY = "sk-planted-0123456789"
HTML = b"<html>\n <body>Bad Gateway</body></html>"


def servers(*urls: str, **changes: Any) -> Servers:
    valid: dict[str, Any] = {
        "concurrency": 4,
        "timeout": 5.0,
        "retries": 2,
        "initial_backoff": 0.01,
        "api_key_env": None,
    }
    return Servers(list(urls), **{**valid, **changes})


def text(answer: Answer) -> str:
    return str(answer["choices"][0]["text"])


def ask(settings: Servers, count: int = 1) -> list[str]:
    """Return the answers to `count` simultaneous requests, or the reasons of failures."""

    async def send(http: Client, number: int) -> str:
        try:
            return await http.post("/completions", {"prompt": f"p{number}", "seed": 0}, text)
        except RequestFailed as reason:
            return f"failed: {reason}"

    async def send_all() -> list[str]:
        async with Client(settings) as http:
            return list(await asyncio.gather(*(send(http, number) for number in range(count))))

    return asyncio.run(send_all())


def fail_first(*faults: Fault) -> Any:
    """Return a function that lets the first requests fail with `faults`, and later requests succeed."""
    return lambda number, body: faults[number] if number < len(faults) else None


def closed_url() -> str:
    """Return a URL where no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


TRANSIENT = {
    "500": Fault(500),
    "503 with Retry-After": Fault(503, headers={"Retry-After": "0"}),
    "429": Fault(429, b'{"error": "slow down"}'),
    "html": Fault(200, HTML),
    "half a body": Fault(200, b'{"choices": [{"text": "ha', promised=900),
    "not an object": Fault(200, b"[]"),
    "empty": Fault(200, b""),
    "no choices": Fault(200, b'{"choices": []}'),
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_transient_failure_is_retried(fault: Fault) -> None:
    def read(answer: Answer) -> str:
        if not answer["choices"]:
            raise InvalidAnswer("no choices in the answer")
        return text(answer)

    async def post(url: str) -> str:
        async with Client(servers(url)) as http:
            return await http.post("/completions", {"prompt": "p0", "seed": 0}, read)

    with OpenAIServer().open() as healthy:
        (expected,) = ask(servers(healthy.url))
    with OpenAIServer(fault=fail_first(fault, fault)).open() as server:
        assert asyncio.run(post(server.url)) == expected
        assert len(server.requests) == 3
        assert {str(request.body) for request in server.requests} == {str(server.requests[0].body)}


REASONS = {
    "500": (Fault(500), "HTTP 500: out of order (tries: 3)"),
    "html": (Fault(502, HTML), "HTTP 502: <html> <body>Bad Gateway</body></html> (tries: 3)"),
    "html with 200": (Fault(200, HTML), "no JSON in the answer: <html> <body>Bad Gateway</body></html> (tries: 3)"),
    "400": (Fault(400, b'{"object": "error", "message": "too long"}'), "HTTP 400: too long"),
    "422": (Fault(422, b'{"detail": [{"msg": "no"}]}'), "HTTP 422: [{'msg': 'no'}]"),
    "no body": (Fault(400, b""), "HTTP 400: an empty body"),
}


@pytest.mark.parametrize(("fault", "reason"), REASONS.values(), ids=REASONS)
def test_permanent_failure_gives_its_reason_and_others_succeed(fault: Fault, reason: str) -> None:
    def fail_p1(number: int, body: Body) -> Fault | None:
        return fault if body["prompt"] == "p1" else None

    with OpenAIServer(fault=fail_p1).open() as server:
        answers = ask(servers(server.url), 4)
        tries = sum(request.body["prompt"] == "p1" for request in server.requests)
    assert answers[1] == f"failed: {reason}"
    assert all(answer.startswith("the ") for i, answer in enumerate(answers) if i != 1)
    assert tries == (3 if "tries" in reason else 1)


def test_slow_answer_times_out() -> None:
    with OpenAIServer(fault=fail_first(Fault(200, delay=60))).open() as server:
        (answer,) = ask(servers(server.url, timeout=1.0))
        assert answer.startswith("the ")
    with OpenAIServer(fault=lambda *_: Fault(200, delay=60)).open() as server:
        assert ask(servers(server.url, timeout=0.05, retries=0)) == ["failed: no answer in 0.05 s (tries: 1)"]


def test_refused_connection_fails() -> None:
    (answer,) = ask(servers(closed_url()))
    assert re.match(r"failed: ClientConnectorError: Cannot connect to host 127\.0\.0\.1:\d+ .*tries: 3", answer)


def test_dead_endpoint_is_paused_and_another_endpoint_answers() -> None:
    with OpenAIServer().open() as server:
        answers = ask(servers(closed_url(), server.url, retries=5, initial_backoff=0.2), 40)
        assert len(server.requests) == 40
    assert all(answer.startswith("the ") for answer in answers)


def test_requests_are_shared_between_endpoints_within_concurrency() -> None:
    slow = lambda number, body: Fault(200, b'{"choices": [{"text": "the"}]}', delay=0.02)  # noqa: E731
    with OpenAIServer(fault=slow).open() as server, OpenAIServer(fault=slow).open() as other_server:
        ask(servers(server.url, other_server.url, concurrency=3), 30)
        assert len(server.requests) + len(other_server.requests) == 30
        assert min(len(server.requests), len(other_server.requests)) >= 6
        assert server.max_concurrent <= 3
        assert other_server.max_concurrent <= 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_pauses_the_endpoint(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    fault = Fault(429, headers={"Retry-After": "90" if form == "seconds" else when})
    pauses: list[float] = []

    async def record_pause() -> None:
        async with Client(servers(server.url, retries=0)) as http:
            with pytest.raises(RequestFailed):
                await http.post("/completions", {}, text)
            (endpoint,) = http._endpoints
            pauses.append(endpoint.paused_until - client.time.monotonic())

    with OpenAIServer(fault=lambda *_: fault).open() as server:
        asyncio.run(record_pause())
        monkeypatch.setattr(client, "MAX_PAUSE", 7.0)
        asyncio.run(record_pause())
    assert 80 < pauses[0] <= 90
    assert 0 < pauses[1] <= 7


def test_backoff_doubles_up_to_a_minute_with_jitter() -> None:
    async def backoffs() -> list[list[float]]:
        async with Client(servers("http://127.0.0.1:9/v1", initial_backoff=1.0)) as http:
            return [[http._backoff(failures) for _ in range(50)] for failures in (0, 1, 3, 40)]

    for seconds, longest in zip(asyncio.run(backoffs()), (1, 2, 8, 60), strict=True):
        assert longest / 2 <= min(seconds) < max(seconds) <= longest


# --- errors that affect every request


@pytest.mark.parametrize("status", [401, 403])
def test_refused_api_key_raises_at_once_and_is_not_in_the_error(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    fault = Fault(status, f'{{"error": {{"message": "Incorrect API key: {KEY}"}}}}'.encode())
    with OpenAIServer(fault=lambda *_: fault).open() as server:
        with pytest.raises(
            UserError, match=r"refuses the key \(HTTP \d+: Incorrect API key: \*\*\*\).*OWN_KEY"
        ) as caught:
            ask(servers(server.url, api_key_env="OWN_KEY"))
        assert len(server.requests) == 1
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("fault", [Fault(404), Fault(307, headers={"Location": "http://127.0.0.1:9/"})])
def test_wrong_address_raises_at_once(fault: Fault) -> None:
    with OpenAIServer(fault=lambda *_: fault).open() as server:
        with pytest.raises(UserError, match=r"/v1/completions .*\(HTTP \d+"):
            ask(servers(server.url))
        assert len(server.requests) == 1


# --- keys, models and settings


def test_api_key_is_sent_only_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", f" {KEY}\n")
    with OpenAIServer().open() as server:
        settings = servers(server.url, api_key_env="OWN_KEY")
        ask(settings)
        ask(servers(server.url))
    assert [request.authorization for request in server.requests] == [f"Bearer {KEY}", None]
    assert KEY not in f"{settings} {server.requests[0].body} {server.requests[0].path}"


@pytest.mark.parametrize("value", [None, " "])
def test_unset_variable_of_the_api_key_raises(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWN_KEY", raising=False)
    if value:
        monkeypatch.setenv("OWN_KEY", value)
    with pytest.raises(UserError, match=r"api_key_env=OWN_KEY .*export OWN_KEY"):
        ask(servers("http://127.0.0.1:9/v1", api_key_env="OWN_KEY"))


def models_of(*urls: str) -> list[list[Answer] | str]:
    async def get_models() -> list[list[Answer] | str]:
        async with Client(servers(*urls)) as http:
            return list((await http.models()).values())

    return asyncio.run(get_models())


def test_models_returns_the_models_or_a_reason_per_endpoint() -> None:
    with OpenAIServer(models=["a", "b"]).open() as server, OpenAIServer(models=None).open() as without_models:
        names, unknown, dead = models_of(server.url, without_models.url, closed_url())
    assert [model["id"] for model in names] == ["a", "b"]  # type: ignore[index]
    assert unknown == "HTTP 404: out of order"
    assert "Cannot connect" in str(dead)
    with OpenAIServer(key=KEY).open() as locked, pytest.raises(UserError, match="refuses the key"):
        models_of(locked.url)


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"base_urls": []}, r"^base_urls="),
        ({"base_urls": ["http://a/v1", "http://a/v1"]}, r"^base_urls="),
        ({"base_urls": ["localhost:8000"]}, "is not an endpoint"),
        ({"base_urls": ["ftp://a/v1"]}, "is not an endpoint"),
        ({"base_urls": ["https://me:secret@a/v1"]}, "user or password"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": 0}, "timeout=0: must be greater than 0"),
        ({"retries": -1}, "retries"),
    ],
    ids=str,
)
def test_servers_with_invalid_values_raise(wrong: dict[str, Any], pattern: str) -> None:
    urls = wrong.pop("base_urls", ["http://a/v1"])
    with pytest.raises(UserError, match=pattern) as caught:
        servers(*urls, **wrong)
    assert "secret" not in str(caught.value)


# --- servers that stop answering


@pytest.mark.parametrize("fault", [Fault(500), Fault(200, HTML), Fault(429, headers={"Retry-After": "0"})], ids=str)
def test_server_that_never_answers_raises(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    monkeypatch.setattr(client, "MODELS_TIMEOUT", 0.0)
    with OpenAIServer(fault=lambda *_: fault).open() as server:
        with pytest.raises(UserError, match=r"no answer from http\S+ for \d+ s"):
            asyncio.run(post_many(servers(server.url, retries=5), 100))
        assert len(server.requests) < 20
    assert sum("retrying" in record.getMessage() for record in caplog.records) == 1


async def post_many(settings: Servers, count: int) -> None:
    async with Client(settings) as http:
        try:
            for _ in range(count):
                await http.post("/completions", {}, text)
        except RequestFailed:
            raise AssertionError("the client did not give up") from None


def test_server_that_answers_with_400_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    with OpenAIServer(fault=lambda *_: Fault(400)).open() as server:
        assert all(answer.startswith("failed: HTTP 400") for answer in ask(servers(server.url), 30))


def test_escape_codes_in_a_servers_message_are_removed() -> None:
    fault = Fault(400, b'{"message": "\\u001b[31mred\\u0007 \\u009b2J\\u202e"}')
    with OpenAIServer(fault=lambda *_: fault).open() as server:
        assert ask(servers(server.url)) == ["failed: HTTP 400: [31mred 2J"]


@pytest.mark.parametrize("port", ["0", "65536", "99999999", "-1", "http"])
def test_invalid_port_raises(port: str) -> None:
    with pytest.raises(UserError, match="is not an endpoint"):
        servers(f"http://localhost:{port}/v1")
