"""The content of a message as a list of typed parts: texts, reasoning and tool calls."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import BadRow, Message
from data_prep.sources.cells import kind
from data_prep.sources.column_meanings import MASK_FLAGS, TRAIN_FLAGS, is_filled, is_media, read_flag
from data_prep.sources.tool_calls import Note, Row, read_calls

# The types of OpenAI's two interfaces, of LLaMA-Factory and of Anthropic: ours.
_TYPES = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("reasoning", "thinking", "reasoning_content"), "reasoning"),
    **dict.fromkeys(("tool_call", "tool_use"), "tool_call"),
}
_MEDIA = ("image", "video", "audio", "input_image", "file")
_TEXT_KEYS = ("text", "value", "content", "thinking", "reasoning", "reasoning_content")


def are_parts(content: list[Any]) -> bool:
    """Whether a list is one of typed parts, as a tool's result may be any list."""
    types = [part.get("type") if isinstance(part, dict) else None for part in content]
    return any(isinstance(t, str) and (t in _TYPES or is_media(t) or t.startswith(_MEDIA)) for t in types)


def read_parts(content: list[Any], role: str, where: str, note: Note) -> Message:
    """A message from the list of its parts.

    Raises:
        BadRow: not_text: a part of another type, such as an image; partial_training: flags that differ.
    """
    found: dict[str, list[Any]] = {"text": [], "reasoning": [], "tool_call": []}
    flags = set()
    for number, part in enumerate(content):
        name, value, flag = _part(part, f"{where}, part {number}", note)
        found[name].append(value)
        flags.add(flag)
    if len(flags) > 1:
        raise BadRow("partial_training", f"{where}: its parts are flagged differently; a turn is trained as a whole")
    calls = tuple(call for cell in found["tool_call"] for call in read_calls(cell, where, note))
    reasoning = "".join(found["reasoning"]) or None
    return Message(role, "".join(found["text"]), flags.pop() if flags else None, reasoning, calls)


def _part(part: Any, where: str, note: Note) -> tuple[str, Any, bool | None]:
    """Its type, what it holds, and whether it asks to be trained."""
    kind_of_part = part.get("type") if isinstance(part, dict) else None
    name = _TYPES.get(kind_of_part) if isinstance(kind_of_part, str) else None
    if kind_of_part == "tool_use":
        return "tool_call", part, None
    key = next((k for k in _TEXT_KEYS if part.get(k) is not None), None) if name else None
    text = _text(part[key], where, note) if key else None
    if name is None or key is None or text is None:
        expected = "a type such as text, reasoning or tool_call, with a text"
        raise BadRow("not_text", f"{where}: expected {expected}, found {_described(part)}")
    return name, text, _flag(part, key, where, note)


def _text(cell: Any, where: str, note: Note) -> str | None:
    """The text of a part, or of the typed parts that it holds in turn, as Mistral's reasoning does."""
    if isinstance(cell, list) and cell and all(isinstance(inner, dict) for inner in cell):
        texts = [
            value for kind_of_text, value, _ in (_part(inner, where, note) for inner in cell) if kind_of_text == "text"
        ]
        return "".join(texts) if len(texts) == len(cell) else None
    return cell if isinstance(cell, str) else None


def _flag(part: Row, text_key: str, where: str, note: Note) -> bool | None:
    flag = None
    for key, value in part.items():
        if key in ("type", text_key) or not is_filled(value):
            continue
        if key in TRAIN_FLAGS or key in MASK_FLAGS:
            read = read_flag(value, f"{where}: {key}")
            flag = None if read is None else read is not (key in MASK_FLAGS)
        else:
            note(f"content[].{key}")
    return flag


def _described(part: Any) -> str:
    name = part.get("type") if isinstance(part, dict) else None
    return f"a part of type {name!r:.40}: {kind(part)}" if name is not None else kind(part)
