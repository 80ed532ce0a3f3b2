"""The model's thoughts: in a field of their own, or written into the answer between <think> and </think>."""

from __future__ import annotations

from dataclasses import replace

from data_prep.conversation import BadRow, Conversation, Message

_OPEN, CLOSE = "<think>", "</think>"
_QUOTES = tuple("`'\"“‘「")


def split_inline(content: str) -> tuple[str | None, str]:
    """The thoughts that an answer begins with, None if there are none, and what follows them.

    A generation prompt may hold the opening tag; without it, thoughts end where the closing tag ends a line.
    """
    thoughts, close, answer = content.partition(CLOSE)
    if not close:
        return None, content
    if thoughts.lstrip().startswith(_OPEN):
        return thoughts.lstrip().removeprefix(_OPEN), answer
    ends_a_line = answer.lstrip(" \t").startswith(("\n", "\r")) or not answer.strip()
    return (thoughts, answer) if ends_a_line and _OPEN not in thoughts else (None, content)


def lift(conversation: Conversation) -> Conversation:
    """The conversation with thoughts that are written into an answer in the field for them."""
    return replace(conversation, messages=tuple(_lift(m) for m in conversation.messages))


def _lift(message: Message) -> Message:
    if message.role != "assistant" or message.reasoning is not None:
        return message
    thoughts, answer = split_inline(message.content)
    return message if thoughts is None else replace(message, content=answer.lstrip(), reasoning=thoughts)


def strip(conversation: Conversation) -> Conversation:
    """The conversation without thoughts.

    Raises:
        BadRow: nothing is left of an answer, or where its thoughts end cannot be told.
    """
    return replace(conversation, messages=tuple(map(_strip, conversation.messages)))


def _strip(message: Message) -> Message:
    if message.role != "assistant":
        return message
    thoughts, answer = split_inline(message.content)
    if thoughts is None and _is_unclear(message.content):
        raise BadRow("unclear_reasoning", f"where the thoughts end cannot be told: {message.content[:60]!r}")
    content = message.content if thoughts is None else answer.lstrip()
    if not content.strip() and not message.tool_calls:
        raise BadRow("empty_output", "nothing is left of an answer without its thoughts")
    return replace(message, content=content, reasoning=None)


def _is_unclear(content: str) -> bool:
    """Whether thoughts begin and do not end, or end without having begun, in the middle of a line and unquoted."""
    before, close, _ = content.partition(CLOSE)
    return content.lstrip().startswith(_OPEN) or (bool(close) and _OPEN not in before and not before.endswith(_QUOTES))
