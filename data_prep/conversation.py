"""Message and Conversation: the only text type between a source's rows and token ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


class BadRow(ValueError):
    """A row that cannot be used. `reason` is a short fixed word to count by; `detail` says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # the default would call BadRow(message) in the other process


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str  # one of ROLES
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns from one row of one source."""

    messages: tuple[Message, ...]
    source: str  # the source's name in the recipe
    row: int  # 0-based row number within the source

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages in the form that chat templates take."""
        return [m.as_dict() for m in self.messages]

    def content_hash(self) -> int:
        """64-bit hash of the roles and contents alone: equal for exact duplicates, whichever source they come from."""
        canonical = json.dumps([[m.role, m.content] for m in self.messages], ensure_ascii=True, separators=(",", ":"))
        return int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "little")


def validate(conversation: Conversation) -> None:
    """Refuse what no template renders meaningfully.

    Raises:
        BadRow: no messages, an unknown role, a system message that is not first, an empty assistant or user turn, no
            assistant turn, no user turn before the first assistant turn, or text that UTF-8 cannot encode.
    """
    messages = conversation.messages
    if not messages:
        raise BadRow("no_messages", "the row has no messages")
    for position, message in enumerate(messages):
        _validate_message(message, position)
    roles = [m.role for m in messages]
    if "assistant" not in roles:
        raise BadRow("no_assistant_turn", f"roles are {roles}: nothing to train on")
    if "user" not in roles[: roles.index("assistant")]:
        raise BadRow("no_user_turn", f"roles are {roles}: no user turn before the first answer")


def _validate_message(message: Message, position: int) -> None:
    if message.role not in ROLES:
        raise BadRow("unknown_role", f"message {position} has role {message.role!r}; known roles: {ROLES}")
    if message.role == "system" and position > 0:
        raise BadRow("system_not_first", f"message {position} is a system message; only the first one may be")
    if not message.content.strip():
        reason = {"assistant": "empty_output", "user": "empty_input"}.get(message.role, "empty_system")
        raise BadRow(reason, f"message {position} ({message.role}) is empty")
    try:
        message.content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("not_unicode", f"message {position} holds a lone surrogate at character {error.start}") from None
