"""JSON rows, parsed: an object or a BadRow, whatever the bytes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from data_prep.conversation import BadRow
from data_prep.sources.text_encodings import UTF8, undecodable

MAX_DEPTH = 100  # of nested values; far below Python's recursion limit, which others reach who walk the row later


class _RepeatedKey(ValueError):
    """An object has one key twice; `json` would silently take the last one's value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key = next(key for key, count in counts.items() if count > 1)
        raise _RepeatedKey(f"the key {key[:60]!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
strict_loads = _DECODER.decode  # json.loads, but a ValueError where an object has a key twice
_SCAN = _DECODER.scan_once  # type: ignore[attr-defined]  # what its raw_decode calls


def parse_row(raw: bytes, encoding: str) -> dict[str, Any] | BadRow:
    """The object in one row, UTF-8; `encoding` is what the file was in."""
    raw = raw.strip(b" \t\r\n")
    try:
        text = raw.decode(UTF8)
    except UnicodeDecodeError as error:
        return undecodable(error, encoding)
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        return BadRow("not_json", f"{error.msg} at character {error.pos} of the row, which starts {text[:60]!r}")
    except _RepeatedKey as error:
        return BadRow("repeated_key", f"{error}; the row starts {text[:60]!r}")
    except (ValueError, RecursionError) as error:  # more digits than Python converts to an integer, or too deep
        return BadRow("not_json", f"{error}; the row starts {text[:60]!r}")
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"expected an object with named columns, found {text[:60]!r}")
    if is_too_deep(value, text):
        return BadRow("not_json", f"nested more than {MAX_DEPTH} levels deep; the row starts {text[:60]!r}")
    return value


def parse_rows(raw: bytes) -> list[dict[str, Any]] | None:
    """The objects of an array's elements (UTF-8, commas between them), in a third of the time that `parse_row` takes.
    None if there is any fault in them, and each has to be looked at by itself."""
    try:
        values = strict_loads(f"[{raw.decode(UTF8)}]")
    except (ValueError, RecursionError):
        return None
    if not all(type(value) is dict for value in values):
        return None
    is_faulty = any(_is_nested(value) and is_too_deep(value) for value in values)
    return None if is_faulty else values


def _loads(text: str) -> Any:
    """The value of a text without white space around it, less what `decode` looks for."""
    try:
        value, end = _SCAN(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    return strict_loads(text)


def _is_nested(row: dict[str, Any]) -> bool:
    return any(isinstance(value, dict | list) for value in row.values())


def is_too_deep(value: Any, text: str | None = None) -> bool:
    """Whether a value, read from this JSON text, is nested more than MAX_DEPTH levels deep."""
    if text is not None and text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for some in children for child in some if isinstance(child, dict | list)]
        if not level:
            return False
    return True
