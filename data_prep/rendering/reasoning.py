"""The model's reasoning: in a field of its own, or in the answer between <think> and </think>."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from data_prep.conversation import BadRow, Message
from data_prep.rendering.rewrites import REASONING, Removal

OPEN, CLOSE = "<think>", "</think>"
PARTS = "parts"  # a place of reasoning: with the answer in a list of typed contents
TAG_END = "think>"  # of either tag
NO_REASONING = (
    "the generation prompt ends in {!r}, so the model begins with its reasoning, and an answer of this row has none: "
    "give it one, leave such rows out, or choose another chat_template"
)
_QUOTES = tuple("`'\"“‘「")
_BEFORE_ANSWER = re.compile(r"\s*[\r\n]|[^\S\r\n]*")  # what separates an answer from its reasoning


def inline(reasoning: str, content: str) -> str:
    """An answer with its reasoning in it, in the form that templates which print reasoning use as well."""
    return f"{OPEN}\n{reasoning.strip()}\n{CLOSE}\n\n{content}"


def with_reasoning(message: dict[str, Any], reasoning: str, place: str) -> dict[str, Any]:
    """A message in the form that templates take, with its reasoning at a place: the name of a field, or PARTS."""
    if place != PARTS:
        return {**message, place: reasoning}
    parts = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": message["content"]}]
    return {**message, "content": parts}


def split_inline(content: str) -> tuple[str | None, str]:
    """The reasoning that an answer begins with, None if there is none, and what follows it.

    A generation prompt may hold the opening tag; without it, the reasoning ends where the closing tag ends a line.
    """
    reasoning, close, answer = content.partition(CLOSE)
    if not close:
        return None, content
    if reasoning.lstrip().startswith(OPEN):
        return reasoning.lstrip().removeprefix(OPEN), answer
    ends_a_line = answer.lstrip(" \t").startswith(("\n", "\r")) or not answer.strip()
    return (reasoning, answer) if ends_a_line and OPEN not in reasoning else (None, content)


def _split(message: Message) -> tuple[str | None, str]:
    """`split_inline`; where a field holds the reasoning, a closing tag alone is a part of the answer."""
    if message.reasoning is not None and not message.content.lstrip().startswith(OPEN):
        return None, message.content
    return split_inline(message.content)


def is_blank(reasoning: str | None) -> bool:
    """Whether there is a reasoning that says nothing."""
    return reasoning is not None and not reasoning.strip()


def is_in(message: Message) -> bool:
    """Whether a message holds reasoning, in the field for it or in its answer."""
    if message.role != "assistant":
        return False
    inline, _ = _split(message)
    return any(text and text.strip() for text in (message.reasoning, inline))


def without(message: Message) -> Message:
    """An answer without its reasoning; as it is where it is unclear where that ends."""
    inline, answer = _split(message)
    content = message.content if inline is None else without_separator(answer)
    return replace(message, content=content, reasoning=None)


def check_closed(message: Message) -> None:
    """Refuse an answer whose generation was cut off within its reasoning, or right after it.

    Raises:
        BadRow: "unclosed_reasoning", or "empty_output".
    """
    content = message.content
    if CLOSE not in content and content.lstrip().startswith(OPEN):
        raise BadRow("unclosed_reasoning", f"<think> is never closed, the answer was cut off: {content[-60:]!r}")
    reasoning, answer = _split(message)
    if reasoning is not None and not answer.strip() and not message.tool_calls:
        raise BadRow("empty_output", "no answer follows the reasoning")


def lift(message: Message) -> Message:
    """The message with the reasoning that is written into its answer moved to the field for it.

    Raises:
        BadRow: "unclear_reasoning": the field holds another one.
    """
    reasoning, answer = _split(message)
    if reasoning is None:
        return message
    if message.reasoning is not None and message.reasoning.strip() != reasoning.strip():
        raise BadRow("unclear_reasoning", "one reasoning stands in the answer, another one next to it")
    return replace(message, content=without_separator(answer), reasoning=reasoning)


def without_separator(answer: str) -> str:
    """The answer without the blanks and line breaks that follow </think>; its first line keeps its indentation."""
    separator = _BEFORE_ANSWER.match(answer)
    return answer[separator.end() :] if separator else answer


def strip(message: Message) -> tuple[Message, list[Removal]]:
    """An answer without reasoning, and the reasoning.

    Raises:
        BadRow: nothing is left of the answer, or it is unclear where its reasoning ends.
    """
    check_closed(message)
    reasoning, answer = _split(message)
    if reasoning is None and _is_unclear(message.content):
        raise BadRow("unclear_reasoning", f"it is unclear where the reasoning ends: {message.content[:60]!r}")
    content = message.content if reasoning is None else without_separator(answer)
    removed = [Removal(REASONING, text) for text in (message.reasoning, reasoning) if text]
    return replace(message, content=content, reasoning=None), removed


def _is_unclear(content: str) -> bool:
    """Whether reasoning ends without having begun, in the middle of a line and unquoted."""
    before, close, _ = content.partition(CLOSE)
    return bool(close) and OPEN not in before and not before.endswith(_QUOTES)
