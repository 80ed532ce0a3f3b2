"""What local stand-ins of servers share: requests of any kind are read whole, and answered with JSON."""

from __future__ import annotations

import contextlib
import http.server
import json
from typing import Any


class JsonHandler(http.server.BaseHTTPRequestHandler):
    """A subclass says what to answer, in `respond`, by `send`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def respond(self, body: bytes) -> None:
        """Answer the request, whose body this is."""
        raise NotImplementedError

    def send(self, status: int, content: Any, **headers: str) -> None:
        """The answer; a header's name has underscores for hyphens."""
        answer = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        """Every method."""
        self.respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_GET = do_PUT = do_POST

    def handle(self) -> None:
        """The client may go at any time."""
        with contextlib.suppress(ConnectionError):
            super().handle()
