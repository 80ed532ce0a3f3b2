"""Files of prompts: a question on each line, JSONL rows, or one JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.serving.prompt_rows import Chat, ask, read_chat, read_tools


def read_file(path: Path, option: str) -> list[Chat]:
    """The chats of a file.

    Args:
        path: .json holds one document, a list of chats or a single one; a chat is a text (a question), a list of
            messages, or a row as `read_chat` reads it. .jsonl holds such a row on each line, and a .json file may do so
            too. Under any other name, each line is a question. Empty lines are passed over.
        option: that names the file, for messages.

    Raises:
        ValueError: it cannot be read or asks nothing, or a row is no chat; names file and line, or item.
    """
    text = _read(path, option)
    chats = _of_document(text, path) if path.suffix == ".json" else None
    if chats is None:
        parse = _of_line if path.suffix in (".jsonl", ".json") else _question
        lines = text.split("\n")  # splitlines would cut at U+2028 inside JSON text
        chats = [parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not chats:
        raise ValueError(f"{option} {path}: expected at least one prompt, found none")
    return chats


def read_tools_file(path: Path, option: str) -> list[dict[str, Any]]:
    """The schemas of a JSON file: a list of them.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    tools = read_tools(_read(path, option), f"{option} {path}")
    if not tools:
        raise ValueError(f"{option} {path}: expected a list of JSON schemas, found none")
    return tools


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path}: expected a UTF-8 text file: {error}") from None


def _of_document(text: str, path: Path) -> list[Chat] | None:
    """The chats of a JSON document; None where the file holds one on each line."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):  # no row begins so
            raise ValueError(f"{path}: expected a JSON list of prompts: {error}") from None
        return None
    if not isinstance(content, list) or _is_messages(content):
        return [_chat(content, str(path))]
    return [_chat(item, f"{path}, item {number}") for number, item in enumerate(content)]


def _chat(item: Any, where: str) -> Chat:
    if isinstance(item, str):
        return ask(item)
    return read_chat({"messages": item} if isinstance(item, list) else item, where)


def _is_messages(items: list[Any]) -> bool:
    """Whether a list is one chat, and not a list of rows."""
    return bool(items) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def _question(line: str, where: str) -> Chat:
    return ask(line.strip())


def _of_line(line: str, where: str) -> Chat:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object on the line: {error}") from None
    return read_chat(row, where)
