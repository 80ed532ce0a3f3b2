"""Ids of tool calls, for templates that refuse calls without: Mistral's want nine letters and digits.

Data sets rarely have ids of the form that a template wants, so they are made, the same for a row each time.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from typing import Any

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 9


def with_call_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, in the form that templates take, with an id for each call, and in results that of their call:
    results stand in the order of the calls."""
    found, open_ids = [], deque[str]()
    for position, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            calls = [{**call, "id": _id(position, number, call)} for number, call in enumerate(calls)]
            open_ids = deque(call["id"] for call in calls)
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and open_ids:
            message = {**message, "tool_call_id": open_ids.popleft()}
        found.append(message)
    return found


def _id(position: int, number: int, call: dict[str, Any]) -> str:
    """Looks drawn at random, as a model's own does."""
    said = json.dumps([position, number, call["function"]], sort_keys=True, ensure_ascii=False)
    left = int.from_bytes(hashlib.sha256(said.encode()).digest())
    digits = []
    for _ in range(_LENGTH):
        left, digit = divmod(left, len(_LETTERS))
        digits.append(_LETTERS[digit])
    return "".join(digits)
