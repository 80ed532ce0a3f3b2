"""The JSON object in one row. Whatever the bytes, an object or a BadRow."""

from __future__ import annotations

import json
from typing import Any

from data_prep.conversation import BadRow
from data_prep.encodings import UTF8, undecodable

MAX_DEPTH = 100  # of nested values; far below Python's recursion limit, which others reach who walk the row later


def parse_row(raw: bytes, encoding: str) -> dict[str, Any] | BadRow:
    """The object in one row, UTF-8; `encoding` is what the file was in."""
    raw = raw.strip(b" \t\r\n")
    try:
        text = raw.decode(UTF8)
    except UnicodeDecodeError as error:
        return undecodable(error, encoding)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow("not_json", f"{error.msg} at character {error.pos} of the row, which starts {text[:60]!r}")
    except (ValueError, RecursionError) as error:  # more digits than Python converts to an integer, or too deep
        return BadRow("not_json", f"{error}; the row starts {text[:60]!r}")
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"expected an object with named columns, found {text[:60]!r}")
    if is_too_deep(value, text):
        return BadRow("not_json", f"nested more than {MAX_DEPTH} levels deep; the row starts {text[:60]!r}")
    return value


def is_too_deep(value: Any, text: str) -> bool:
    """Whether a value, read from this JSON text, is nested more than MAX_DEPTH levels deep."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (
            node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)
        )
        level = [child for some in children for child in some]
    return any(isinstance(node, dict | list) for node in level)
