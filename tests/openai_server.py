"""A loopback server with OpenAI's HTTP API: answers deterministically, and fails as it is told to."""

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
    """A faulty response, sent instead of an answer."""

    status: int = 500
    body: bytes = b'{"error": {"message": "out of order"}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before anything is sent
    promised: int | None = None  # Content-Length, where it is not the body's


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    path: str
    body: Body
    authorization: str | None


def words(body: Body) -> list[Body]:
    """Return the requested number of choices: words drawn by prompt and seed, as texts without token ids."""
    about = json.dumps([body.get("prompt", body.get("messages")), body.get("seed")])
    digest = hashlib.sha256(about.encode()).hexdigest()
    texts = [f"the {digest[i % 64]} cat {i}" for i in range(body.get("n", 1))]
    if "messages" in body:
        return [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for text in texts]
    return [{"text": text, "finish_reason": "stop"} for text in texts]


@dataclass
class OpenAIServer:
    """While it is open, `url` is an endpoint.

    Attributes:
        reply: a request's body to the choices of its answer.
        fault: (number of the request from 0, its body) to what is sent in place of an answer, if anything is.
        models: the names offered; None where there is no such list.
        root: what `/models` says that they are.
        key: what requests must carry, if anything.
        asked: the requests for answers, in the order of their arrival.
        most: requests that were under way at once.
    """

    reply: Callable[[Body], list[Body]] = words
    fault: Callable[[int, Body], Fault | None] = lambda number, body: None
    models: Sequence[str] | None = ("selfcontrast",)
    root: str = ""
    key: str | None = None
    asked: list[Asked] = field(default_factory=list)
    most: int = 0
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
        own, lock, under_way = self, threading.Lock(), [0]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if own.models is None:
                    return self._send(Fault(404))
                if own.key and self.headers["Authorization"] != f"Bearer {own.key}":
                    return self._send(Fault(401, b'{"error": {"message": "who are you?"}}'))
                return self._json({"data": [{"id": name, "root": own.root or name} for name in own.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(own.asked)
                    own.asked.append(Asked(self.path, body, self.headers["Authorization"]))
                    under_way[0] += 1
                    own.most = max(own.most, under_way[0])
                try:
                    fault = own.fault(number, body)
                    self._send(fault) if fault else self._json({"choices": own.reply(body)})
                finally:
                    with lock:
                        under_way[0] -= 1

            def _json(self, answer: Any) -> None:
                self._send(Fault(200, json.dumps(answer).encode()))

            def _send(self, what: Fault) -> None:
                time.sleep(what.delay)
                try:
                    self.send_response(what.status)
                    for name, value in what.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(what.promised or len(what.body)))
                    self.end_headers()
                    self.wfile.write(what.body)
                    self.close_connection = what.promised is not None
                except OSError:  # the client has not waited
                    self.close_connection = True

            def log_message(self, *args: Any) -> None: ...

        return Handler
