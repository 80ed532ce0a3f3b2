"""Lists of messages in the raw forms that data sets use: OpenAI's messages, ShareGPT's conversations, tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_prep.conversation import BadRow, Message, ToolCall
from data_prep.json_rows import MAX_DEPTH, is_too_deep, strict_loads

Row = dict[str, Any]

# Usual names of the roles. A source's `roles` adds to them.
ROLE_ALIASES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "output"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),  # an assistant's turn that only calls tools
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_TRAIN_KEYS = ("train", "weight", "loss_weight")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def read_messages(cell: Any, roles: Mapping[str, str], where: str) -> list[Message]:
    """The messages in a cell: a list of objects with role and content (or from and value), or that list as JSON text.

    Raises:
        BadRow: not such a list, an unknown role, content that is not text, or a tool call that is not JSON.
    """
    if isinstance(cell, str):
        cell = _json(cell, "not_messages", where)
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise BadRow("not_messages", f"{where}: expected a list of messages with role and content, found {kind(cell)}")
    return [_message(item, roles, f"{where}, message {number}") for number, item in enumerate(cell)]


def read_tools(cell: Any, where: str) -> tuple[Row, ...]:
    """The JSON schemas of the tools a row offers: a list of objects, that list as JSON text, or nothing.

    Raises:
        BadRow: something else.
    """
    if isinstance(cell, str):
        cell = _json(cell, "not_tools", where) if cell.strip() else None
    if cell is None:
        return ()
    if not isinstance(cell, list) or not all(isinstance(tool, dict) for tool in cell):
        raise BadRow("not_tools", f"{where}: expected a list of tool schemas, found {kind(cell)}")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in cell)


def _message(item: Any, roles: Mapping[str, str], where: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("not_messages", f"{where}: expected an object with role and content, found {kind(item)}")
    raw_role = next((item[k] for k in _ROLE_KEYS if k in item), None)
    content_key = next((k for k in _CONTENT_KEYS if k in item), None)
    if raw_role is None or (content_key is None and not _has_calls(item)):
        raise BadRow("not_messages", f"{where}: expected role and content (or from and value), found {kind(item)}")
    role = {**ROLE_ALIASES, **roles}.get(raw_role) if isinstance(raw_role, str) else None
    if role is None:
        raise BadRow("unknown_role", f"{where}: unknown role {raw_role!r:.40}; name it with `roles: {{NAME: user}}`")
    message = _parts(item[content_key] if content_key else None, role, where)
    calls = message.tool_calls + _calls(item.get("tool_calls"), where) + _calls(item.get("function_call"), where)
    reasoning = next((item[k] for k in _REASONING_KEYS if item.get(k)), message.reasoning)
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadRow("not_text", f"{where}: expected reasoning as text, found {kind(reasoning)}")
    return replace(message, tool_calls=calls, reasoning=reasoning, train=_train_flag(item, where))


def _has_calls(item: Row) -> bool:
    return bool(item.get("tool_calls") or item.get("function_call"))


def _parts(content: Any, role: str, where: str) -> Message:
    """A message from its content: a string, or a list of typed parts (text, reasoning, tool_call)."""
    if role == "function_call":
        return Message("assistant", "", tool_calls=_calls(content, where))
    if content is None:
        return Message(role, "")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list):
        raise BadRow("not_text", f"{where}: expected content as text, found {kind(content)}")
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for number, part in enumerate(content):
        name, text = _part(part, f"{where}, part {number}")
        texts[name].append(text)
    calls = tuple(call for text in texts["tool_call"] for call in _calls(text, where))
    return Message(role, "".join(texts["text"]), reasoning="".join(texts["reasoning"]) or None, tool_calls=calls)


def _part(part: Any, where: str) -> tuple[str, str]:
    name = part.get("type") if isinstance(part, dict) else None
    text = next((part[k] for k in ("text", "value", "content") if k in part), None) if isinstance(part, dict) else None
    if name not in ("text", "reasoning", "tool_call") or not isinstance(text, str):
        raise BadRow("not_text", f"{where}: expected type text, reasoning or tool_call with a text, found {kind(part)}")
    return name, text


def _calls(cell: Any, where: str) -> tuple[ToolCall, ...]:
    """Tool calls from JSON text, one object or a list of them, with or without OpenAI's `function` around."""
    if cell is None or cell == "":
        return ()
    if isinstance(cell, str):
        cell = _json(cell, "tool_call", where)
    return tuple(_call(item, where) for item in (cell if isinstance(cell, list) else [cell]))


def _call(item: Any, where: str) -> ToolCall:
    function = item.get("function", item) if isinstance(item, dict) else item
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("tool_call", f"{where}: expected a call with name and arguments, found {kind(item)}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, "tool_call", where) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise BadRow("tool_call", f"{where}: expected arguments as a JSON object, found {kind(arguments)}")
    return ToolCall(function["name"], arguments)


def _train_flag(item: Row, where: str) -> bool | None:
    flag = next((item[k] for k in _TRAIN_KEYS if item.get(k) is not None), None)
    if flag is None or isinstance(flag, bool):
        return flag
    if isinstance(flag, int | float) and flag in (0, 1):
        return bool(flag)
    raise BadRow("fractional_weight", f"{where}: a turn is trained or not, weight 0 or 1; found {kind(flag)}")


def _json(text: str, reason: str, where: str) -> Any:
    try:
        value = strict_loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(reason, f"{where}: not readable as JSON ({error!s:.120}): {text[:60]!r}") from None
    if is_too_deep(value, text):
        raise BadRow(reason, f"{where}: JSON nested more than {MAX_DEPTH} levels deep: {text[:60]!r}")
    return value


def kind(value: Any) -> str:
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
            return f"an object with keys {names(value)}"
    return type(value).__name__


def names(found: Any) -> str:
    """Some names, in bounded length."""
    shown = [str(name)[:40] for name in found]
    return str(shown[:20]) if len(shown) <= 20 else f"{shown[:20]} and {len(shown) - 20} more"
