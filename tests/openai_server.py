"""Serve OpenAI's HTTP API on the loopback interface, with deterministic answers and faults on request."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A response that is sent instead of an answer."""

    status: int = 500
    body: bytes = b'{"error": {"message": "out of order"}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before anything is sent
    promised: int | None = None  # Content-Length, if it is not the length of `body`


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it arrived."""

    path: str
    body: Body
    authorization: str | None


def numbered_choices(body: Body) -> list[Body]:
    """Return `n` choices: texts without token ids, determined by the prompt and the seed."""
    content = json.dumps([body.get("prompt", body.get("messages")), body.get("seed")])
    digest = hashlib.sha256(content.encode()).hexdigest()
    texts = [f"the {digest[i % 64]} cat {i}" for i in range(body.get("n", 1))]
    if "messages" in body:
        return [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for text in texts]
    return [{"text": text, "finish_reason": "stop"} for text in texts]


@dataclass
class OpenAIServer:
    """A server whose endpoint is `url` while it is open.

    Attributes:
        reply: maps a request's body to the choices of its answer.
        fault: maps the request's number, from 0, and its body to a fault to send instead of an answer, or None.
        models: names that `/models` lists; None if the server has no `/models`.
        root: `root` of each model in `/models`; "" stands for the model's name.
        key: API key that requests to `/models` must have; None if any is accepted.
        requests: the POST requests, in order of arrival.
        max_concurrent: largest number of concurrent requests.
    """

    reply: Callable[[Body], list[Body]] = numbered_choices
    fault: Callable[[int, Body], Fault | None] = lambda number, body: None
    models: Sequence[str] | None = ("selfcontrast",)
    root: str = ""
    key: str | None = None
    requests: list[ReceivedRequest] = field(default_factory=list)
    max_concurrent: int = 0
    url: str = ""

    @contextmanager
    def open(self) -> Iterator["OpenAIServer"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer, lock, in_flight = self, threading.Lock(), [0]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if outer.models is None:
                    return self._send(Fault(404))
                if outer.key and self.headers["Authorization"] != f"Bearer {outer.key}":
                    return self._send(Fault(401, b'{"error": {"message": "who are you?"}}'))
                return self._json({"data": [{"id": name, "root": outer.root or name} for name in outer.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(ReceivedRequest(self.path, body, self.headers["Authorization"]))
                    in_flight[0] += 1
                    outer.max_concurrent = max(outer.max_concurrent, in_flight[0])
                try:
                    fault = outer.fault(number, body)
                    self._send(fault) if fault else self._json({"choices": outer.reply(body)})
                finally:
                    with lock:
                        in_flight[0] -= 1

            def _json(self, answer: Any) -> None:
                self._send(Fault(200, json.dumps(answer).encode()))

            def _send(self, response: Fault) -> None:
                time.sleep(response.delay)
                try:
                    self.send_response(response.status)
                    for name, value in response.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(response.promised or len(response.body)))
                    self.end_headers()
                    self.wfile.write(response.body)
                    self.close_connection = response.promised is not None
                except OSError:  # the client has closed the connection
                    self.close_connection = True

            def log_message(self, *args: Any) -> None: ...

        return Handler
