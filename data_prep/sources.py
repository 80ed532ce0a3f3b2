"""Dict rows to Conversations: one small function per raw form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.chat_forms import kind, names, read_messages, read_tools
from data_prep.conversation import BadRow, Conversation, Message, validate
from data_prep.readers import RawRow
from data_prep.recipe import FORM_COLUMNS, OPTIONAL_COLUMNS, Source

Row = dict[str, Any]
_PLACEHOLDER = re.compile(r"{{\s*(\w+)\s*}}")
# Other usual names of columns, by which form `auto` recognises a form; tried in this order.
_AUTO: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("messages", {"messages": ("messages",)}),
    ("sharegpt", {"conversations": ("conversations", "conversation")}),
    ("alpaca", {"instruction": ("instruction",), "output": ("output",)}),
    ("dolly", {"instruction": ("instruction",), "response": ("response",)}),
    ("prompt_completion", {"prompt": ("prompt",), "completion": ("completion", "response", "chosen")}),
    ("question_answer", {"question": ("question", "Question", "Q", "query"), "answer": ("answer", "Answer", "A")}),
)
# Columns that `auto` takes as well where a row has them, by the form's name for them.
_AUTO_OPTIONAL = {"tools": ("tools", "functions")}
# Columns that belong to the prompt: without them, the answers that are trained would hang in the air.
_CONTEXT = ("context", "input", "history", "system", "system_prompt", "tools", "functions")


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
    if turns and turns[0].role == "system" and not turns[0].content.strip():
        del turns[0]  # no system prompt, as some data sets write it
    system = _system(source, row.value)
    if system is not None and not (turns and turns[0].role == "system"):
        turns.insert(0, Message("system", system))
    conversation = Conversation(tuple(turns), source.name, row.number, _tools(source, row.value))
    if source.placeholders:
        conversation = _fill(conversation, source.placeholders)
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
    _refuse_unreadable(source, rows)
    found = list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))
    required = _required(source.form)
    for key in [*required, *source.columns]:
        column = source.column(key)
        if column not in found and (key in required or _nearest(column, found)):
            raise ValueError(_explain_missing(source, key, found, rows))
        if column not in found:
            print(
                f"source {source.name}: none of its first {len(rows)} rows has column {column!r}, given for {key}; if "
                "none at all has it, the plan will be refused"
            )


def resolve_form(source: Source, rows: Sequence[RawRow]) -> Source:
    """The source with its form, recognised by the columns of its first rows where the recipe says `auto`.

    Raises:
        ValueError: no row is a JSON object, no form fits the columns found, or the form reads no column that another
            part of the prompt is in.
    """
    if source.form != "auto" or not rows:
        return source
    _refuse_unreadable(source, rows)
    found = list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))
    for form, wanted in _AUTO:
        columns = {key: next((c for c in usual if c in found), None) for key, usual in wanted.items()}
        if None not in columns.values():
            for key in FORM_COLUMNS[form].keys() & _AUTO_OPTIONAL.keys():
                columns[key] = next((c for c in _AUTO_OPTIONAL[key] if c in found), None)
            mapped = {key: c for key, c in columns.items() if c and c != FORM_COLUMNS[form][key]}
            resolved = source.model_copy(update={"form": form, "columns": mapped})
            _refuse_unread_context(resolved, rows)
            return resolved
    raise ValueError(
        f"source {source.name!r}, from {rows[0].where} on: form auto fits none of the columns found: {names(found)}. "
        f"Say which `form` it is ({', '.join(form for form in FORM_COLUMNS if form != 'auto')}) and map its `columns`"
    )


def unread_columns(source: Source, rows: Sequence[RawRow]) -> list[str]:
    """Columns that hold texts or lists in some row and that the source's form does not read."""
    read = {source.column(key) for key in (*FORM_COLUMNS[source.form], *source.columns)}
    values = [(name, cell) for row in rows if isinstance(row.value, dict) for name, cell in row.value.items()]
    filled = (
        name for name, cell in values if (cell.strip() if isinstance(cell, str) else isinstance(cell, list) and cell)
    )
    return [name for name in dict.fromkeys(filled) if name not in read]


def _refuse_unread_context(source: Source, rows: Sequence[RawRow]) -> None:
    context = [name for name in unread_columns(source, rows) if name.lower() in _CONTEXT]
    if context:
        raise ValueError(
            f"source {source.name!r}, from {rows[0].where} on: form auto takes this as {source.form}, which does not "
            f"read the columns {names(context)}, and the answers may depend on them. State the `form`, map `columns`: "
            "{system: COLUMN}, or the input of alpaca, the context of dolly; with a stated form, columns that it does "
            "not name are left out"
        )


def _refuse_unreadable(source: Source, rows: Sequence[RawRow]) -> None:
    if not any(isinstance(row.value, dict) for row in rows):
        raise ValueError(
            f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, is a JSON object; "
            f"{rows[0].value}\n  expected one array of objects (JSON), or one object per line (JSONL); for a table, "
            "name the file .csv or .tsv, or state `format: csv` or `format: tsv`"
        )


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
            return _chat(source, row, "messages")
        case "sharegpt":
            return _chat(source, row, "conversations")
        case "auto":
            raise AssertionError("resolve_form comes first")


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
    """Two strings, or two lists of messages, of which the second continues the first; only the second is trained."""
    prompt = _text_or_messages(source, row, "prompt", "user", "empty_input")
    untrained = [replace(m, train=False) if m.role == "assistant" else m for m in prompt]
    completion = _text_or_messages(source, row, "completion", "assistant", "empty_output")
    if completion and completion[0].role in ("system", "user"):
        raise BadRow(
            "not_a_completion",
            f"column {source.column('completion')!r} starts with a {completion[0].role} message: expected what follows "
            "the prompt. If it holds the whole conversation: `form: messages`, `columns: {messages: "
            f"{source.column('completion')}}}`",
        )
    return untrained + completion


def _text_or_messages(source: Source, row: Row, key: str, role: str, empty: str) -> list[Message]:
    cell = _cell(source, row, key)
    if not isinstance(cell, list):
        return [Message(role, _text(source, row, key, empty))]
    if not cell:
        raise BadRow(empty, f"column {source.column(key)!r} is an empty list")
    return read_messages(cell, source.roles, f"column {source.column(key)!r}")


def _chat(source: Source, row: Row, key: str) -> list[Message]:
    return read_messages(_cell(source, row, key), source.roles, f"column {source.column(key)!r}")


def _tools(source: Source, row: Row) -> tuple[Row, ...]:
    if "tools" not in FORM_COLUMNS[source.form]:
        return ()
    return read_tools(row.get(source.column("tools")), f"column {source.column('tools')!r}")


def _fill(conversation: Conversation, values: Mapping[str, str]) -> Conversation:
    """Fill {{name}} placeholders; names that the recipe does not give stay as they are."""

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)

    messages = (
        replace(m, content=fill(m.content), reasoning=None if m.reasoning is None else fill(m.reasoning))
        for m in conversation.messages
    )
    return replace(conversation, messages=tuple(messages))


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
        detail = f"expected column {column!r} (form {source.form}); found columns {names(row)}"
        raise BadRow("missing_column", f"{detail}; map it with `columns: {{{key}: {near}}}`")
    return row[column]


def _text(source: Source, row: Row, key: str, empty: str) -> str:
    cell = _cell(source, row, key)
    if cell is not None and not isinstance(cell, str):
        raise BadRow("not_text", f"column {source.column(key)!r}: expected text, found {kind(cell)}")
    if cell is None or not cell.strip():
        raise BadRow(empty, f"column {source.column(key)!r} is {'null' if cell is None else 'empty or blank'}")
    return cell


def _optional_text(source: Source, row: Row, key: str) -> str | None:
    cell = row.get(source.column(key))
    if cell is not None and not isinstance(cell, str):
        raise BadRow("not_text", f"column {source.column(key)!r}: expected text, found {kind(cell)}")
    return cell if cell is not None and cell.strip() else None


# What to say.


def _explain_missing(source: Source, key: str, found: list[str], rows: Sequence[RawRow]) -> str:
    column = source.column(key)
    near = _nearest(column, found)
    expected = [source.column(k) for k in _required(source.form)]
    fitting = [form for form in FORM_COLUMNS if set(_required(form)) <= set(found)]
    return (
        f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, has column {column!r}\n"
        f"  form {source.form} expects columns {expected}; found columns {names(found)}"
        f"{f'; nearest: {near!r}' if near else ''}\n"
        f"  map it with `columns: {{{key}: {near or 'YOUR_COLUMN'}}}`, or choose another form; forms that fit these "
        f"columns as they are: {', '.join(fitting) or 'none'}"
    )


def _required(form: str) -> list[str]:
    return [key for key in FORM_COLUMNS[form] if key not in OPTIONAL_COLUMNS]


def _nearest(column: str, found: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(column, found, n=1)
    return near[0] if near else None
