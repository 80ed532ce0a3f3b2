"""Byte spans of the rows of a JSON or JSONL file, found in bounded memory and without parsing.

The same generator is run over a whole file to slice it and over a slice to read it, so both agree on what a row is.
Nothing is lost: every line that is not blank and every element is a span, malformed or not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 1 << 20  # bytes read at once
_MAX_FIRST_LINE = 1 << 16  # bytes looked at to tell an array from a JSONL file whose first line is in brackets
_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = b" \t\r\n"
# A whole string (group 1: its closing quote; none where the chunk ends first), some brackets, or a comma.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(")?|[\[{]+|[\]}]+|,', re.DOTALL)
# All up to the next bracket or unclosed string.
_NO_BRACKET = re.compile(rb'[^"\[\]{}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"\[\]{}]*)*', re.DOTALL)

_QUOTE, _COMMA, _CLOSE = b'",]'

RowSpan = tuple[int, int, int]  # first byte, one past the last byte, line (1-based) or element (0-based) number


def spans(
    file: BinaryIO, start: int, end: int, number: int, *, is_array: bool, is_inner: bool = False
) -> Iterator[RowSpan]:
    """Spans of the rows in bytes `start` to `end`. The first one is on line `number`, or is element `number`.

    The last element ends at its array's bracket, or at `end`: of a slice, or of a file that is cut off.

    Args:
        is_inner: the array stands in an object, which goes on behind it.

    Raises:
        ValueError: something follows the end of the array.
    """
    return _elements(file, start, end, number, is_inner) if is_array else _lines(file, start, end, number)


def file_size(file: BinaryIO) -> int:
    """Bytes."""
    return os.fstat(file.fileno()).st_size


def text_start(file: BinaryIO) -> int:
    """The first byte behind the byte order mark, if there is one."""
    file.seek(0)
    return len(_BOM) if file.read(len(_BOM)) == _BOM else 0


def layout(file: BinaryIO) -> tuple[bool, int]:
    """Whether the file is one JSON array, else JSONL, and the byte where its rows start.

    The first character that is not a space decides: "[" is an array, unless the bracket closes on its own line and more
    follows (a JSONL file whose first line is a list, or "[INFO] ...").
    """
    start = text_start(file)
    first = _first_non_space(file, start)
    if first is None:
        return False, start
    file.seek(first)
    line = file.readline(_MAX_FIRST_LINE)
    is_array = line.startswith(b"[") and not (line.endswith(b"\n") and _is_whole(file, first, len(line)))
    return is_array, first + 1 if is_array else start


def _is_whole(file: BinaryIO, first: int, length: int) -> bool:
    """Whether the bracket at byte `first` closes within `length` bytes, with more text after it."""
    closed = [position for position, closes in _delimiters(file, first + 1, first + length) if closes]
    return bool(closed) and _first_non_space(file, closed[0] + 1) is not None


def _lines(file: BinaryIO, start: int, end: int, number: int) -> Iterator[RowSpan]:
    """Spans of the lines that are not blank, from line `number` at byte `start` on."""
    file.seek(start)
    begin = position = start
    blank = True
    while position < end and (part := file.readline(min(_CHUNK, end - position))):
        position += len(part)
        blank = blank and part.isspace()
        if part.endswith(b"\n") or position == end:
            if not blank:
                yield begin, position, number
            begin, number, blank = position, number + 1, True


def _elements(file: BinaryIO, start: int, end: int, number: int, is_inner: bool) -> Iterator[RowSpan]:
    """Spans between the commas of the array that holds byte `start`, from element `number` on."""
    begin = start
    for position, closes in _delimiters(file, start, end):
        is_empty_array = closes and number == 0 and _first_non_space(file, begin) == position
        if not is_empty_array:
            yield begin, position, number
        if closes:
            if not is_inner:
                _refuse_more(file, position + 1)
            return
        begin, number = position + 1, number + 1
    yield begin, end, number


def _refuse_more(file: BinaryIO, position: int) -> None:
    more = _first_non_space(file, position)
    if more is not None:
        file.seek(more)
        raise ValueError(
            f"the JSON array ends at byte {position}, but more follows at byte {more}: {file.read(40)!r}; "
            "one file holds one array: split it, mend it, or write one object per line (JSONL)"
        )


def _delimiters(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bool]]:
    """(byte, False) of each comma of the array that holds byte `start`, then (byte, True) of its closing bracket.

    Commas in strings and in nested values are passed over. Nothing is validated but the balance of the brackets, so an
    element that is malformed within its brackets and quotes stays one element.
    """
    depth = 1
    carry = b""
    for offset, chunk in _chunks(file, start, end):
        chunk, offset, carry = carry + chunk, offset - len(carry), b""
        position = 0
        while token := _next_token(chunk, position, depth):
            position, kind = token.end(), chunk[token.start()]
            if kind in b"[{":
                depth += len(token[0])
            elif kind in b"]}" and depth > 1:
                closed = min(depth - 1, len(token[0]))
                depth, position = depth - closed, token.start() + closed
            elif kind == _CLOSE:
                yield offset + token.start(), True
                return
            elif kind in b"}":  # at depth 1: it belongs to a malformed element
                position = token.start() + 1
            elif kind == _COMMA and depth == 1:
                yield offset + token.start(), False
            elif kind == _QUOTE and not token[1]:  # the chunk ends inside a string, or inside an escape in one
                carry = b'"' + chunk[position:]
                break


def _next_token(chunk: bytes, position: int, depth: int) -> re.Match[bytes] | None:
    if depth > 1:  # commas do not matter: much faster
        position = _NO_BRACKET.match(chunk, position).end()  # type: ignore[union-attr]  # it can match nothing at all
    return _TOKEN.search(chunk, position)


def _first_non_space(file: BinaryIO, start: int) -> int | None:
    for offset, chunk in _chunks(file, start, file_size(file)):
        rest = chunk.lstrip(_JSON_SPACE)
        if rest:
            return offset + len(chunk) - len(rest)
    return None


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(byte, content) of consecutive chunks. Other reads of the file in between do no harm."""
    while start < end:
        file.seek(start)
        chunk = file.read(min(_CHUNK, end - start))
        if not chunk:
            return
        yield start, chunk
        start += len(chunk)
