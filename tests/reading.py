"""Reading files in tests: a source, its rows, and their values."""

from __future__ import annotations

from pathlib import Path

from data_prep.conversation import BadRow
from data_prep.readers import RawRow, read_slice, slice_source
from data_prep.recipe import Source


def source_of(path: Path | str | list[str], **options) -> Source:
    """A source of this path."""
    return Source(name="s", path=path if isinstance(path, list) else str(path), form="alpaca", **options)


def write(path: Path, content: bytes | str) -> Path:
    """The path, with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_all(source: Source, rows_per_slice: int = 2) -> list[RawRow]:
    """All rows of all slices."""
    return [row for piece in slice_source(source, rows_per_slice) for row in read_slice(source, piece)]


def values(rows: list[RawRow]) -> list:
    """Values, and the reason in place of each bad row."""
    return [row.value.reason if isinstance(row.value, BadRow) else row.value for row in rows]
