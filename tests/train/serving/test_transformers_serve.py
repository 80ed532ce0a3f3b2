"""`transformers serve` answers from an export as OpenAI's chat completions do, where its extra is installed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.support.taught_model import LESSONS

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="optional: needs transformers[serving]",
)
COMMAND = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def address(taught, tmp_path_factory) -> Iterator[str]:
    """Of a server for the taught model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", COMMAND, "serve", str(taught), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path_factory.mktemp("serve") / "log").open("w") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def wait_for(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.5)
    pytest.fail(f"transformers serve does not listen; exit code {server.poll()}")


def ask(address: str, model: str, question: str, **more) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 60, **more}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode("utf-8")


def test_it_gives_the_answers_that_were_trained(address, taught):
    for question, expected in LESSONS.items():
        (choice,) = json.loads(ask(address, str(taught), question))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")


def test_they_stream(address, taught):
    question, expected = next(iter(LESSONS.items()))
    lines = [line.removeprefix("data: ") for line in ask(address, str(taught), question, stream=True).splitlines()]
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    pieces = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(filter(None, pieces)) == expected and len(pieces) > 3
