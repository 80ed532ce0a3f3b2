"""Cells of a row as text: what is text, what is written as text, and what is said of anything else."""

from __future__ import annotations

import json
import math
from typing import Any

from data_prep.conversation import BadRow


def as_text(cell: Any, where: str) -> str | None:
    """A text, or a number in the digits of JSON, such as 4 and 0.5; None for null.

    Raises:
        BadRow: not_text: something else, such as a truth value, a list or NaN.
    """
    if cell is None or isinstance(cell, str):
        return cell
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    if is_number and math.isfinite(cell):
        return json.dumps(cell)
    remedy = ": make texts or rows of its items with a `transform`" if isinstance(cell, list) else ""
    raise BadRow("not_text", f"{where}: expected text, found {kind(cell)}{remedy}")


def as_json(value: Any, where: str) -> str:
    """A JSON value as compact text, the form in which a tool answers.

    Raises:
        BadRow: not_text: it holds what is not JSON, such as a date.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRow("not_text", f"{where}: cannot be written as JSON: {error}") from None


def kind(value: Any) -> str:
    """What a value is, in JSON's words and in bounded length, whatever is nested in it."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"{'a truth value' if isinstance(value, bool) else 'a number'} ({value!r:.40})"
        case str():
            return f"text ({value[:40]!r})"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with keys {names(value)}"
    return type(value).__name__


def names(found: Any) -> str:
    """Some names, in bounded length."""
    shown = [str(name)[:40] for name in found]
    return str(shown[:20]) if len(shown) <= 20 else f"{shown[:20]} and {len(shown) - 20} more"
