"""Rows of a Parquet or Arrow file, as plain Python values, decoded a batch at a time.

A Parquet reader can start at a row group, an Arrow one only at the start of the file, and to decode up to a slice's
first row takes time. So the place where a slice ended is kept, and the process's next slice of the same file goes on
from it: a process decodes a file once at most, however finely it is sliced.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from data_prep.conversation import BadRow

TABLE_FORMATS = ("parquet", "arrow")
_ROWS_AT_ONCE = 1024  # decoded, and turned into Python values, together
_BYTES_AT_ONCE = 1 << 25  # fewer rows where that many hold more
_MAX_BATCH = 1 << 29  # bytes; an Arrow record batch is held as a whole
_MAX_ROWS_PER_BYTE = 10_000  # a file that says it has more is damaged: equal rows compress well, but not so well
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream; without it, rows may be missing

Batches = Iterator[tuple[int, Any]]  # (number of the first row, pyarrow.RecordBatch)


def count_rows(path: Path, format: str) -> list[tuple[int, int]]:
    """(rows, bytes) of each of the file's row groups or record batches.

    Raises:
        ValueError: it is damaged, or has two columns of the same name.
    """
    with _damage_is_value_error():
        if format == "parquet":
            metadata = _parquet(path).metadata
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            counts = [(group.num_rows, group.total_byte_size) for group in groups]
            if any(rows < 0 for rows, _ in counts) or sum(rows for rows, _ in counts) != metadata.num_rows:
                raise ValueError("its row groups do not add up to its rows")
            return counts
        return _count_arrow_rows(path)


def read_rows(path: Path, format: str, start: int, end: int) -> Iterator[dict[str, Any] | BadRow]:
    """Rows `start` to `end`; fewer where the file has fewer.

    Raises:
        ValueError: the file is damaged.
    """
    with _damage_is_value_error():
        place = _take_place(path, format, start)
        for position, batch in chain(place.kept, place.batches):
            stop = position + batch.num_rows
            if format == "arrow" and stop > start and not (place.kept and position == place.position):
                batch.validate(full=True)  # offsets that point elsewhere would crash the process
            first, last = max(start, position), min(end, stop)
            if first < last:
                yield from _values(batch.slice(first - position, last - first))
            if end <= stop:
                _PLACES[:] = [_Place(place.key, position, place.batches, [(position, batch)])]
                return


@contextmanager
def _damage_is_value_error() -> Iterator[None]:
    """What pyarrow raises for a damaged file is of many kinds."""
    try:
        yield
    except (ValueError, OSError, MemoryError, NotImplementedError, KeyError, TypeError) as error:
        text = str(error).partition("\n")[0][:300] or type(error).__name__
        raise ValueError(f"cannot be read: {text}: copy it or write it again") from error


# Values.


def _values(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    step = _rows_at_once(batch.num_rows, batch.nbytes)
    for start in range(0, batch.num_rows, step):
        window = batch.slice(start, step)
        try:
            yield from _plain(window)
        except (ValueError, KeyError, OverflowError, NotImplementedError):
            # A cell is at fault; the error does not say which.
            yield from (_plain_row(window.slice(row, 1)) for row in range(window.num_rows))


def _rows_at_once(num_rows: int, num_bytes: int) -> int:
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE * num_rows // max(1, num_bytes)))


def _plain(batch: Any) -> list[dict[str, Any]]:
    has_maps = any("map<" in str(kind) for kind in batch.schema.types)
    rows = batch.to_pylist(maps_as_pydicts="strict") if has_maps else batch.to_pylist()  # the former is slower
    are_nested = any(kind.num_fields for kind in batch.schema.types)
    return [without_absent(row) for row in rows] if are_nested else rows


def without_absent(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the nulls inside its columns' structs.

    In a table all structs of a column have the same fields, so one that a row did not have comes back as null: tools
    and calls would be trained with arguments that nobody gave. A null that was meant looks the same.
    """
    return {name: _pruned(value) if isinstance(value, dict | list) else value for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def _plain_row(batch: Any) -> dict[str, Any] | BadRow:
    try:
        return _plain(batch)[0]
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"{error.reason} at byte {error.start} of a cell, which starts {error.object[:60]!r}")
    except (ValueError, KeyError, OverflowError, NotImplementedError) as error:  # equal keys; a date beyond Python's
        return BadRow("not_readable", f"a cell cannot be turned into a Python value: {type(error).__name__}: {error}")


# Where the last slice ended.


@dataclass
class _Place:
    key: tuple[Any, ...]  # of the file
    position: int  # number of the row that comes next
    batches: Batches
    kept: list[tuple[int, Any]] = field(default_factory=list)  # the batch in which a slice ended comes before those


_PLACES: list[_Place] = []  # one at most; taken out while it is in use, since two slices may be read in turns


def _take_place(path: Path, format: str, start: int) -> _Place:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    place = _PLACES.pop() if _PLACES else None
    file = _parquet(path) if format == "parquet" else None
    group, group_start = _row_group(file, start) if file else (0, 0)
    if place and place.key == key and group_start <= place.position <= start:
        return place
    return _Place(key, group_start, _parquet_batches(file, group, group_start) if file else _arrow_batches(path))


# Parquet.


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    # Buffered: otherwise a whole column of a row group, which may be most of the file, is read at once.
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    _check_columns(file.schema_arrow.names)
    num_rows, size = file.metadata.num_rows, path.stat().st_size
    if not 0 <= num_rows <= _MAX_ROWS_PER_BYTE * size:
        raise ValueError(f"says it has {num_rows} rows in {size} bytes")
    return file


def _row_group(file: Any, row: int) -> tuple[int, int]:
    """Number and first row of the row group that holds the row."""
    sizes = (file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups))
    starts = [0, *accumulate(sizes)]
    number = next((number for number, end in enumerate(starts[1:]) if row < end), len(starts) - 1)
    return number, starts[number]


def _parquet_batches(file: Any, first_group: int, row: int) -> Batches:
    for number in range(first_group, file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        rows = _rows_at_once(group.num_rows, group.total_byte_size)
        for batch in file.iter_batches(rows, row_groups=[number], use_threads=False):
            yield row, batch
            row += batch.num_rows


# Arrow: the stream and the file form.


def _count_arrow_rows(path: Path) -> list[tuple[int, int]]:
    """Maps the file, so that only what is looked at is read, and lets go of it again batch by batch."""
    import pyarrow as pa

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    counts = []
    for number, batch in enumerate(_record_batches(pa.BufferReader(pa.py_buffer(mapped)))):
        _check_batch(number, batch)
        counts.append((batch.num_rows, batch.nbytes))
        mapped.madvise(mmap.MADV_DONTNEED)
    return counts


def _arrow_batches(path: Path) -> Batches:
    """Not mapped, so that one batch is in memory and not the file."""
    import pyarrow as pa

    row = 0
    with pa.OSFile(str(path)) as file:
        for batch in _record_batches(file):
            yield row, batch
            row += batch.num_rows


def _record_batches(file: Any) -> Iterator[Any]:
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return _arrow_file(file) if is_file else _arrow_stream(file)


def _arrow_file(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    reader = pa.ipc.open_file(file)
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _arrow_stream(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    yield from pa.ipc.open_stream(file)
    end = file.tell()
    file.seek(max(0, end - len(_ARROW_END)))
    if file.read(len(_ARROW_END)) != _ARROW_END:
        raise ValueError("the stream has no end mark, so rows may be missing")
    if end != file.size():
        raise ValueError(f"more follows the end of the stream (byte {end}); one file holds one stream")


def _check_batch(number: int, batch: Any) -> None:
    batch.validate()  # at no cost; `nbytes` trusts the offsets
    if number == 0:
        _check_columns(batch.schema.names)
    if batch.nbytes > _MAX_BATCH:
        raise ValueError(
            f"record batch {number} has {batch.nbytes} bytes, and a batch is held in memory as a whole, so it may have "
            f"{_MAX_BATCH} at most: smaller ones come from write_table(table, max_chunksize=1000)"
        )


def _check_columns(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are named {twice[0][:60]!r}, and a row can hold only one of them (rename one)")
