"""A local stand-in for the hub's API: it takes repositories and commits, and keeps what it was asked."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.json_handler import JsonHandler

TOKEN = "hf_" + "stand-in-of-a-token-0123456789"


class HubServer:
    """Serves on loopback, in a thread.

    Attributes:
        role: of the token: write or read.
        broken: a part of a path; requests to it are answered with 500.
        repositories: id -> whether it is private.
        files: what was committed, by path.
        requests: (method, path, the token sent) of each request.
    """

    def __init__(self) -> None:
        self.role, self.broken = "write", ""
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self._objects: dict[str, bytes] = {}  # of LFS, by their sha256
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[HubServer]:
        """Answer until the end of the block."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and content for a request."""
        self.requests.append((method, path, token))
        if self.broken and self.broken in path:
            return 500, {"error": f"it is broken; you sent {token}"}
        if method == "PUT":
            self._objects[path.rpartition("/")[2]] = body
            return 200, {}
        if token != TOKEN:
            return 401, {"error": f"Invalid token {token}"}
        for pattern, answer in self._routes().items():
            if found := re.fullmatch(pattern, path):
                return answer(body, *found.groups())
        return 404, {"error": f"no route {path}"}

    def _routes(self) -> dict[str, Any]:
        return {
            "/api/whoami-v2": self._whoami,
            "/api/models/([^/]+/[^/]+)": self._info,
            "/api/repos/create": self._create,
            "/api/validate-yaml": lambda body: (200, {"errors": [], "warnings": []}),
            "/api/models/([^/]+/[^/]+)/preupload/main": self._preupload,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            "/api/models/([^/]+/[^/]+)/commit/main": self._commit,
        }

    def _whoami(self, body: bytes) -> tuple[int, Any]:
        return 200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": self.role}}}

    def _info(self, body: bytes, repository: str) -> tuple[int, Any]:
        if repository not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"id": repository, "modelId": repository, "private": self.repositories[repository]}

    def _create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        is_there = name in self.repositories
        self.repositories.setdefault(name, asked.get("visibility") == "private")
        return (409 if is_there else 200), {"url": f"{self.url}/{name}", "name": name, "id": "1"}

    def _preupload(self, body: bytes, repository: str) -> tuple[int, Any]:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        return 200, {"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]}

    def _batch(self, body: bytes, repository: str) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, body: bytes, repository: str) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[value["path"]] = self._objects[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repository}/commit/abc", "commitOid": "abc", "success": True}


def _handler(server: HubServer) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def respond(self, body: bytes) -> None:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, content = server.answer(self.command, self.path.partition("?")[0], token, body)
            is_missing = "not found" in str(content).lower()
            self.send(status, content, **({"X_Error_Code": "RepoNotFound"} if is_missing else {}))

    return Handler
