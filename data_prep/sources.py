"""Dict rows to Conversations: one small function per raw form."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from data_prep.conversation import BadRow, Conversation, Message, validate
from data_prep.readers import RawRow
from data_prep.recipe import FORM_COLUMNS, OPTIONAL_COLUMNS, Source

Row = dict[str, Any]


def to_conversation(source: Source, row: RawRow, *, input_separator: str = "\n\n") -> Conversation:
    """The conversation in one row.

    Args:
        input_separator: between the instruction and its input or context (forms alpaca and dolly). For a template that
            gives the input a section of its own, that section's heading.

    Raises:
        BadRow: the row could not be read, lacks a column, holds something other than text, or `validate` refuses it.
    """
    if isinstance(row.value, BadRow):
        raise row.value
    turns = _turns(source, row.value, input_separator)
    system = _system(source, row.value)
    if system is not None and not (turns and turns[0].role == "system"):
        turns.insert(0, Message("system", system))
    conversation = Conversation(tuple(turns), source.name, row.number)
    validate(conversation)
    return conversation


def check_columns(source: Source, rows: Sequence[RawRow]) -> None:
    """Refuse a form or a column mapping that does not belong to this data, judged by its first rows.

    Raises:
        ValueError: no row is a JSON object, no row has one of the columns that the form requires, or an optional column
            is mapped to a name that no row has while some row has a similar one.
    """
    if not rows:
        return
    if not any(isinstance(row.value, dict) for row in rows):
        raise ValueError(
            f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, is a JSON object; "
            f"{rows[0].value}\n  expected one array of objects (JSON), or one object per line (JSONL)"
        )
    found = list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))
    required = _required(source.form)
    for key in [*required, *source.columns]:
        column = source.column(key)
        if column not in found and (key in required or _nearest(column, found)):
            raise ValueError(_explain_missing(source, key, found, rows))


# Forms.


def _turns(source: Source, row: Row, input_separator: str) -> list[Message]:
    match source.form:
        case "alpaca":
            return _alpaca(source, row, input_separator)
        case "dolly":
            return _dolly(source, row, input_separator)
        case "question_answer":
            return _question_answer(source, row)
        case "prompt_completion":
            return _prompt_completion(source, row)
        case "messages":
            return _messages(_cell(source, row, "messages"), f"column {source.column('messages')!r}")


def _alpaca(source: Source, row: Row, input_separator: str) -> list[Message]:
    instruction = _text(source, row, "instruction", "empty_input")
    output = _text(source, row, "output", "empty_output")
    return _one_turn(_join(instruction, _optional_text(source, row, "input"), input_separator), output)


def _dolly(source: Source, row: Row, input_separator: str) -> list[Message]:
    instruction = _text(source, row, "instruction", "empty_input")
    response = _text(source, row, "response", "empty_output")
    return _one_turn(_join(instruction, _optional_text(source, row, "context"), input_separator), response)


def _question_answer(source: Source, row: Row) -> list[Message]:
    return _one_turn(_text(source, row, "question", "empty_input"), _text(source, row, "answer", "empty_output"))


def _prompt_completion(source: Source, row: Row) -> list[Message]:
    """Two strings, or two lists of messages, of which the second continues the first."""
    prompt = _text_or_messages(source, row, "prompt", "user", "empty_input")
    if any(message.role == "assistant" for message in prompt):
        raise BadRow("untrained_turn", "the prompt holds an assistant turn, which would be trained: use form messages")
    return prompt + _text_or_messages(source, row, "completion", "assistant", "empty_output")


def _text_or_messages(source: Source, row: Row, key: str, role: str, empty: str) -> list[Message]:
    cell = _cell(source, row, key)
    if not isinstance(cell, list):
        return [Message(role, _text(source, row, key, empty))]
    if not cell:
        raise BadRow(empty, f"column {source.column(key)!r} is an empty list")
    return _messages(cell, f"column {source.column(key)!r}")


def _messages(cell: Any, where: str) -> list[Message]:
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise BadRow("not_messages", f"{where}: expected a list of messages with role and content, found {_kind(cell)}")
    return [_message(item, f"{where}, message {number}") for number, item in enumerate(cell)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        hint = "; ShareGPT's from and value are not read" if isinstance(item, dict) and "from" in item else ""
        raise BadRow("not_messages", f"{where}: expected role and content, found {_kind(item)}{hint}")
    _refuse_what_would_be_lost(item, where)
    if not isinstance(item["role"], str):
        raise BadRow("unknown_role", f"{where}: expected the name of a role, found {_kind(item['role'])}")
    return Message(item["role"], _content(item["content"], where))


def _refuse_what_would_be_lost(item: Row, where: str) -> None:
    """What Message cannot hold: without it the model would learn something else than the row says."""
    for key in ("tool_calls", "function_call"):
        if item.get(key):
            raise BadRow("tool_call", f"{where} has {key!r}: tool calls are not read")
    is_untrained = item.get("train") is False or 0 in (item.get("weight"), item.get("loss_weight"))
    if item["role"] == "assistant" and is_untrained:
        raise BadRow("untrained_turn", f"{where} is marked as not to be trained: single turns cannot be left out")


def _content(content: Any, where: str) -> str:
    """A string, or a list of text parts, joined. None, as in a message of nothing but a tool call, is empty."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("not_text", f"{where}: expected content as text, found {_kind(content)}")
    for number, part in enumerate(content):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise BadRow("not_text", f"{where}, part {number}: expected type 'text' with a text, found {_kind(part)}")
    return "".join(part["text"] for part in content)


def _one_turn(user: str, assistant: str) -> list[Message]:
    return [Message("user", user), Message("assistant", assistant)]


def _join(instruction: str, more: str | None, separator: str) -> str:
    return instruction if more is None else f"{instruction}{separator}{more}"


def _system(source: Source, row: Row) -> str | None:
    own = _optional_text(source, row, "system") if "system" in source.columns else None
    return own or source.system or None


# Cells.


def _cell(source: Source, row: Row, key: str) -> Any:
    column = source.column(key)
    if column not in row:
        near = _nearest(column, list(row)) or "YOUR_COLUMN"
        detail = f"expected column {column!r} (form {source.form}); found columns {_names(row)}"
        raise BadRow("missing_column", f"{detail}; map it with `columns: {{{key}: {near}}}`")
    return row[column]


def _text(source: Source, row: Row, key: str, empty: str) -> str:
    cell = _cell(source, row, key)
    if cell is not None and not isinstance(cell, str):
        raise BadRow("not_text", f"column {source.column(key)!r}: expected text, found {_kind(cell)}")
    if cell is None or not cell.strip():
        raise BadRow(empty, f"column {source.column(key)!r} is {'null' if cell is None else 'empty or blank'}")
    return cell


def _optional_text(source: Source, row: Row, key: str) -> str | None:
    cell = row.get(source.column(key))
    if cell is not None and not isinstance(cell, str):
        raise BadRow("not_text", f"column {source.column(key)!r}: expected text, found {_kind(cell)}")
    return cell if cell is not None and cell.strip() else None


def _kind(value: Any) -> str:
    """What a value is, in JSON's words and in bounded length, whatever is nested in it."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"{'a truth value' if isinstance(value, bool) else 'a number'} ({value!r:.40})"
        case str():
            return f"text ({value[:40]!r})"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with keys {_names(value)}"
    return type(value).__name__


# What to say.


def _explain_missing(source: Source, key: str, found: list[str], rows: Sequence[RawRow]) -> str:
    column = source.column(key)
    near = _nearest(column, found)
    expected = [source.column(k) for k in _required(source.form)]
    fitting = [form for form in FORM_COLUMNS if set(_required(form)) <= set(found)]
    return (
        f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, has column {column!r}\n"
        f"  form {source.form} expects columns {expected}; found columns {_names(found)}"
        f"{f'; nearest: {near!r}' if near else ''}\n"
        f"  map it with `columns: {{{key}: {near or 'YOUR_COLUMN'}}}`, or choose another form; forms that fit these "
        f"columns as they are: {', '.join(fitting) or 'none'}"
    )


def _required(form: str) -> list[str]:
    return [key for key in FORM_COLUMNS[form] if key not in OPTIONAL_COLUMNS]


def _nearest(column: str, found: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(column, found, n=1)
    return near[0] if near else None


def _names(found: Row | Sequence[str]) -> str:
    names = [name[:40] for name in found]
    return f"{names[:20]} and {len(names) - 20} more" if len(names) > 20 else f"{names}"
