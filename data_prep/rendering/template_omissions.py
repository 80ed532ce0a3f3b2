"""Rows that a chat template does not render completely: found and dropped.

Many templates print no text next to a tool call, no second call, no tool result or no reasoning, without an error.
Such a row would train another answer than the one it holds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.printed_values import (
    Cursor,
    ToolTexts,
    first_missing_call,
    printed_as_python,
)
from data_prep.rendering.reasoning import split_inline
from data_prep.rendering.rewrites import DETAILS, LEFT_OUT, Removal
from data_prep.tokenization.encoded_text import Span

_SWITCHES = ("/no_think", "/think")


class Missing(NamedTuple):
    """A part of a row that is not where it belongs."""

    what: str
    text: str

    def as_bad_row(self) -> BadRow:
        """Why the row is dropped."""
        return BadRow(
            "left_out_by_template",
            f"the chat template leaves out or changes {self.what}{f': {self.text[:60]!r}' if self.text else ''}. "
            "Choose a template that prints it (a built-in one, say), or leave it out of the row",
        )


def check_complete(conversation: Conversation, text: str, spans: list[Span]) -> list[Removal]:
    """Refuse a rendering in which a part of the row is not where it belongs.

    Args:
        spans: characters of the assistant's turns; nothing is checked where there are more or fewer than turns.

    Returns:
        What the template leaves out and may: reasoning before the last question, which models are not shown, and
        details of tools.

    Raises:
        BadRow: "left_out_by_template", or "printed_as_python".
    """
    if len(spans) != _num_answers(conversation):
        return []
    tools = ToolTexts(conversation.tools, _without(spans, text))
    if tools.missing:
        raise Missing("a tool", tools.missing[0]).as_bad_row()
    if missing := _first_missing_turn(conversation, text, spans):
        raise missing.as_bad_row()
    _refuse_python(conversation, "\n".join(text[start:end] for start, end in spans))
    details = [Removal(DETAILS, one) for one in tools.left_out]
    return [*_left_out_reasoning(conversation.messages, text, spans), *details]


def _refuse_python(conversation: Conversation, answers: str) -> None:
    calls = [call for m in conversation.messages for call in m.tool_calls]
    said = "\n".join(text for m in conversation.messages for text in (m.content, m.reasoning or ""))
    found = printed_as_python(calls, answers, said) if calls else None
    if found is not None:
        raise BadRow(
            "printed_as_python",
            f"the chat template prints arguments of a call as Python, not as JSON: {str(found)[:60]!r}. Let it print "
            "them with the filter `tojson`",
        )


def first_missing(conversation: Conversation, text: str, spans: list[Span]) -> Missing | None:
    """The first part of a row that its rendering lacks, if any."""
    if len(spans) != _num_answers(conversation):
        return None
    missing = ToolTexts(conversation.tools, _without(spans, text)).missing
    return Missing("a tool", missing[0]) if missing else _first_missing_turn(conversation, text, spans)


def _num_answers(conversation: Conversation) -> int:
    return sum(m.role == "assistant" for m in conversation.messages)


def _first_missing_turn(conversation: Conversation, text: str, spans: list[Span]) -> Missing | None:
    for turn in _turns(conversation, text, spans):
        lacks = _missing_in_answer(turn) if turn.message.role == "assistant" else _missing_before_answer(turn)
        if lacks:
            return Missing(f"{lacks.what}message {turn.number} ({turn.message.role})", lacks.text)
    return None


class _Turn(NamedTuple):
    """A message, and where it is printed."""

    number: int
    message: Message
    answer: str  # of an assistant: the marked text
    before: Cursor  # what stands before the next answer
    reasoning_place: str | None  # None where it may be left out
    until: int  # where the next answer begins


def _turns(conversation: Conversation, text: str, spans: list[Span]) -> Iterator[_Turn]:
    messages = conversation.messages
    last_question = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
    if conversation.is_prompted:
        last_question = len(messages) - 2  # what stands before is printed as a server prints it
    before, done, number = Cursor(text), 0, 0  # where the last answer ended, and how many there were
    for i, message in enumerate(messages):
        start, end = spans[number] if number < len(spans) else (len(text), len(text))
        if message.role != "assistant":
            yield _Turn(i, message, "", before, None, start)
            continue
        yield _Turn(i, message, text[start:end], before, text[done:end] if i > last_question else None, start)
        before, done, number = Cursor(text, end), end, number + 1


def _missing_before_answer(turn: _Turn) -> Missing | None:
    """A system prompt may stand anywhere, other contents between the answers around them, in their order."""
    wanted = turn.message.content.strip()
    return None if _is_before_answer(turn, wanted) or _is_without_switch(turn, wanted) else Missing("", wanted)


def _is_before_answer(turn: _Turn, wanted: str) -> bool:
    before = Cursor(turn.before.text) if turn.message.role == "system" else turn.before
    return before.passes(wanted) and (turn.message.role == "system" or before.at <= turn.until)


def _is_without_switch(turn: _Turn, wanted: str) -> bool:
    """Some templates do what `/no_think` in a content says, and do not print it (Nemotron Nano 2, SmolLM3)."""
    rest = functools.reduce(lambda text, switch: text.replace(switch, ""), _SWITCHES, wanted).strip()
    return rest != wanted and _is_before_answer(turn, rest)


def _missing_in_answer(turn: _Turn) -> Missing | None:
    inline, content = split_inline(turn.message.content)
    cursor = Cursor(turn.answer)
    if not cursor.passes(content.strip()):
        return Missing("", content.strip())
    calls = turn.message.tool_calls
    if calls and (number := first_missing_call(calls, turn.answer, cursor.at)) is not None:
        call = calls[number]
        return Missing(f"call {number + 1} of {len(calls)} in ", f"{call.name} {json.dumps(call.arguments)}")
    if turn.reasoning_place is not None:
        for wanted in (inline, turn.message.reasoning):
            if wanted and not Cursor(turn.reasoning_place).passes(wanted.strip()):
                return Missing("the reasoning of ", wanted.strip())
    return None


def _left_out_reasoning(messages: Sequence[Message], text: str, spans: list[Span]) -> list[Removal]:
    """What is not printed of the reasoning before the last question."""
    found, done = [], 0
    for message, (_, end) in zip((m for m in messages if m.role == "assistant"), spans, strict=True):
        if message.reasoning and not Cursor(text[done:end]).passes(message.reasoning.strip()):
            found.append(Removal(LEFT_OUT, message.reasoning))
        done = end
    return found


def _without(spans: list[Span], text: str) -> str:
    """The text without the answers."""
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
    return "\n".join(text[start:end] for start, end in zip(starts, ends, strict=True))
