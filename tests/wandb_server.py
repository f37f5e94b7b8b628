"""A loopback stand-in for the part of W&B's server that `wandb sweep`, `wandb agent` and an online run ask for.

What the real client 0.31 sends decides what is here: GraphQL by the name of its operation, a run's file stream,
uploads. A grid is walked in the order of the sweep file, its last parameter fastest. Everything received is kept.
"""

import base64
import gzip
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT = "somebody", "selfcontrast"
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


@dataclass(frozen=True)
class Request:
    """Attributes:
    operation: GraphQL's name of it, or the method.
    path: of the URL.
    body: as it was before the client compressed it.
    key: of W&B, which it was signed with.
    """

    operation: str
    path: str
    body: bytes
    key: str


@dataclass
class Run:
    """A run, as the server stores it.

    Attributes:
        name: its id in URLs.
        point: of the sweep, by parameter.
        fields: of the last `UpsertBucket`, by the client's names: groupName, jobType, tags, sweep, commit, …
        config, summary: by key.
        history: the rows, in the order in which they came.
        exit_code: None while it runs.
        files: uploaded, by name.
        used, logged: artifacts by name, in the order in which they came.
    """

    name: str
    point: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]


@dataclass
class Artifact:
    """Attributes:
    fields: as the client gave them.
    committed: whether it is whole.
    manifest: once that is uploaded.
    """

    id: str
    fields: dict[str, Any]
    committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)


class WandbServer:
    """Use as `with serving() as server`; `server.environment` is what the client needs.

    Attributes:
        asked: how many requests there were.
        broken: the numbers of those that are answered by an error 500.
        breaks_for: how many are, from when a run's first metrics have come.
        stop_when: whether early termination gives a run up, asked at every heartbeat of its agent.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.RLock()
        self.asked = 0
        self.broken = range(0)
        self.breaks_for = 0
        self.stop_when: Callable[[Run], bool] = lambda run: False
        self.requests: list[Request] = []
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.sweep: dict[str, Any] = {}
        self.program = ""
        self.waiting: list[Run] = []  # of the sweep, which no agent has begun

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_ENTITY": ENTITY, "WANDB_PROJECT": PROJECT}

    def graphql(self, operation: str, variables: Mapping[str, Any]) -> Any:
        """The answer's `data`; what is not asked for here is answered by null, which the client takes."""
        answer = getattr(self, f"on_{operation}", None)
        return answer(variables) if answer else None

    # --- who asks

    def on_Viewer(self, _: Mapping[str, Any]) -> Any:
        return {"viewer": {"id": "user", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def on_ServerFeaturesQuery(self, _: Mapping[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    # --- sweeps

    def on_UpsertSweep(self, asked: Mapping[str, Any]) -> Any:
        if asked.get("config"):
            config = yaml.safe_load(asked["config"])
            self.sweep = {"id": "sweep-id", "name": "a1b2c3d4", "state": "RUNNING", "config": asked["config"]}
            self.program = config["program"]
            points = enumerate(_grid(config["parameters"]))
            self.waiting = [Run(f"run{number}", point=point) for number, point in points]
        sweep = {"name": self.sweep["name"], "project": _project()}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, _: Mapping[str, Any]) -> Any:
        return {"project": {"sweep": {**self.sweep, "method": "grid", "runs": {"edges": []}}}}

    def on_GetSweepState(self, _: Mapping[str, Any]) -> Any:
        return {"project": {"sweep": {"state": self.sweep["state"]}}}

    def on_CreateAgent(self, _: Mapping[str, Any]) -> Any:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def on_Heartbeat(self, asked: Mapping[str, Any]) -> Any:
        running = [name for name, own in json.loads(asked["runState"]).items() if own]
        commands: list[dict[str, Any]]
        if running:
            commands = [{"type": "stop", "run_id": n} for n in running if self.stop_when(self.runs[n])]
        elif self.waiting:
            run = self.waiting.pop(0)
            self.runs.setdefault(run.name, run)
            args = {name: {"value": value} for name, value in run.point.items()}
            commands = [{"type": "run", "run_id": run.name, "program": self.program, "args": args}]
        else:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    # --- runs

    def on_UpsertBucket(self, asked: Mapping[str, Any]) -> Any:
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], Run(asked["name"]))
        run.fields |= {name: value for name, value in asked.items() if value is not None}
        if asked.get("config"):
            run.config |= {key: entry["value"] for key, entry in json.loads(asked["config"]).items()}
        bucket = {**self._bucket(run), "project": _project(), "sweepName": run.fields.get("sweep")}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_RunResumeStatus(self, asked: Mapping[str, Any]) -> Any:
        run = self.runs.get(asked["name"])
        return {"model": {**_project(), "bucket": self._bucket(run) if run and run.fields else None}}

    def _bucket(self, run: Run) -> dict[str, Any]:
        config = {key: {"value": value} for key, value in run.config.items()}
        last = [json.dumps(run.history[-1])] if run.history else []
        return {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.fields.get("displayName", run.name),
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(last),
            "eventsTail": "[]",
            "tags": run.fields.get("tags", []),
            "wandbConfig": json.dumps({"t": 1}),
        }

    def on_CreateRunFiles(self, asked: Mapping[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{asked['run']}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": f"id-{asked['run']}", "uploadHeaders": [], "files": files}}

    def stream(self, run: Run, sent: Mapping[str, Any]) -> None:
        """A piece of a run's file stream: rows of history, the whole summary, how it ended."""
        for name, file in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in file["content"] if line.strip()] if name.endswith("l") else []
            if name == "wandb-history.jsonl":
                run.history += rows
                if rows and self.breaks_for:
                    self.broken, self.breaks_for = range(self.asked, self.asked + self.breaks_for), 0
            elif name == "wandb-summary.json":
                run.summary = json.loads(file["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    # --- artifacts

    def on_CreateArtifact(self, asked: Mapping[str, Any]) -> Any:
        given = asked["input"]
        same = [a for a in self.artifacts.values() if a.fields["digest"] == given["digest"]]
        name = given["artifactCollectionName"]
        own = same[0] if same else Artifact(f"artifact{len(self.artifacts)}", {**given, "name": name})
        self.artifacts[own.id] = own
        if given["runName"]:  # else it is created to be used
            self.runs[given["runName"]].logged.append(name)
        return {"createArtifact": {"artifact": self._artifact(own)}}

    def on_ArtifactType(self, _: Mapping[str, Any]) -> Any:
        return {"project": None}  # the name is free

    def on_ArtifactByID(self, asked: Mapping[str, Any]) -> Any:
        own = self.artifacts[asked["id"]]
        found = {
            "id": own.id,
            "artifactSequence": {"__typename": "ArtifactSequence", "name": own.fields["name"], "project": _project()},
            "artifactType": {"name": own.fields["artifactTypeName"]},
            "metadata": own.fields["metadata"],
            "digest": own.fields["digest"],
            "state": "COMMITTED",
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [],
            "tags": [],
            "ttlIsInherited": True,
            "ttlDurationSeconds": -2,
            **dict.fromkeys(("versionIndex", "size", "fileCount"), 0),
            **dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt")),
        }
        return {"artifact": found}

    def _artifact(self, artifact: Artifact) -> dict[str, Any]:
        state = "COMMITTED" if artifact.committed else "PENDING"
        return {"id": artifact.id, "state": state, "artifactSequence": {"id": "sequence", "latestArtifact": None}}

    def on_CreateArtifactManifest(self, asked: Mapping[str, Any]) -> Any:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(asked["artifactID"])}}

    def on_UpdateArtifactManifest(self, asked: Mapping[str, Any]) -> Any:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(asked["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        upload = {"id": "file", "uploadUrl": f"{self.url}/manifest/{artifact}", "uploadHeaders": []}
        return {"id": artifact, "file": upload}

    def on_CreateArtifactFiles(self, asked: Mapping[str, Any]) -> Any:
        edges = [
            {
                "node": {
                    "storagePath": f"stored/{file['name']}",
                    "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            }
            for file in asked["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, asked: Mapping[str, Any]) -> Any:
        own = self.artifacts[asked["artifactID"]]
        own.committed = True
        return {"commitArtifact": {"artifact": {"id": own.id, "digest": own.fields["digest"]}}}

    def on_UseArtifact(self, asked: Mapping[str, Any]) -> Any:
        given = asked["input"]
        self.runs[given["runName"]].used.append(self.artifacts[given["artifactID"]].fields["name"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}


def _project() -> dict[str, Any]:
    return {"id": "project", "internalId": "1", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}


def _grid(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    choices = [own.get("values", [own.get("value")]) for own in parameters.values()]
    for point in itertools.product(*choices):
        yield dict(zip(parameters, point, strict=True))


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        _, _, user = self.headers.get("Authorization", "").partition(" ")
        key = base64.b64decode(user).decode().removeprefix("api:")
        wandb = self.server.wandb
        with wandb.lock:
            wandb.asked += 1
            if wandb.asked - 1 in wandb.broken:
                return self._send(500, {"errors": [{"message": "out of order"}]})
            asked = json.loads(body) if self.path == "/graphql" else {}
            found = OPERATION.search(asked.get("query", ""))
            operation = found[1] if found else method
            wandb.requests.append(Request(operation, self.path, body, key))
            if asked:
                return self._send(200, {"data": wandb.graphql(operation, asked.get("variables") or {})})
            return self._send(200, self._other(wandb, body))

    def _other(self, wandb: WandbServer, body: bytes) -> dict[str, Any]:
        """A file stream or an upload."""
        match self.path.strip("/").split("/", 2):
            case ["files", _, rest] if rest.endswith("/file_stream"):
                wandb.stream(wandb.runs[rest.split("/")[-2]], json.loads(body))
            case ["upload", run, name]:
                wandb.runs[run].files[name] = body
            case ["manifest", artifact]:
                wandb.artifacts[artifact].manifest = json.loads(body)
        return {}

    def _send(self, code: int, content: Mapping[str, Any]) -> None:
        sent = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    wandb: WandbServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has ended
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[WandbServer]:
    """A server on a free port of this machine."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.wandb = WandbServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.wandb
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
