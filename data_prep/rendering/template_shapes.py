"""Shapes: what a template does with contents, whatever they say, found once for each order of roles and calls.

A short content such as "a" seems to be printed wherever an "a" is. So each shape is rendered once with contents,
reasoning, calls and tools that nothing else prints. It shows too which contents the template trims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.printed_values import properties
from data_prep.rendering.rewrites import KEPT, Removal, Trim, between_blanks, find_trims, signs
from data_prep.rendering.template_omissions import Missing, first_missing
from data_prep.tokenization.encoded_text import Span

Render = Callable[[Conversation], "tuple[str, list[Span]]"]
Shape = tuple[Any, ...]
_FIRST_OF_TOOLS = 0xF000  # no conversation has as many texts
_MOST = 4096  # shapes that are kept: long dialogues rarely have one in common


class Shapes:
    """The shapes of one template, looked at as they are needed.

    Args:
        render: renders a conversation with the template.
    """

    def __init__(self, render: Render):
        self._render = render
        self._missing: dict[Shape, Missing | None] = {}
        self._trims: dict[Shape, list[Trim] | None] = {}

    def check(self, conversation: Conversation) -> None:
        """Refuse a shape of which the template leaves something out.

        Raises:
            BadRow: "left_out_by_template".
        """
        shape = _shape(conversation)
        if shape not in self._missing and len(self._missing) < _MOST:
            self._missing[shape] = self._look_for_missing(conversation)
        if missing := self._missing.get(shape):
            raise missing.as_bad_row()

    def removals(self, conversation: Conversation) -> list[Removal]:
        """The blanks around contents that the template does not print."""
        messages = [m for m in conversation.messages if m.content.strip()]
        if not any(m.content[0].isspace() or m.content[-1].isspace() for m in messages):
            return []
        shape = _shape(conversation)
        if shape not in self._trims and len(self._trims) < _MOST:
            self._trims[shape] = self._find_trims(conversation)
        trims = self._trims.get(shape) or [KEPT for _ in messages]
        return [removal for m, trim in zip(messages, trims, strict=True) for removal in trim.removals(m)]

    def _look_for_missing(self, conversation: Conversation) -> Missing | None:
        numbers = count(len(conversation.messages))
        contents = [between_blanks(sign) for sign in signs(len(conversation.messages))]
        stand_in = _with_contents(conversation, contents)
        messages = tuple(_with_signs(m, lambda: signs(1, next(numbers))[0]) for m in stand_in.messages)
        number, *has = _shape_of_tools(conversation)
        tools = tuple(_tool(sign, *has) for sign in signs(number, first=_FIRST_OF_TOOLS))
        stand_in = replace(stand_in, messages=messages, tools=tools)
        try:
            missing = first_missing(stand_in, *self._render(stand_in))
        except BadRow:
            return None  # the row's own rendering says whether it can be used
        return missing and Missing(missing.what, "")

    def _find_trims(self, conversation: Conversation) -> list[Trim] | None:
        number = sum(bool(m.content.strip()) for m in conversation.messages)

        def render(contents: Sequence[str]) -> str:
            left = iter(contents)
            filled = [next(left) if m.content.strip() else "" for m in conversation.messages]
            return self._render(_with_contents(conversation, filled))[0]

        try:
            return find_trims(render, signs(number))
        except BadRow:
            return None


def _shape(conversation: Conversation) -> Shape:
    return conversation.is_prompted, _shape_of_tools(conversation), *map(_shape_of_message, conversation.messages)


def _shape_of_message(message: Message) -> Shape:
    calls = tuple(bool(call.arguments) for call in message.tool_calls)
    return message.role, bool(message.content.strip()), message.reasoning is not None, calls


def _shape_of_tools(conversation: Conversation) -> tuple[int, bool, bool]:
    """None, one or more of them, and whether any has a description, and parameters."""
    functions = [tool.get("function") or tool for tool in conversation.tools]
    is_described = any(f.get("description") for f in functions)
    has_parameters = any(properties(f.get("parameters")) for f in functions)
    return min(len(functions), 2), is_described, has_parameters


def _with_contents(conversation: Conversation, contents: Sequence[str]) -> Conversation:
    """The conversation with other contents where there are any."""
    pairs = zip(conversation.messages, contents, strict=True)
    messages = (replace(m, content=content if m.content.strip() else m.content) for m, content in pairs)
    return replace(conversation, messages=tuple(messages))


def _with_signs(message: Message, sign: Callable[[], str]) -> Message:
    """The message with another reasoning and other calls."""
    calls = tuple(
        ToolCall(f"call{sign()}", {f"key{sign()}": f"value{sign()}"} if call.arguments else {})
        for call in message.tool_calls
    )
    return replace(message, reasoning=None if message.reasoning is None else sign(), tool_calls=calls)


def _tool(sign: str, is_described: bool, has_parameters: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": f"tool{sign}"}
    if is_described:
        function["description"] = f"does{sign}"
    if has_parameters:
        function["parameters"] = {"type": "object", "properties": {f"key{sign}": {"type": "string"}}}
    return {"type": "function", "function": function}
