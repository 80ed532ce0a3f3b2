"""JSON files that are one object: the array of rows that one of its keys holds, or columns, each a list of cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.sources.json_rows import strict_loads

_WINDOW = 1 << 24  # bytes in which a key has to be found; what stands before it is a version, a licence and the like
_MAX_FIRST_LINE = 1 << 16  # bytes looked at to tell one object from a JSONL file
_MAX_COLUMNS = 1 << 28  # bytes of a file of columns, which is parsed as a whole
_SPACE = re.compile(r"[ \t\r\n]*")
_ARRAY_OF_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")
_DECODER = json.JSONDecoder(strict=False)
# {"column": ["a cell", ...]} or pandas' {"column": {"0": "a cell", ...}}
_COLUMN_LIKE = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(?:\[\s*[^{\s]|\{\s*"\d+"\s*:)')


def inner_array(file: BinaryIO, field: str) -> tuple[int | None, list[str]]:
    """The byte behind the bracket of the array that the file's only object holds under a key, and the keys before it;
    no byte where the file is no such object (an array, or lines).

    Raises:
        ValueError: there is no such key in the first 16 MiB.
    """
    text, start = _one_object(file)
    if start is None:
        return None, []
    keys: list[str] = []
    for key, position in _members(text, start):
        name = _in_utf8(key)
        if name == field:
            return position + 1 if text[position] == "[" else None, keys
        keys.append(name)
    raise ValueError(f"expected `field: {field}` within the file's first {_WINDOW} bytes; found keys {keys[:20]}")


def array_keys(file: BinaryIO) -> list[str]:
    """The keys of the file's only object that hold an array of objects; none where the file is no such object."""
    text, start = _one_object(file)
    if start is None:
        return []
    return [_in_utf8(key) for key, position in _members(text, start) if _ARRAY_OF_OBJECTS.match(text, position)]


def columns(path: Path) -> dict[str, list[Any]] | None:
    """The cells of each column, if the file is one object of columns of the same length; else None."""
    with path.open("rb") as file:
        head = file.read(_MAX_FIRST_LINE).removeprefix(b"\xef\xbb\xbf")
    if not _COLUMN_LIKE.match(head) or _is_lines(head) or path.stat().st_size > _MAX_COLUMNS:
        return None
    try:
        value = strict_loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    found = {name: _cells(cells) for name, cells in value.items()}
    lengths = {None if cells is None else len(cells) for cells in found.values()}
    is_table = len(found) > 1 and len(lengths) == 1 and lengths.isdisjoint({None, 0}) and _same_rows(value)
    return {name: cells for name, cells in found.items() if cells is not None} if is_table else None


def rows_of_columns(path: Path) -> Iterator[bytes]:
    """A file of columns as a JSON array of rows."""
    found = columns(path) or {}
    separator = b"[\n"
    for cells in zip(*found.values(), strict=True):
        yield separator + json.dumps(dict(zip(found, cells, strict=True))).encode()
        separator = b",\n"
    yield b"\n]\n"


def _one_object(file: BinaryIO) -> tuple[str, int | None]:
    """The first 16 MiB, where a character is a byte, and where the only object begins; None where there is none."""
    file.seek(0)
    raw = file.read(_WINDOW)
    start = raw.find(b"{")
    if raw[: max(0, start)].strip(b"\xef\xbb\xbf \t\r\n") or start < 0 or _is_lines(raw[start:]):
        return "", None
    return raw.decode("latin-1"), start


def _cells(column: Any) -> list[Any] | None:
    """Of a list, or of an object whose keys are the numbers of rows."""
    if isinstance(column, dict) and all(key.isdecimal() for key in column):
        return list(column.values())
    is_list = isinstance(column, list) and not any(isinstance(cell, dict) for cell in column)
    return column if is_list else None


def _same_rows(value: dict[str, Any]) -> bool:
    """Whether columns whose cells are numbered have the same numbers, in the same order."""
    numbers = {tuple(column) for column in value.values() if isinstance(column, dict)}
    return len(numbers) <= 1


def _is_lines(raw: bytes) -> bool:
    """Whether the first line is a whole object, and more follows."""
    line, _, rest = raw.partition(b"\n")
    if len(line) > _MAX_FIRST_LINE or not rest.strip():
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _members(text: str, start: int) -> Iterator[tuple[str, int]]:
    """(key, position of its value) of the members of the object at `start`, as far as the text goes."""
    position = _skip(text, start + 1)
    while position < len(text) and text[position] == '"':
        try:
            key, position = _DECODER.raw_decode(text, position)
            position = _skip(text, position)
            if text[position : position + 1] != ":":
                return
            position = _skip(text, position + 1)
            if position >= len(text):
                return
            yield key, position
            _, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        position = _skip(text, position)
        if text[position : position + 1] != ",":
            return
        position = _skip(text, position + 1)


def _in_utf8(key: str) -> str:
    """A key whose characters are bytes, unless it is written with escapes."""
    try:
        return key.encode("latin-1").decode()
    except UnicodeError:
        return key


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
