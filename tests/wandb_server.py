"""A stand-in for the W&B server on loopback: as much of it as the SDK asks for. It gives back what it was sent.

Runs with config, summary, history and files; artifacts (only stored); saved reports. Whatever it does not know it refuses, so
that a test does not pass on an answer that was made up.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4  # the API key that the stand-in accepts
ENTITY = "team"


@dataclass
class Run:
    """What the server holds of one run. `history` has the lines of the file stream by their offset."""

    id: str
    entity: str
    project: str
    number: int  # in the order of creation
    attributes: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in json.loads(self.attributes.get("config") or "{}").items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.streams.get("wandb-history.jsonl", {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streams.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    def node(self) -> dict[str, Any]:
        """The run as GraphQL has it; a client picks the fields that it asked for."""
        history = [line for _, line in sorted(self.streams.get("wandb-history.jsonl", {}).items())]
        events = [line for _, line in sorted(self.streams.get("wandb-events.jsonl", {}).items())]
        return {
            "id": base64.b64encode(self.id.encode()).decode(),
            "name": self.id,
            "projectId": "1",
            "displayName": self.attributes.get("displayName"),
            "group": self.attributes.get("groupName"),
            "state": self.state,
            "config": self.attributes.get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": len(self.streams.get("output.log", {})),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "historyKeys": None,
            "wandbConfig": json.dumps({"t": 1}),
            "tags": self.attributes.get("tags") or [],
            "description": None,
            "notes": None,
            "jobType": None,
            "commit": None,
            "sweepName": None,
            "readOnly": False,
            "createdAt": f"2026-01-01T00:00:{self.number:02}",
            "heartbeatAt": "2026-01-01T00:00:00",
            "user": {"name": "tester", "username": "tester"},
            "project": {"id": self.project, "name": self.project, "entity": {"id": self.entity, "name": self.entity}},
            "fileCount": len(self.files),
        }


class RefusedError(Exception):
    """The answer is an error."""


class WandbServer:
    """`with WandbServer() as server:` answers at `server.url`. `runs` by id, `projects`, saved `reports`, all `requests`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.projects: set[tuple[str, str]] = set()
        self.reports: list[dict[str, Any]] = []
        self.artifacts: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []  # operations and paths, in their order
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_of_test": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    # GraphQL: a method per operation, named like it. It gets the variables and returns `data`.

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else "?"
        self.requests.append(operation)
        method = getattr(self, f"do_{operation}", None)
        if method is None:
            raise RefusedError(f"the stand-in does not know {operation}")
        return method(variables)

    def do_Viewer(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802  the names are those of the operations
        viewer = {"id": "1", "entity": ENTITY, "username": "tester", "email": "", "flags": "{}", "admin": False}
        return {"viewer": viewer | {"teams": {"edges": [{"node": {"name": ENTITY}}]}}}

    do_GetDefaultEntity = do_Viewer

    def do_ServerFeaturesQuery(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def do_OrganizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"organization": None}}

    def do_RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(v["name"])
        model = {"id": "1", "name": v["project"], "entity": {"id": "1", "name": v["entity"]}}
        return {"model": model | {"bucket": run.node() if run else None}}

    def do_UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        found = self.runs.get(v["name"]) or next((r for r in self.runs.values() if v["id"] == r.node()["id"]), None)
        run = found or Run(v["name"], v["entity"] or ENTITY, v["project"] or "uncategorized", len(self.runs))
        self.runs[run.id] = run
        self.projects.add((run.entity, run.project))
        run.attributes |= {k: value for k, value in v.items() if value is not None}
        run.state = v.get("state") or "running"
        return {"upsertBucket": {"bucket": run.node(), "inserted": found is None}}

    def do_CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs[v["run"]]
        files = [{"name": name, "uploadUrl": self._file_url(run, name)} for name in v["files"]]
        return {"createRunFiles": {"runID": run.node()["id"], "uploadHeaders": [], "files": files}}

    # Artifacts: what is uploaded is kept, by artifact and path; nothing here reads it back.

    def do_CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = f"artifact{len(self.artifacts)}"
        self.artifacts[artifact] = {}
        sequence = {"id": "sequence", "name": "sequence", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": artifact, "state": "PENDING", "artifactSequence": sequence}}}

    def do_ArtifactType(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}  # it keeps none under a name

    def do_CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for file in v["input"]["artifactFiles"]:
            url = f"{self.url}/artifacts/{file['artifactID']}/{urllib.parse.quote(file['name'])}"
            node = {"storagePath": None, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = f"{self.url}/artifacts/{artifact}/wandb_manifest.json"
        return {"artifactManifest": {"id": artifact, "file": {"id": artifact, "uploadUrl": url, "uploadHeaders": []}}}

    def do_CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createArtifactManifest": self._manifest(v["artifactID"])}

    def do_UpdateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"])}

    def do_CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "unused"}}}

    def _file_url(self, run: Run, name: str) -> str:
        return f"{self.url}/storage/{run.id}/{urllib.parse.quote(name)}"

    def _project(self, v: dict[str, Any]) -> dict[str, Any] | None:
        name = (v.get("entity") or v.get("entityName"), v.get("project") or v.get("projectName"))
        return {"id": name[1], "internalId": "1", "readOnly": False} if name in self.projects else None

    def do_Runs(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = self._project(v)
        if project is None:
            return {"project": None}
        if v.get("order") not in (None, "+created_at"):
            raise RefusedError(f"the stand-in does not know the order {v['order']}")
        runs = [r for r in self.runs.values() if (r.entity, r.project) == (v["entity"], v["project"])]
        runs = [r for r in runs if matches(r, json.loads(v.get("filters") or "{}"))]
        edges = [{"node": r.node(), "cursor": str(i + 1)} for i, r in enumerate(runs)]
        return {"project": project | {"runCount": len(runs), "runs": page(edges, v.get("cursor"), v.get("perPage") or 50)}}

    def do_Run(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project, run = self._project(v), self.runs.get(v["name"])
        return {"project": project and project | {"run": run.node() if run else None}}

    def do_RunFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project, run = self._project(v), self.runs[v["name"]]
        names = [n for n in sorted(run.files) if not v.get("fileNames") or n in v["fileNames"]]
        if pattern := v.get("pattern"):
            names = [n for n in names if re.fullmatch(re.escape(pattern).replace("%", ".*"), n)]
        edges = [{"node": self._file(run, n), "cursor": str(i + 1)} for i, n in enumerate(names)]
        files = page(edges, v.get("fileCursor"), v.get("fileLimit") or 50)
        return {"project": project and project | {"run": run.node() | {"files": files}}}

    def _file(self, run: Run, name: str) -> dict[str, Any]:
        url = self._file_url(run, name)
        node = {"id": f"{run.id}/{name}", "name": name, "url": url, "directUrl": url, "mimetype": "", "md5": ""}
        return node | {"sizeBytes": str(len(run.files[name])), "updatedAt": "2026-01-01T00:00:00"}

    # Reports

    def do_GetProjects(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        names = sorted(project for entity, project in self.projects if entity == v["entity"])
        node = {"__typename": "Project", "entityName": v["entity"], "createdAt": "2026-01-01T00:00:00", "isBenchmark": False}
        edges = [{"node": node | {"id": n, "name": n, "user": None}, "cursor": str(i + 1)} for i, n in enumerate(names)]
        found = page(edges, v.get("cursor"), v["perPage"])
        return {"models": found | {"pageInfo": found["pageInfo"] | {"__typename": "PageInfo"}}}

    def do_ProjectInternalId(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": self._project(v)}

    def do_upsertView(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        report = dict(v, id=v["id"] or f"Vmlldzo{len(self.reports)}")
        self.reports.append(report)
        project = {"id": "1", "name": v["projectName"], "entityName": v["entityName"]}
        return {"upsertView": {"view": report | {"project": project, "updatedAt": "2026-01-01T00:00:00"}, "inserted": True}}


def matches(run: Run, filters: dict[str, Any]) -> bool:
    """Whether the run passes these filters in MongoDB's language; only the parts of it that are used here."""
    known = {"group": run.attributes.get("groupName"), "name": run.id}
    for key, wanted in filters.items():
        if key not in known:
            raise RefusedError(f"the stand-in does not know the filter {key}")
        values = wanted["$in"] if isinstance(wanted, dict) else [wanted]
        if known[key] not in values:
            return False
    return True


def page(edges: list[dict[str, Any]], cursor: str | None, size: int) -> dict[str, Any]:
    """`size` edges after the cursor, which is the number of those before."""
    start = int(cursor or 0)
    chosen = edges[start : start + size]
    more = start + size < len(edges)
    return {"edges": chosen, "pageInfo": {"endCursor": chosen[-1]["cursor"] if chosen else None, "hasNextPage": more}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: WandbServer

    def do_POST(self) -> None:
        server, body = self.server_of_test, self._body()
        if not self._authorized():
            return self._answer(401, b'{"error": "not logged in"}')
        with server.lock:
            if self.path == "/graphql":
                request = json.loads(body)
                try:
                    answer = {"data": server.graphql(request["query"], request.get("variables") or {})}
                except RefusedError as error:
                    print(f"wandb_server: {error}")
                    return self._answer(400, json.dumps({"errors": [{"message": str(error)}]}).encode())
                return self._answer(200, json.dumps(answer).encode())
            if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self._stream(server.runs[found[1]], json.loads(body))
                return self._answer(200, b"{}")
        return self._answer(404, b"{}")

    def do_PUT(self) -> None:
        body = self._body()
        with self.server_of_test.lock:
            files, name = self._stored()
            files[name] = body
        self._answer(200, b"")

    def do_GET(self) -> None:
        with self.server_of_test.lock:
            files, name = self._stored()
            body = files.get(name)
        self._answer(404 if body is None else 200, body or b"")

    def _stream(self, run: Run, sent: dict[str, Any]) -> None:
        self.server_of_test.requests.append("file_stream")
        for name, chunk in (sent.get("files") or {}).items():
            lines = run.streams.setdefault(name, {})
            for i, line in enumerate(chunk["content"]):
                lines[chunk["offset"] + i] = line
        if sent.get("complete"):
            run.state = "failed" if sent.get("exitcode") else "finished"

    def _stored(self) -> tuple[dict[str, bytes], str]:
        """The files of the run or the artifact that the path names, and the name in it."""
        server = self.server_of_test
        server.requests.append(f"{self.command} {self.path}")
        _, place, owner, name = urllib.parse.unquote(self.path).split("/", 3)
        return (server.runs[owner].files if place == "storage" else server.artifacts[owner]), name

    def _authorized(self) -> bool:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token == KEY or (kind == "Basic" and base64.b64decode(token).decode() == f"api:{KEY}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""
