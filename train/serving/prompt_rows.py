"""Chats to answer, read from rows: the forms of messages, tools and tool calls are those that data preparation reads.

A row becomes what a chat template takes, as the shards' rows did: arguments of calls are objects, a tool's schema lies
under `function`, names of roles are the usual four.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]

# As in data_prep.sources.message_lists, which a test compares.
ROLE_ALIASES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "output"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
}
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass
class Chat:
    """A chat that ends where the model is to answer."""

    messages: list[Message]  # role, content, and of an assistant's turn reasoning_content and tool_calls
    tools: list[dict[str, Any]] = field(default_factory=list)  # JSON schemas of what the model may call

    @property
    def question(self) -> str:
        """What was said last."""
        return str(self.messages[-1]["content"])


def ask(text: str) -> Chat:
    """A chat of one question."""
    return Chat([{"role": "user", "content": text}])


def read_chat(row: Any, where: str) -> Chat:
    """The chat of a row: `prompt` (text) or `messages` (or `conversations`), and `tools` if it offers any.

    Raises:
        ValueError: something else; an unknown role; a chat that does not end with the user's turn or a tool's result.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with prompt or messages, found {_kind(row)}")
    tools = read_tools(row.get("tools"), where)
    if isinstance(row.get("prompt"), str):
        return Chat(ask(row["prompt"]).messages, tools)
    cell = _json(row.get("messages", row.get("conversations")), where)
    if not isinstance(cell, list) or not cell:
        raise ValueError(
            f'{where}: expected "prompt" (text) or "messages" (a list of objects with role and content), found keys '
            f"{sorted(row)}"
        )
    messages = [_message(item, f"{where}, message {number}") for number, item in enumerate(cell)]
    if messages[-1]["role"] not in ("user", "tool"):
        last = messages[-1]["role"]
        raise ValueError(f"{where}: expected a chat that ends with the user's turn or a tool's result, found {last!r}")
    return Chat(messages, tools)


def check_chat(chat: Chat) -> None:
    """Refuse what no template renders meaningfully.

    Raises:
        ValueError: an empty turn, a system message that is not first, a call outside an assistant's turn, or text that
            is not Unicode.
    """
    for number, message in enumerate(chat.messages):
        role = message["role"]
        if not message["content"].strip() and not message.get("tool_calls"):
            raise ValueError(f"an empty {role} message: there is nothing to ask")
        if role == "system" and number:
            raise ValueError(f"message {number} is a system message: only the first one may be")
        if message.get("tool_calls") and role != "assistant":
            raise ValueError(f"message {number} ({role}) calls a tool: only the assistant may")
        _check_text(message, f"the {role} message")
    _check_text(chat.tools, "a tool")


def _check_text(value: Any, what: str) -> None:
    for text in _strings(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{what} is not Unicode text: check the terminal's locale") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object with role and content, found {_kind(item)}")
    named = item.get("role", item.get("from"))
    role = ROLE_ALIASES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise ValueError(f"{where}: expected a role, one of {', '.join(ROLE_ALIASES)}, found {named!r:.40}")
    content = item.get("content", item.get("value"))
    if role == "function_call":  # an assistant's turn that only calls tools
        role, content, calls, reasoning = "assistant", "", read_calls(content, where), None
    else:
        content, calls, reasoning = _parts(content, where)
    calls += read_calls(item.get("tool_calls"), where) + read_calls(item.get("function_call"), where)
    reasoning = next((item[key] for key in _REASONING if item.get(key)), reasoning)
    if reasoning is not None and not isinstance(reasoning, str):
        raise ValueError(f"{where}: expected reasoning as text, found {_kind(reasoning)}")
    more = {"reasoning_content": reasoning, "tool_calls": calls}
    return {"role": role, "content": content, **{key: value for key, value in more.items() if value}}


def _parts(content: Any, where: str) -> tuple[str, list[dict[str, Any]], str | None]:
    """Text, calls and reasoning of a content: a text, or a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or "", [], None
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        text = next((part[key] for key in ("text", "value", "content") if key in part), None) if kind else None
        if kind not in texts or not isinstance(text, str):
            raise ValueError(f"{where}: expected content as text, or parts of type {', '.join(texts)}: {_kind(part)}")
        texts[kind].append(text)
    calls = [call for text in texts["tool_call"] for call in read_calls(text, where)]
    return "".join(texts["text"]), calls, "".join(texts["reasoning"]) or None


def read_calls(cell: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls: an object or a list of them, or that as JSON text, with or without OpenAI's `function` around.

    Raises:
        ValueError: something else.
    """
    if cell is None or cell == "":
        return []
    cell = _json(cell, where)
    return [_call(item, where) for item in (cell if isinstance(cell, list) else [cell])]


def _call(item: Any, where: str) -> dict[str, Any]:
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: expected a call with name and arguments, found {_kind(item)}")
    arguments = function.get("arguments", function.get("parameters", {}))
    arguments = {} if isinstance(arguments, str) and not arguments.strip() else _json(arguments, where)
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: expected a call's arguments as a JSON object, found {_kind(arguments)}")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def read_tools(cell: Any, where: str) -> list[dict[str, Any]]:
    """Schemas of tools: a list of them or that as JSON text, with or without OpenAI's `function` around.

    Raises:
        ValueError: something else.
    """
    cell = None if isinstance(cell, str) and not cell.strip() else _json(cell, where)
    if cell is None:
        return []
    if not isinstance(cell, list) or not all(isinstance(tool, dict) for tool in cell):
        raise ValueError(f"{where}: expected tools as a list of JSON schemas, found {_kind(cell)}")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in cell]


def _json(value: Any, where: str) -> Any:
    """The value, or what it says where it is JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, found {value[:60]!r}: {error}") from None


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
