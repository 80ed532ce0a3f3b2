"""Message and Conversation: the only text type between a source's rows and token ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
SIBLING = 1 << 40  # added to the number of a raw row for each further row that is made of it


class BadRow(ValueError):
    """A row that cannot be used. `reason` is a short fixed word to count by; `detail` says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # the default would call BadRow(message) in the other process


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asks for."""

    name: str
    arguments: dict[str, Any]  # JSON

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates take."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str  # one of ROLES
    content: str
    train: bool | None = None  # whether the row marks this turn as to be trained; None: it says nothing
    reasoning: str | None = None  # what the model thinks before it answers
    tool_calls: tuple[ToolCall, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates take."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message

    def texts(self) -> list[str]:
        """All texts of the turn: the content, the reasoning, and the strings in the calls' arguments."""
        if self.reasoning is None and not self.tool_calls:
            return [self.content]
        reasoning = [self.reasoning] if self.reasoning else []
        return [self.content, *reasoning, *nested_strings([call.arguments for call in self.tool_calls], keys=False)]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns from one row of one source."""

    messages: tuple[Message, ...]
    source: str  # the source's name in the recipe
    row: int  # 0-based row number within the source
    tools: tuple[dict[str, Any], ...] = ()  # JSON schemas of the functions that the model may call
    is_text: bool = False  # a plain text, which is the content of the only message: no chat template is applied
    is_prompted: bool = False  # the last answer stands after what a server would prompt it with, and alone is trained

    def as_dicts(self) -> list[dict[str, Any]]:
        """The messages in the form that chat templates take."""
        return [m.as_dict() for m in self.messages]

    def text(self) -> str:
        """All contents, one after the other: what statistics and filters look at."""
        return "\n".join(m.content for m in self.messages)

    def strings(self) -> Iterator[str]:
        """Every text that a template may print."""
        for message in self.messages:
            yield message.content
            if message.reasoning is not None:
                yield message.reasoning
            for call in message.tool_calls:
                yield from nested_strings([call.name, call.arguments], keys=True)
        if self.tools:
            yield from nested_strings(list(self.tools), keys=True)


def nested_strings(value: Any, *, keys: bool) -> Iterator[str]:
    """The strings nested in a value; those that name something as well, if `keys`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from nested_strings(item, keys=keys)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nested_strings([key, item] if keys else item, keys=keys)


def validate(conversation: Conversation) -> None:
    """Refuse what no template renders meaningfully.

    Raises:
        BadRow: no messages, an unknown role, a system message that is not first, an empty turn (but for the result of
            a tool), no assistant turn, no user turn before the first one that may be trained, tool calls outside
            assistant turns, or text (of calls and tools too) that UTF-8 cannot encode.
    """
    messages = conversation.messages
    if not messages:
        raise BadRow("no_messages", "the row has no messages")
    for position, message in enumerate(messages):
        _validate_message(message, position)
    roles = [m.role for m in messages]
    if "assistant" not in roles:
        raise BadRow("no_assistant_turn", f"roles are {roles}: nothing to train on")
    if not conversation.is_text:
        _validate_order(messages, roles)
    for text in conversation.strings():
        if not text.isascii():
            _validate_text(text)


def _validate_order(messages: tuple[Message, ...], roles: list[str]) -> None:
    """A user turn comes before the first answer, but for answers that are not trained, such as a greeting."""
    asked = roles.index("user") if "user" in roles else len(roles)
    is_unasked = any(m.role == "assistant" and m.train is not False for m in messages[:asked])
    if is_unasked or "assistant" not in roles[asked:]:
        raise BadRow("no_user_turn", f"roles are {roles}: no user turn before the first answer")


def _validate_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("not_unicode", f"a lone surrogate at character {error.start} of {text[:60]!r}") from None


_EMPTY = {"assistant": "empty_output", "user": "empty_input", "system": "empty_system"}


def _validate_message(message: Message, position: int) -> None:
    if message.role not in ROLES:
        raise BadRow("unknown_role", f"message {position} has role {message.role!r}; known roles: {ROLES}")
    if message.role == "system" and position > 0:
        raise BadRow("system_not_first", f"message {position} is a system message; only the first one may be")
    if message.tool_calls and message.role != "assistant":
        raise BadRow("tool_call", f"message {position} ({message.role}) calls a tool; only the assistant may")
    # A tool may have nothing to say.
    if message.role != "tool" and not message.content.strip() and not message.tool_calls:
        raise BadRow(_EMPTY[message.role], f"message {position} ({message.role}) is empty")
