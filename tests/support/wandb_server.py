"""A local stand-in for the W&B server: it takes runs, and can be told to hang, to fail or to be gone."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.json_handler import JsonHandler


class WandbServer:
    """Serves on loopback, in a thread.

    `mode` may change at any time: "ok"; "hang": takes requests and never answers; "500": answers that it is broken.
    With `broken`, such as "CreateArtifact", only requests whose body has this word meet it.
    """

    def __init__(self, mode: str = "ok"):
        self.mode, self.broken = mode, ""
        self.runs: dict[str, dict[str, Any]] = {}  # by id: what the client said the run is
        self.history: dict[str, dict[int, dict[str, Any]]] = {}  # by run id and line
        self.operations: list[str] = []  # names of the GraphQL operations asked
        self._closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[WandbServer]:
        """Answer until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """What the server says to a request."""
        if self.fault(body) == "hang":
            self._closing.wait()
        if "graphql" in path:
            return {"data": self._graphql(body.get("query", ""), body.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._take_files(path.split("/")[-2], body.get("files") or {})
            return {"exitcode": None, "limits": {}}
        return {}

    def fault(self, body: Any) -> str:
        """What a request meets: "ok" if nothing."""
        return self.mode if self.broken in json.dumps(body) else "ok"

    def _take_files(self, run: str, files: dict[str, Any]) -> None:
        for name, content in files.items():
            if "history" in name:
                lines = {content["offset"] + i: json.loads(line) for i, line in enumerate(content["content"])}
                self.history.setdefault(run, {}).update(lines)

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else "?"
        self.operations.append(operation)
        project = {"id": "UA==", "name": "p", "entity": {"id": "RQ==", "name": "me"}}
        if operation == "UpsertBucket":
            known = self.runs.setdefault(variables["name"], {})
            known.update({name: value for name, value in variables.items() if value is not None})
            return {"upsertBucket": {"bucket": self._bucket(variables["name"], project), "inserted": True}}
        if operation == "RunResumeStatus":
            name = variables["name"]
            bucket = self._bucket(name, project) if name in self.runs else None
            return {"model": {**project, "bucket": bucket}}
        if operation == "Viewer":
            viewer = {"id": "Vg==", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "ArtifactType":
            return {"project": None}
        if operation == "CreateArtifact":  # as one that is there already: nothing is uploaded
            artifact = {"id": "QQ==", "state": "COMMITTED", "artifactSequence": {"id": "Uw==", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "RunStoppedStatus":
            return {"project": {"run": {"stopped": False}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "Ug==", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, name: str, project: dict[str, Any]) -> dict[str, Any]:
        lines = self.history.get(name, {})
        tail = json.dumps([json.dumps(lines[max(lines)])] if lines else [])
        texts = {"summaryMetrics": "{}", "config": "{}", "historyTail": tail, "eventsTail": "[]"}
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        rest = {"displayName": name, "description": None, "sweepName": None, "tags": [], "wandbConfig": '{"t": 1}'}
        return {"id": "Qg==", "name": name, "project": project, **texts, **counts, **rest}


def _handler(server: WandbServer) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def respond(self, body: bytes) -> None:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            try:
                content = json.loads(body)
            except ValueError:
                content = {}
            answer = server.answer(self.path, content)
            self.send(500 if server.fault(content) == "500" else 200, answer)

    return Handler
