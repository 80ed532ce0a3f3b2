"""What a chat template leaves out: many print no text beside a tool call, no tool's result, or no thoughts, and say
nothing. Such a row would train another answer than it holds, so it is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data_prep.conversation import BadRow
from data_prep.encoded_text import Span
from data_prep.reasoning import split_inline


def check_complete(messages: Sequence[dict[str, Any]], tools: Sequence[Any], text: str, spans: list[Span]) -> None:
    """Refuse a rendering in which a part of the row is not where it belongs.

    Args:
        messages: in the form that the template took.
        spans: characters of the assistant's turns; nothing is checked where there are more or fewer than turns.

    Raises:
        BadRow: "left_out_by_template". Thoughts before the last question may be left out: models are not shown them.
    """
    if len(spans) != sum(m["role"] == "assistant" for m in messages):
        return
    for tool in tools:
        _require(str((tool.get("function") or {}).get("name") or ""), text, "a tool")
    last_question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    done = number = 0  # where the last answer ended, and how many there were
    for i, message in enumerate(messages):
        name = f"message {i} ({message['role']})"
        if message["role"] == "assistant":
            start, end = spans[number]
            _check_answer(message, text[start:end], text[done:end] if i > last_question else None, name)
            done, number = end, number + 1
        else:
            until = spans[number][0] if number < len(spans) else len(text)
            _require(message["content"], text if message["role"] == "system" else text[done:until], name)


def _check_answer(message: dict[str, Any], answer: str, with_thoughts: str | None, name: str) -> None:
    thoughts, content = split_inline(message["content"])
    _require(content, answer, name)
    for call in message.get("tool_calls", ()):
        _require(call["function"]["name"], answer, f"a call in {name}")
    if with_thoughts is not None:
        for said in (thoughts, message.get("reasoning_content")):
            _require(said or "", with_thoughts, f"the reasoning of {name}")


def _require(said: str, text: str, name: str) -> None:
    said = said.strip()
    if said in text or any(json.dumps(said, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True)):
        return
    raise BadRow(
        "left_out_by_template",
        f"the chat template leaves out or changes {name}: {said[:60]!r}. Choose a template that prints it (a built-in "
        "one, say), or leave it out of the row",
    )
