"""Lists of messages as data sets have them: OpenAI's messages, ShareGPT's conversations, pairs, texts of hh-rlhf."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_prep.conversation import BadRow, Message
from data_prep.recipe import Source
from data_prep.sources.cells import as_json, as_text, kind
from data_prep.sources.column_meanings import (
    MASK_FLAGS,
    SPAN_FLAGS,
    TRAIN_FLAGS,
    changes_turn,
    is_filled,
    is_flag_like,
    read_flag,
)
from data_prep.sources.message_parts import are_parts, read_parts
from data_prep.sources.tool_calls import Note, Row, read_calls, read_json

# Usual names of the roles, in any case. A source's `roles` adds to them.
ROLE_ALIASES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "output"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),  # an assistant's turn that only calls tools
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
# Other tools' names of the key that holds who speaks, for what a refusal proposes.
_SPEAKER_KEYS = {"who", "speaker", "sender", "author", "participant", "party", "actor", "from_role", "화자", "발화자"}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_KEYS = ("tool_calls", "function_call")
_HH = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SILENT_KEYS = ("train", "reasoning", "tool_calls")  # those of `message_keys` that a message may lack


class MessageReader:
    """Reads lists of messages of one source.

    Args:
        note: takes the name of each key that holds something and is not read.
    """

    def __init__(self, source: Source, note: Note):
        keys = source.message_keys
        self._roles = {name.lower(): role for name, role in (ROLE_ALIASES | source.roles).items()} | source.roles
        self._role_keys = (keys["role"],) if "role" in keys else _ROLE_KEYS
        self._content_keys = (keys["content"],) if "content" in keys else _CONTENT_KEYS
        self._reasoning_keys = (keys["reasoning"],) if "reasoning" in keys else _REASONING_KEYS
        self._call_keys = (keys["tool_calls"],) if "tool_calls" in keys else _CALL_KEYS
        self._train_keys = {*TRAIN_FLAGS, keys.get("train", "train")}
        self._pairs = [(keys[role], role) for role in ("system", "user", "assistant") if role in keys]
        pair_keys = [key for key, _ in self._pairs]
        read = (*self._role_keys, *self._content_keys, *self._reasoning_keys, *self._call_keys, *pair_keys)
        self._passed = {*read, *source.ignore}
        self._note = note
        self.unseen = {keys[key] for key in _SILENT_KEYS if key in keys}  # a misspelt one would be missed by nobody

    def read(self, cell: Any, where: str) -> list[Message]:
        """The messages in a cell: a list of objects with role and content (or from and value, or the keys that the
        recipe names), that list as JSON text, or a text of hh-rlhf.

        Raises:
            BadRow: not such a list, an unknown role, content that is not text, or a tool call that is not JSON.
        """
        if isinstance(cell, str):
            if cell.lstrip().startswith("Human:"):
                return list(_hh_turns(cell))
            cell = read_json(cell, "not_messages", where)
        if cell is None:
            return []
        if isinstance(cell, dict):
            cell = _transposed(cell)
        if not isinstance(cell, list):
            found = f"{where}: expected a list of messages with role and content, found {kind(cell)}"
            raise BadRow("not_messages", found)
        messages: list[Message] = []
        for number, item in enumerate(cell):
            plain = self._plain(item)
            messages += [plain] if plain else self._messages(item, f"{where}, message {number}")
        return messages

    def _plain(self, item: Any) -> Message | None:
        """The message, if it is as most are: a role and a text."""
        if type(item) is not dict or len(item) != 2:
            return None
        for role_key, content_key in zip(self._role_keys, self._content_keys, strict=False):
            name, content = item.get(role_key), item.get(content_key)
            if type(name) is str and type(content) is str:
                role = self._roles.get(name)
                return Message(role, content) if role and role != "function_call" else None
        return None

    def _messages(self, item: Any, where: str) -> list[Message]:
        if not isinstance(item, dict):
            raise BadRow("not_messages", f"{where}: expected an object with role and content, found {kind(item)}")
        if self.unseen:
            self.unseen -= item.keys()
        pair = [Message(role, _content(item[key], where)) for key, role in self._pairs if item.get(key) is not None]
        if not pair:
            return [self._message(item, where)]
        flag = self._flag(item, "assistant", where)
        return [replace(m, train=flag) if m.role == "assistant" else m for m in pair]

    def _message(self, item: Row, where: str) -> Message:
        role_key, content_key = _filled_key(item, self._role_keys, where), _filled_key(item, self._content_keys, where)
        has_calls = any(is_filled(item.get(key)) for key in self._call_keys)
        has_content = content_key is not None or any(key in item for key in self._content_keys)
        if role_key is None or not (has_content or has_calls):
            raise BadRow("not_messages", f"{where}: expected role and content, found {kind(item)}: {_suggestion(item)}")
        role = self._role(item[role_key], where)
        content = item[content_key] if content_key else None
        message = self._content_message(content, role, where)
        calls = message.tool_calls
        for key in self._call_keys:
            more = read_calls(item.get(key), where, self._note)
            calls += more if more != calls else ()  # some exports have the same calls under both keys
        reasoning = self._reasoning(item, message.reasoning, where)
        flag = self._flag(item, message.role, where)
        flag = message.train if flag is None else flag
        return replace(message, tool_calls=calls, reasoning=reasoning, train=flag)

    def _reasoning(self, item: Row, in_parts: str | None, where: str) -> str | None:
        found = [item[key] for key in self._reasoning_keys if item.get(key)] + ([in_parts] if in_parts else [])
        if found and not isinstance(found[0], str):
            raise BadRow("not_text", f"{where}: expected reasoning as text, found {kind(found[0])}")
        if any(other != found[0] for other in found):
            raise BadRow("not_messages", f"{where}: reasoning stands in several keys and differs: one can be read")
        return found[0] if found else None

    def _role(self, name: Any, where: str) -> str:
        role = self._roles.get(name) or self._roles.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            how = "name it with `roles: {NAME: user}`, or leave such turns out with a `transform`"
            raise BadRow("unknown_role", f"{where}: unknown role {name!r:.40}; {how}")
        return role

    def _content_message(self, content: Any, role: str, where: str) -> Message:
        if role == "function_call":
            return Message("assistant", "", tool_calls=read_calls(content, where, self._note))
        if isinstance(content, list) and (role != "tool" or are_parts(content)):
            return read_parts(content, role, where, self._note)
        if role == "tool" and content is not None and not isinstance(content, str):
            return Message(role, as_json(content, where))
        return Message(role, _content(content, where))

    def _flag(self, item: Row, role: str, where: str) -> bool | None:
        """Whether the turn asks to be trained. All keys that nothing else reads are looked at."""
        flags: dict[str, bool] = {}
        for key, value in item.items():
            if key in self._passed or not is_filled(value):
                continue
            if key in self._train_keys or key in MASK_FLAGS:
                flag = read_flag(value, f"{where}: {key}")
                if flag is not None:
                    flags[key] = flag is not (key in MASK_FLAGS)
            elif key in SPAN_FLAGS:
                flags[key] = _span_flag(value, f"{where}: {key}")
            else:
                self._pass(key, value, where)
        if len(set(flags.values())) > 1:
            raise BadRow("flags_disagree", f"{where}: some of {sorted(flags)} ask for training, some against it")
        if role != "assistant" and any(flags.values()):
            self._note(f"messages[].{next(iter(flags))} of {role} turns, which are never trained")
        return next(iter(flags.values()), None)

    def _pass(self, key: str, value: Any, where: str) -> None:
        if changes_turn(key):
            said = f"{where}: {key!r} holds {kind(value)}, which is not read and changes what the turn means"
            raise BadRow("unread_key", f"{said}: bring it where it is read with a `transform`, or `ignore: [{key}]`")
        if is_flag_like(key):
            raise BadRow(
                "unread_key",
                f"{where}: {key!r} ({value!r:.40}) looks like a flag that says what is trained: say so with "
                f"`message_keys: {{train: {key}}}`, or pass it over with `ignore: [{key}]`",
            )
        self._note(f"messages[].{key}")


def _transposed(cell: Row) -> list[Row]:
    """One message, or the columns of several, as `datasets` has them: {"role": ["user", ...], "content": [...]}."""
    lengths = {len(value) if isinstance(value, list) else -1 for value in cell.values()}
    if len(lengths) != 1 or lengths == {-1}:
        return [cell]
    return [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]


def _suggestion(item: Row) -> str:
    """What to write into the recipe for a message of other keys."""
    roles = {ROLE_ALIASES[key.lower()]: key for key in item if key.lower() in ROLE_ALIASES}
    if {"user", "assistant"} <= roles.keys():
        return f"say `message_keys: {{user: {roles['user']}, assistant: {roles['assistant']}}}`"
    if inner := next((key for key, value in item.items() if isinstance(value, list | dict) and value), None):
        return f"if the messages lie in {inner!r}, take them out with a `transform`"
    role = _role_key(item)
    others = {key: value for key, value in item.items() if key != role and isinstance(value, str)}
    content = max(others, key=lambda key: len(others[key]), default="KEY")
    unknown = [item[role]] if role in item and item[role].lower() not in ROLE_ALIASES else []
    roles_too = "".join(f", and its roles with `roles: {{{name}: user}}` or assistant" for name in unknown)
    return f"name its keys with `message_keys: {{role: {role}, content: {content}}}`{roles_too}"


def _role_key(item: Row) -> str:
    """The key that holds who speaks: by its value, or else by its name."""
    texts = {key: value for key, value in item.items() if isinstance(value, str)}
    by_value = (key for key, value in texts.items() if value.lower() in ROLE_ALIASES)
    by_name = (key for key in texts if key.lower() in _SPEAKER_KEYS)
    return next(by_value, None) or next(by_name, None) or "KEY"


def _filled_key(item: Row, keys: tuple[str, ...], where: str) -> str | None:
    """The key that is not null; with two of them, what they hold has to be the same."""
    found = [key for key in keys if item.get(key) is not None]
    if len(found) > 1 and any(item[key] != item[found[0]] for key in found):
        raise BadRow("not_messages", f"{where}: {' and '.join(map(repr, found))} differ, and one of them can be read")
    return found[0] if found else None


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    try:
        return as_text(content, where) or ""
    except BadRow:
        raise BadRow("not_text", f"{where}: expected content as text, found {kind(content)}") from None


def _span_flag(spans: Any, where: str) -> bool:
    """Of Axolotl's spans of characters: False where none of them is trained."""
    if isinstance(spans, list) and all(isinstance(s, dict) and s.get("train") is False for s in spans):
        return False
    raise BadRow("partial_training", f"{where}: a part of the turn is flagged; a turn is trained as a whole, or not")


def _hh_turns(text: str) -> Iterator[Message]:
    """Of Anthropic's hh-rlhf: "\\n\\nHuman: question\\n\\nAssistant: answer", one after the other."""
    pieces = _HH.split(f"\n\n{text.lstrip()}")
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        yield Message(_HH_ROLES[name], content.removeprefix(" "))
