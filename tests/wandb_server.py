"""Serve a loopback stand-in for the parts of W&B's server that `wandb sweep`, `wandb agent` and an online run use.

It answers the requests of the real client 0.31: GraphQL by the name of the operation, a run's file stream, and uploads.
A grid runs in the order of the sweep file, and its last parameter changes fastest. The server keeps what it receives.
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
    """A request that the server received.

    Attributes:
        operation: name of the GraphQL operation; for other requests the HTTP method.
        path: path of the URL.
        body: the decompressed body.
        key: the W&B key in its authorization.
    """

    operation: str
    path: str
    body: bytes
    key: str


@dataclass
class Run:
    """A run in the server's memory.

    Attributes:
        name: id in URLs.
        point: values of the sweep's parameters, by name.
        fields: fields of the last `UpsertBucket`, by the client's names: groupName, jobType, tags, sweep, commit, …
        config, summary: values by key.
        history: rows in order of arrival.
        exit_code: None while it runs.
        files: uploaded files by name.
        used, logged: names of artifacts in order of arrival.
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
    """An artifact in the server's memory.

    Attributes:
        fields: fields that the client sent.
        committed: whether it is complete.
        manifest: its manifest, once uploaded.
    """

    id: str
    fields: dict[str, Any]
    committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)


class WandbServer:
    """The server. Use `with serving() as server`; `server.environment` has the client's variables.

    Attributes:
        request_count: number of requests so far.
        broken: numbers, from 0, of the requests that get an error 500.
        breaks_for: number of requests that get an error 500 after the next metrics of a run have arrived.
        stop_when: decides at every heartbeat of an agent whether early termination stops a run.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.RLock()
        self.request_count = 0
        self.broken = range(0)
        self.breaks_for = 0
        self.stop_when: Callable[[Run], bool] = lambda run: False
        self.requests: list[Request] = []
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.sweep: dict[str, Any] = {}
        self.program = ""
        self.waiting: list[Run] = []  # points of the sweep that no agent has started

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_ENTITY": ENTITY, "WANDB_PROJECT": PROJECT}

    def graphql(self, operation: str, variables: Mapping[str, Any]) -> Any:
        """Return the `data` of the answer. It is null for unknown operations, which the client accepts."""
        answer = getattr(self, f"on_{operation}", None)
        return answer(variables) if answer else None

    # --- the user

    def on_Viewer(self, _: Mapping[str, Any]) -> Any:
        return {"viewer": {"id": "user", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def on_ServerFeaturesQuery(self, _: Mapping[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    # --- sweeps

    def on_UpsertSweep(self, variables: Mapping[str, Any]) -> Any:
        if variables.get("config"):
            config = yaml.safe_load(variables["config"])
            self.sweep = {"id": "sweep-id", "name": "a1b2c3d4", "state": "RUNNING", "config": variables["config"]}
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

    def on_Heartbeat(self, variables: Mapping[str, Any]) -> Any:
        running = [name for name, state in json.loads(variables["runState"]).items() if state]
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

    def on_UpsertBucket(self, variables: Mapping[str, Any]) -> Any:
        new = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], Run(variables["name"]))
        run.fields |= {name: value for name, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config |= {key: entry["value"] for key, entry in json.loads(variables["config"]).items()}
        bucket = {**self._bucket(run), "project": _project(), "sweepName": run.fields.get("sweep")}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_RunResumeStatus(self, variables: Mapping[str, Any]) -> Any:
        run = self.runs.get(variables["name"])
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

    def on_CreateRunFiles(self, variables: Mapping[str, Any]) -> Any:
        run, names = variables["run"], variables["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in names]
        return {"createRunFiles": {"runID": f"id-{run}", "uploadHeaders": [], "files": files}}

    def stream(self, run: Run, sent: Mapping[str, Any]) -> None:
        """Handle a part of a run's file stream: rows of history, the summary, and the exit code."""
        for name, file in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in file["content"] if line.strip()] if name.endswith("l") else []
            if name == "wandb-history.jsonl":
                run.history += rows
                if rows and self.breaks_for:
                    self.broken, self.breaks_for = range(self.request_count, self.request_count + self.breaks_for), 0
            elif name == "wandb-summary.json":
                run.summary = json.loads(file["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    # --- artifacts

    def on_CreateArtifact(self, variables: Mapping[str, Any]) -> Any:
        fields = variables["input"]
        same = [a for a in self.artifacts.values() if a.fields["digest"] == fields["digest"]]
        name = fields["artifactCollectionName"]
        artifact = same[0] if same else Artifact(f"artifact{len(self.artifacts)}", {**fields, "name": name})
        self.artifacts[artifact.id] = artifact
        if fields["runName"]:  # without `runName`, the run only uses the artifact
            self.runs[fields["runName"]].logged.append(name)
        return {"createArtifact": {"artifact": self._artifact(artifact)}}

    def on_ArtifactType(self, _: Mapping[str, Any]) -> Any:
        return {"project": None}  # the name is free

    def on_ArtifactByID(self, variables: Mapping[str, Any]) -> Any:
        fields = self.artifacts[variables["id"]].fields
        answer = {
            "id": variables["id"],
            "artifactSequence": {"__typename": "ArtifactSequence", "name": fields["name"], "project": _project()},
            "artifactType": {"name": fields["artifactTypeName"]},
            "metadata": fields["metadata"],
            "digest": fields["digest"],
            "state": "COMMITTED",
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [],
            "tags": [],
            "ttlIsInherited": True,
            "ttlDurationSeconds": -2,
            **dict.fromkeys(("versionIndex", "size", "fileCount"), 0),
            **dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt")),
        }
        return {"artifact": answer}

    def _artifact(self, artifact: Artifact) -> dict[str, Any]:
        state = "COMMITTED" if artifact.committed else "PENDING"
        return {"id": artifact.id, "state": state, "artifactSequence": {"id": "sequence", "latestArtifact": None}}

    def on_CreateArtifactManifest(self, variables: Mapping[str, Any]) -> Any:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(variables["artifactID"])}}

    def on_UpdateArtifactManifest(self, variables: Mapping[str, Any]) -> Any:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(variables["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        upload = {"id": "file", "uploadUrl": f"{self.url}/manifest/{artifact}", "uploadHeaders": []}
        return {"id": artifact, "file": upload}

    def on_CreateArtifactFiles(self, variables: Mapping[str, Any]) -> Any:
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
            for file in variables["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, variables: Mapping[str, Any]) -> Any:
        artifact = self.artifacts[variables["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.fields["digest"]}}}

    def on_UseArtifact(self, variables: Mapping[str, Any]) -> Any:
        fields = variables["input"]
        self.runs[fields["runName"]].used.append(self.artifacts[fields["artifactID"]].fields["name"])
        return {"useArtifact": {"artifact": {"id": fields["artifactID"]}}}


def _project() -> dict[str, Any]:
    return {"id": "project", "internalId": "1", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}


def _grid(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    choices = [parameter.get("values", [parameter.get("value")]) for parameter in parameters.values()]
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
            wandb.request_count += 1
            if wandb.request_count - 1 in wandb.broken:
                return self._send(500, {"errors": [{"message": "out of order"}]})
            query = json.loads(body) if self.path == "/graphql" else {}
            match = OPERATION.search(query.get("query", ""))
            operation = match[1] if match else method
            wandb.requests.append(Request(operation, self.path, body, key))
            if query:
                return self._send(200, {"data": wandb.graphql(operation, query.get("variables") or {})})
            return self._send(200, self._receive_file(wandb, body))

    def _receive_file(self, wandb: WandbServer, body: bytes) -> dict[str, Any]:
        """Handle a part of a file stream, or an upload."""
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
        if not isinstance(sys.exception(), ConnectionError):  # ConnectionError: the client has ended
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[WandbServer]:
    """Serve on a free port of this machine."""
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
