"""Tools, calls, their results and reasoning in a prompt: rendered as the shards' rows were, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
Render = Callable[[Messages, Tools], str]
_PROBE = "probe-7f3a"


def place_reasoning(messages: Messages, render: Render) -> Messages:
    """The messages with their reasoning where the template prints it: in its field, or else before the answer.

    Args:
        render: as in `check_complete`.
    """
    if not any("reasoning_content" in message for message in messages) or _prints_reasoning(render):
        return messages
    placed = []
    for message in messages:
        reasoning = message.get("reasoning_content")
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        if reasoning is not None:
            rest["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{message['content']}"
        placed.append(rest)
    return placed


def check_complete(name: str, messages: Messages, tools: Tools, render: Render) -> None:
    """Refuse a chat of which the chat template leaves something out without a word: a turn, a tool, a call, a result.

    A part is left out if the text stays the same when it changes. That its words stand in the text would not tell: a
    tool's name may stand in a question too.

    Args:
        name: of the model.
        render: the text of messages and tools, by the chat template.

    Raises:
        ValueError: what is left out.
    """
    text = render(messages, tools)
    for what, changed_messages, changed_tools in _changes(messages, tools):
        try:
            same = render(changed_messages, changed_tools) == text
        except ValueError:  # the template refuses the changed chat
            continue
        if same:
            raise ValueError(
                f"{name}: the chat template leaves out {what}: the model was not trained on such, or is asked through "
                "another model's template"
            )


def _changes(messages: Messages, tools: Tools) -> Iterator[tuple[str, Messages, Tools]]:
    """Each part in words, and the chat with that part changed."""
    for i, tool in enumerate(tools):
        function = tool["function"] if isinstance(tool["function"], dict) else {}
        changed_tool = {**tool, "function": {**function, "name": _PROBE}}
        yield f"the tool {function.get('name')!r}", messages, [*tools[:i], changed_tool, *tools[i + 1 :]]
    for i, message in enumerate(messages):
        for what, changed in _changed_turns(message):
            yield f"{what} (message {i})", [*messages[:i], changed, *messages[i + 1 :]], tools


def _changed_turns(message: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if message["content"].strip():
        what = "a tool's result" if message["role"] == "tool" else f"what the {message['role']} says"
        yield what, {**message, "content": f"{message['content']} {_PROBE}"}
    calls = message.get("tool_calls", [])
    for i, call in enumerate(calls):
        for changed in ({"name": _PROBE}, {"arguments": {_PROBE: 1}}):
            function = {**call["function"], **changed}
            others = [*calls[:i], {**call, "function": function}, *calls[i + 1 :]]
            yield f"a call of {call['function']['name']!r}", {**message, "tool_calls": others}


def _prints_reasoning(render: Render) -> bool:
    """Whether the template prints the field, in an answer or next to a call; naming it is not enough."""
    question, call = {"role": "user", "content": "a"}, {"type": "function", "function": {"name": "f", "arguments": {}}}
    answer = {"role": "assistant", "content": "b", "reasoning_content": _PROBE}
    for turn in (answer, {**answer, "content": "", "tool_calls": [call]}):
        try:
            if _PROBE in render([question, turn], []):
                return True
        except ValueError:  # a template may refuse such a turn
            continue
    return False
