"""Rows of a CSV or TSV file, found and split in one pass by Python's csv reader, in bounded memory.

The reader is run over lines that are decoded byte by byte (latin-1), so that it counts bytes and never fails to decode;
cells become UTF-8 text afterwards. It is strict: a quote that does not close its field is an error, not a field that
swallows the rows behind it. After an error only the line where the row starts is given up, and reading goes on with
the next line, so one stray quote costs one row. The lines that an open quote has run over cannot open one that stays
open themselves (it would have ended there), so each line is read a few times at most.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from data_prep.conversation import BadRow
from data_prep.sources.text_encodings import UTF8, undecodable

DELIMITERS = {"csv": ",", "tsv": "\t"}
_MAX_COLUMNS = 10_000  # of a header; more is a file of another kind
_BLANK = (b"\n", b"\r\n")
_CSV_ERRORS = {  # in the words of the csv module -> ours
    "end of data": "a quote that is not closed before the file or slice ends",
    "new-line character": "a carriage return that is not part of a line end",
    "expected after": "text between a closing quote and the end of its field",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row: one line, or more where quoted fields hold line ends."""

    begin: int  # first byte
    end: int  # one past the last byte
    line: int  # 1-based number of its first line
    next_line: int  # number of the line behind it
    starts: bytes  # its first bytes, to show
    is_ascii: bool
    has_nul: bool
    fields: list[str] | BadRow  # bytes as characters (latin-1)


@dataclass(frozen=True, slots=True)
class Header:
    """The columns' names, and where the rows start."""

    names: list[str]
    end: int  # first byte behind it
    next_line: int  # number of the line behind it


def read_header(file: BinaryIO, start: int, delimiter: str, max_row: int) -> Header | None:
    """The first row, which names the columns; None in a blank file.

    Raises:
        ValueError: it is no CSV row, is not UTF-8, or gives two columns the same name.
    """
    size = file.seek(0, 2)
    record = next(records(file, start, size, 1, delimiter, max_row), None)
    if record is None:
        return None
    cells = _text(record, UTF8)
    if isinstance(cells, BadRow):
        raise ValueError(f"the first row, which has to name the columns, cannot be read: {cells}")
    if len(cells) > _MAX_COLUMNS:
        raise ValueError(f"the first row names {len(cells)} columns; a file may have {_MAX_COLUMNS}: is it a CSV file?")
    names = [name or f"column_{number}" for number, name in enumerate(cells, 1)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(
            f"the first row names two columns {twice[0][:60]!r}, and a row can hold only one of them: "
            "rename one. If the file has no such first row, add one that names the columns"
        )
    return Header(names, record.end, record.next_line)


def records(file: BinaryIO, start: int, end: int, line: int, delimiter: str, max_row: int) -> Iterator[Record]:
    """The rows in bytes `start` to `end`, blank lines left out; `line` is the number of the first line."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * max_row))  # its own limit is for all of the process
    lines = _Lines(file, start, end, max_row)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_row()
        fields: list[str] | BadRow
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLarge) as error:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)  # lets go of what it had gathered
            fields = lines.give_up(error)
        line += lines.num_blank
        next_line = line + lines.num_lines
        if fields:
            flags = lines.is_ascii, lines.has_nul
            yield Record(lines.begin, lines.position, line, next_line, lines.starts, *flags, fields)
        line = next_line


def to_row(record: Record, names: list[str], encoding: str) -> dict[str, Any] | BadRow:
    """The cells by their columns' names. They are text, all of them."""
    cells = _text(record, encoding)
    if isinstance(cells, BadRow):
        return cells
    if len(cells) != len(names):
        counts = f"{len(cells)} fields, where the first row names {len(names)} columns"
        return BadRow("wrong_columns", f"{counts}; the row starts {record.starts!r}")
    return dict(zip(names, cells, strict=True))


def _text(record: Record, encoding: str) -> list[str] | BadRow:
    if isinstance(record.fields, BadRow):
        return record.fields
    if record.has_nul:
        hint = "is the file UTF-16? Then state `encoding: utf-16-le`"
        return BadRow("nul_byte", f"a NUL byte in the row, which starts {record.starts!r}; {hint}")
    if record.is_ascii:
        return record.fields
    try:
        return [field.encode("latin-1").decode(UTF8) for field in record.fields]
    except UnicodeDecodeError as error:
        return undecodable(error, encoding, "the cell")


class _TooLarge(Exception):
    """A row of more bytes than a row may have."""


class _Lines:
    """The lines of bytes `start` to `end` for a csv reader, and what there is to know of those of the present row."""

    def __init__(self, file: BinaryIO, start: int, end: int, max_row: int):
        file.seek(start)
        self.position = start  # byte behind the last line given
        self._file, self._end, self._max_row = file, end, max_row

    def __iter__(self) -> _Lines:
        return self

    def start_row(self) -> None:
        """The next line that is not blank begins a row."""
        self.begin, self.num_lines, self.num_blank, self.starts = self.position, 0, 0, b""
        self.is_ascii, self.has_nul = True, False

    def __next__(self) -> str:
        line = self._read()
        while line in _BLANK and self.num_lines == 0:
            self.begin, self.num_blank = self.position, self.num_blank + 1
            line = self._read()
        if not line:
            raise StopIteration
        self.num_lines += 1
        if len(line) > self._max_row:
            self._skip_line(line)
        if self.num_lines == 1:
            self.starts, self._first_end = line[:60], self.position
        if self.position - self.begin > self._max_row:
            raise _TooLarge
        self.is_ascii = self.is_ascii and line.isascii()
        text = line.decode("latin-1")
        if "\0" not in text:
            return text
        self.has_nul = True
        return text.replace("\0", "\1")  # Python 3.10's csv reader refuses it

    def _read(self) -> bytes:
        line = self._file.readline(min(self._end - self.position, self._max_row + 1))
        self.position += len(line)
        return line

    def give_up(self, error: Exception) -> BadRow:
        """The row ends with its first line; what is wrong with it."""
        self.position, self.num_lines = self._first_end, 1
        self._file.seek(self.position)
        size, starts = self.position - self.begin, f"the row starts {self.starts!r}"
        if size > self._max_row:
            return BadRow("too_large", f"a line of {size} bytes; a row may have {self._max_row} at most; {starts}")
        if isinstance(error, _TooLarge):
            return BadRow("not_csv", f"a quote that is not closed within {self._max_row} bytes; {starts}")
        known = next((text for sign, text in _CSV_ERRORS.items() if sign in str(error)), str(error))
        return BadRow("not_csv", f"{known}; {starts}")

    def _skip_line(self, line: bytes) -> None:
        """To its end, without keeping it."""
        while line and not line.endswith(b"\n"):
            line = self._file.readline(min(self._end - self.position, 1 << 20))
            self.position += len(line)
