"""Tool calls and the schemas of tools, in the forms that data sets use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_prep.conversation import BadRow, ToolCall
from data_prep.sources.cells import kind
from data_prep.sources.column_meanings import is_filled
from data_prep.sources.json_rows import MAX_DEPTH, is_too_deep, strict_loads

Row = dict[str, Any]
Note = Callable[[str], None]  # takes the name of what is not read
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_CALL_KEYS, _FUNCTION_KEYS = frozenset({"type", "function"}), frozenset({"type", "name"})


def read_tools(cell: Any, where: str) -> tuple[Row, ...]:
    """The JSON schemas of the tools a row offers: a list of objects, that list as JSON text, or nothing.

    Raises:
        BadRow: something else.
    """
    if isinstance(cell, str):
        cell = read_json(cell, "not_tools", where) if cell.strip() else None
    if not is_filled(cell):
        return ()
    if not isinstance(cell, list) or not all(isinstance(tool, dict) for tool in cell):
        raise BadRow("not_tools", f"{where}: expected a list of tool schemas, found {kind(cell)}")
    return tuple(map(_tool, cell))


def _tool(tool: Row) -> Row:
    """In the form that templates take; OpenAI's newer interface has the type next to the name."""
    if "function" in tool:
        return tool
    is_flat = tool.get("type") == "function" and "name" in tool
    function = {key: value for key, value in tool.items() if key != "type"} if is_flat else tool
    return {"type": "function", "function": function}


def read_calls(cell: Any, where: str, note: Note) -> tuple[ToolCall, ...]:
    """Tool calls from JSON text, one object or a list of them, with or without OpenAI's `function` around.

    Raises:
        BadRow: no JSON, no name, or arguments that are no object.
    """
    if not is_filled(cell):
        return ()
    if isinstance(cell, str):
        cell = read_json(cell, "tool_call", where)
    items = cell if isinstance(cell, list) else [cell]
    return tuple(_call(item, where, note) for item in items)


def _call(item: Any, where: str, note: Note) -> ToolCall:
    function = item.get("function") or item if isinstance(item, dict) else item
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("tool_call", f"{where}: expected a call with name and arguments, found {kind(item)}")
    key = next((k for k in _ARGUMENT_KEYS if function.get(k) is not None), None)
    _note_unread(item, function, key, note)
    arguments = function[key] if key else {}
    if isinstance(arguments, str):
        arguments = read_json(arguments, "tool_call", where) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise BadRow("tool_call", f"{where}: expected arguments as a JSON object, found {kind(arguments)}")
    return ToolCall(function["name"], arguments)


def _note_unread(item: Row, function: Row, arguments: str | None, note: Note) -> None:
    known = (_CALL_KEYS if function is not item else _FUNCTION_KEYS | {arguments}, _FUNCTION_KEYS | {arguments})
    for part, read in zip((item, function), known, strict=True):
        for key, value in part.items():
            if key not in read and is_filled(value):
                note(f"tool_calls[].{key}")


def read_json(text: str, reason: str, where: str) -> Any:
    """The JSON value of a text.

    Raises:
        BadRow: with this reason: it is none, or nested too deeply.
    """
    try:
        value = strict_loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(reason, f"{where}: not readable as JSON ({error!s:.120}): {text[:60]!r}") from None
    if is_too_deep(value, text):
        raise BadRow(reason, f"{where}: JSON nested more than {MAX_DEPTH} levels deep: {text[:60]!r}")
    return value
