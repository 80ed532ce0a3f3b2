"""JSON text to Python values: a row's object, or a cell that holds JSON. Whatever the text, a value or a BadRow."""

from __future__ import annotations

import json
from typing import Any

from data_prep.conversation import BadRow
from data_prep.encodings import UTF8, undecodable

_MAX_DEPTH = 100  # of nested values; far below Python's recursion limit, which others reach who walk the row later


def parse_row(raw: bytes, encoding: str = UTF8) -> dict[str, Any] | BadRow:
    """The object in one row, UTF-8; `encoding` is what the file was in."""
    raw = raw.strip(b" \t\r\n")
    try:
        value = _parse(raw.decode(UTF8), "the row")
    except UnicodeDecodeError as error:
        return undecodable(error, encoding)
    except BadRow as bad:
        return bad
    if not isinstance(value, dict):
        text = raw[:240].decode(UTF8, "ignore")[:60]
        return BadRow("not_an_object", f"expected an object with named columns, found {text!r}")
    return value


def parse_cell(cell: Any) -> Any:
    """A cell's value. Text that holds a JSON list or object, as in CSV or in a string column of Parquet, is parsed.

    Raises:
        BadRow: text that starts like a list or an object, and is no JSON.
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return _parse(cell.strip(), "the cell")
    except BadRow as bad:
        if cell.lstrip().startswith(("[{'", "{'")):
            raise BadRow(
                bad.reason, f"{bad.detail}; it is Python's notation: write the column with json.dumps"
            ) from None
        raise


def _parse(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(
            "not_json", f"{error.msg} at character {error.pos} of {what}, which starts {text[:60]!r}"
        ) from None
    except (ValueError, RecursionError) as error:  # more digits than Python converts to an integer, or too deep
        raise BadRow("not_json", f"{error}; {what} starts {text[:60]!r}") from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _is_too_deep(value):
        raise BadRow("not_json", f"nested more than {_MAX_DEPTH} levels deep; {what} starts {text[:60]!r}")
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        children = (
            node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)
        )
        level = [child for some in children for child in some]
    return any(isinstance(node, dict | list) for node in level)
