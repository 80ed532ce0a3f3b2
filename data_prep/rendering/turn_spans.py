"""Spans of the assistant's turns in a rendered text."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import BadRow
from data_prep.tokenization.encoded_text import Span


def between_others(messages: list[dict[str, Any]], text: str) -> list[Span]:
    """About where the assistant's turns are: from the end of the content before each to its own end, or where it calls
    tools to the start of the next one.

    Raises:
        BadRow: "left_out_by_template": another content is not there.
    """
    spans: list[Span] = []
    contents = [message["content"].strip() for message in messages]
    at = 0
    for message, content, following in zip(messages, contents, [*contents, None][1:], strict=True):
        if message["role"] == "assistant":
            end = len(text) if following is None else max(at, text.find(following, at))
            if not message.get("tool_calls") and (found := text.find(content, at, end)) >= 0:
                end = found + len(content)  # tools may stand before the next question
            spans.append((at, end))
            at = end
        elif message["role"] != "system":  # templates print it anywhere
            if (found := text.find(content, at)) < 0:
                raise BadRow("left_out_by_template", f"the chat template leaves out or changes {content[:60]!r}")
            at = found + len(content)
    return spans


def merge_adjacent(spans: list[Span]) -> list[Span]:
    """Marks that follow each other without a gap belong to one turn (some templates mark the end token by itself)."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
