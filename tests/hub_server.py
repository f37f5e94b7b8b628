"""Serve a loopback stand-in for those parts of the Hugging Face Hub's HTTP API that create and fill a repository.

It answers the requests that huggingface_hub 2.4 sends without Xet: create, validate-yaml, preupload, Git LFS, commit.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KNOWN_TOKEN = "hf_known"


@dataclass
class Repository:
    private: bool
    files: dict[str, Any] = field(default_factory=dict)  # by path: text of a small file, or LFS id of a large file
    commits: list[str] = field(default_factory=list)


class HubServer:
    """The stand-in server. Use it as `with serving_hub() as server`; `server.client` has the client's settings."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def client(self) -> dict[str, Any]:
        """Return values for `huggingface_hub.constants` that make the client talk to this server only."""
        return {"ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON of the answer to a request."""
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            settings = json.loads(body)
            name = (
                f"{settings['organization']}/{settings['name']}" if settings.get("organization") else settings["name"]
            )
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repositories[name] = Repository(
                private=bool(settings.get("private", settings.get("visibility") == "private"))
            )
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/blob/{item['oid']}", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/blob/"):
            self.blobs[path.removeprefix("/blob/")] = body
            return 200, {}
        name = path.removeprefix("/api/models/").partition("/preupload/")[0].partition("/commit/")[0]
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]}
        if "/commit/" in path and name in self.repositories:
            self._commit(self.repositories[name], [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
        return 404, {"error": f"{method} {path}: no such thing"}

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"]).decode()
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = value["oid"]


class _Handler(BaseHTTPRequestHandler):
    def _reply(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {self.path}")
        signed = self.headers.get("Authorization") == f"Bearer {KNOWN_TOKEN}"
        if signed or self.path.startswith(("/blob/", "/api/validate-yaml")):
            status, content = hub.answer(self.command, self.path, body)
        else:
            status, content = 401, {"error": "Invalid username or password."}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _reply

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def serving_hub() -> Iterator[HubServer]:
    """Serve on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = HubServer(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
