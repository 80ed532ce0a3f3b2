"""Raw rows of a source: files of every form and hub data sets, cut into slices that any worker can read alone.

Slicing finds where each row lies (json_spans, csv_rows, table_rows); reading finds the rows of a slice again and turns
them into values one at a time. Memory is bounded by a chunk of the file and one row, whatever the file's size. Files
that are remote, compressed or in another encoding are read from a plain copy (plain_copies).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.conversation import BadRow
from data_prep.recipe import Source
from data_prep.sources.csv_rows import DELIMITERS, Header, read_header, records, to_row
from data_prep.sources.hub_data_sets import hub_data_set
from data_prep.sources.input_files import file_identity, source_files
from data_prep.sources.json_rows import parse_row, parse_rows
from data_prep.sources.json_spans import RowSpan, file_size, layout, spans, text_start
from data_prep.sources.plain_copies import local_path, localize
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.reshaped_rows import array_in_field, reshaped
from data_prep.sources.table_rows import TABLE_FORMATS, count_rows, read_rows, without_absent
from data_prep.sources.text_encodings import UTF8

TEXT_FORMATS = frozenset({"json", "nested", "jsonl", *DELIMITERS})
_ARRAYS = ("json", "nested")
_SLICE_BYTES = 1 << 25  # after which a slice of long rows ends, since its tokens are held in memory
_SHORT_SLICE = 1 << 22  # bytes of a JSON array that are parsed at once; the values take several times as much
_MAX_ROW = 1 << 24  # bytes; a longer "row" is a lost newline or quote, and its values could fill the memory


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of raw rows of one source. Plain values only, so it pickles and goes through JSON."""

    source: str  # the source's name
    index: int  # number of the slice within its source
    path: str | None  # file or URL; None for a hub data set
    start: int  # first byte (JSON, CSV; of the plain copy, if there is one) or first row (Parquet, Arrow, hub data set)
    end: int  # one past the last byte or row
    first_row: int  # row number, within the whole source (over all its files), of the slice's first row
    num_rows: int  # rows in it, malformed ones included
    first_line: int  # 1-based line of the first row (JSONL, CSV), else the row's 0-based number in its file
    format: str = "jsonl"  # json (an array), nested (an array in an object), jsonl, csv, tsv, parquet or arrow
    encoding: str = UTF8  # of a text file
    copy: str | None = None  # name of the plain copy in the cache folder; None where the file itself is read


def slice_source(source: Source, rows_per_slice: int) -> list[Slice]:
    """Cut a source, or its first `source.first` rows, into slices of `rows_per_slice` rows (fewer at a file's end, and
    where they are long).

    An encoding that had to be detected is reported on stderr, once.

    Raises:
        ValueError: no such input, a form that is not read, a damaged file, no rows, no usable CSV header, or text after
            the end of a JSON array.
    """
    if source.path is None:
        slices = _slice_hub(source, rows_per_slice)
    else:
        slices = []
        remarks: dict[str, list[str]] = {}
        for file in source_files(source):
            with _naming(source, file):
                slices += _slice_file(source, file, rows_per_slice, slices, remarks)
        _report(source, remarks)
    if not slices:
        raise ValueError(f"source {source.name!r}: no rows in {source.path or source.dataset}")
    return slices


def read_slice(source: Source, slice_: Slice) -> Iterator[RawRow]:
    """The slice's rows in order, unreadable ones too, reshaped as the recipe asks (reshaped_rows).

    Raises:
        ValueError: the input has changed since it was sliced, or is damaged.
    """
    return reshaped(source, _raw_rows(source, slice_), is_inner=slice_.format == "nested")


def _raw_rows(source: Source, slice_: Slice) -> Iterator[RawRow]:
    rows = _read_hub_slice(source, slice_) if slice_.path is None else _read_file_slice(source, slice_)
    found = 0
    for row in rows:
        found += 1
        yield row
    if found != slice_.num_rows:
        raise ValueError(
            f"source {source.name!r}, slice {slice_.index}: expected {slice_.num_rows} rows in "
            f"{slice_.path or source.dataset}, found {found}: the input changed after it was sliced; prepare it again"
        )


def source_identity(source: Source) -> list[dict[str, Any]]:
    """What the input is, JSON-able: work made from input of another identity must not be reused."""
    if source.path is None:
        hub = {key: getattr(source, key) for key in ("dataset", "subset", "split", "revision")}
        return [{**hub, "fingerprint": hub_data_set(source)._fingerprint}]
    return [file_identity(source, file) for file in source_files(source)]


# Files.


def _slice_file(
    source: Source, file: Path | str, rows_per_slice: int, before: list[Slice], remarks: dict[str, list[str]]
) -> list[Slice]:
    row = before[-1].first_row + before[-1].num_rows if before else 0
    wanted = None if source.first is None else source.first - row
    if wanted == 0:
        return []
    local = localize(source, file)
    if local.remark:
        remarks.setdefault(local.encoding, []).append(f"{file}: {local.remark}")
    if local.format in TABLE_FORMATS:
        format = local.format
        ranges = list(_row_ranges(count_rows(local.path, format), rows_per_slice, wanted))
    else:
        with local.path.open("rb") as opened:
            format, found = _find_rows(source, opened, local.format)
            ranges = list(_grouped(islice(found, wanted), rows_per_slice))
    slices: list[Slice] = []
    for index, (start, end, count, number) in enumerate(ranges, len(before)):
        place = (source.name, index, str(file), start, end, row, count, number)
        slices.append(Slice(*place, format, local.encoding, local.copy))
        row += count
    return slices


RowRange = tuple[int, int, int, int]  # first and one past the last byte or row, number of rows, first line or number


def _row_ranges(counts: list[tuple[int, int]], rows_per_slice: int, wanted: int | None) -> Iterator[RowRange]:
    """Ranges of rows, which end earlier where the rows are long, as in `_grouped`.

    Args:
        counts: (rows, bytes) of consecutive groups of rows that are about equally long.
        wanted: how many rows, from the first on; None: all.
    """
    start, row, size, end = 0, 0, 0.0, sum(rows for rows, _ in counts)
    end = end if wanted is None else min(end, wanted)
    for rows, num_bytes in counts:
        end_of_group = min(row + rows, end)
        while row < end_of_group:
            per_row = num_bytes / rows
            room = math.ceil((_SLICE_BYTES - size) / per_row) if per_row else rows
            end_by_rows = start + rows_per_slice
            step = min(end_of_group - row, end_by_rows - row, max(1, room))
            row, size = row + step, size + step * per_row
            if row in (end, end_by_rows) or size >= _SLICE_BYTES:
                yield start, row, row - start, start
                start, size = row, 0.0


def _grouped(found: Iterator[RowSpan], rows_per_slice: int) -> Iterator[RowRange]:
    """Ranges of the rows that were found one by one."""
    for begin, end, number in found:
        count = 1
        while count < rows_per_slice and end - begin < _SLICE_BYTES and (span := next(found, None)):
            end = span[1]
            count += 1
        yield begin, end, count, number


def _find_rows(source: Source, file: BinaryIO, format: str) -> tuple[str, Iterator[RowSpan]]:
    """The format, with JSON and JSON lines distinguished, and the place of each row of a text file."""
    size = file_size(file)
    if format in DELIMITERS:
        header = _header(file, format)
        if header is None:
            return format, iter(())
        return format, _csv_spans(file, header, size, format)
    if source.format == "jsonl":
        return "jsonl", spans(file, text_start(file), size, 1, is_array=False)
    if source.field and (inner := array_in_field(source, file)) is not None:
        return "nested", spans(file, inner, size, 0, is_array=True, is_inner=True)
    is_array, start = layout(file)
    if source.format == "json" and not is_array:
        raise ValueError("`format: json` is one array of objects in brackets, and this is not: is it `format: jsonl`?")
    return "json" if is_array else "jsonl", spans(file, start, size, 0 if is_array else 1, is_array=is_array)


def _csv_spans(file: BinaryIO, header: Header, end: int, format: str) -> Iterator[RowSpan]:
    for record in records(file, header.end, end, header.next_line, DELIMITERS[format], _MAX_ROW):
        yield record.begin, record.end, record.line


def _header(file: BinaryIO, format: str) -> Header | None:
    return read_header(file, text_start(file), DELIMITERS[format], _MAX_ROW)


def _read_file_slice(source: Source, slice_: Slice) -> Iterator[RawRow]:
    with _naming(source, slice_.path):
        path = local_path(source, slice_.path or "", slice_.encoding, slice_.copy)
        for number, (place, value) in enumerate(_placed_rows(path, slice_), slice_.first_row):
            yield RawRow(number, f"{slice_.path}{place}", value)


PlacedRow = tuple[str, dict[str, Any] | BadRow]  # ":17" or "[16]", value


def _placed_rows(path: Path, slice_: Slice) -> Iterator[PlacedRow]:
    if slice_.format in TABLE_FORMATS:
        return _read_table(path, slice_)
    return _read_csv(path, slice_) if slice_.format in DELIMITERS else _read_json(path, slice_)


def _read_table(path: Path, slice_: Slice) -> Iterator[PlacedRow]:
    for number, value in enumerate(read_rows(path, slice_.format, slice_.start, slice_.end), slice_.start):
        yield f"[{number}]", value


def _read_csv(path: Path, slice_: Slice) -> Iterator[PlacedRow]:
    with path.open("rb", buffering=1 << 20) as file:
        header = _header(file, slice_.format)
        names = header.names if header else []
        delimiter = DELIMITERS[slice_.format]
        for record in records(file, slice_.start, slice_.end, slice_.first_line, delimiter, _MAX_ROW):
            yield f":{record.line}", to_row(record, names, slice_.encoding)


def _read_json(path: Path, slice_: Slice) -> Iterator[PlacedRow]:
    with path.open("rb") as scan, path.open("rb", buffering=1 << 20) as data:
        is_array, size = slice_.format in _ARRAYS, file_size(scan)
        if is_array and (rows := _read_elements(data, slice_, size)) is not None:
            yield from ((f"[{number}]", value) for number, value in enumerate(rows, slice_.first_line))
            return
        found = spans(scan, slice_.start, slice_.end, slice_.first_line, is_array=is_array)
        for begin, end, place in found:
            # A whole element has a comma or a bracket behind it.
            is_cut_off = is_array and end == size
            value = _cut_off(begin, end) if is_cut_off else _read_row(data, begin, end, slice_.encoding)
            yield f"[{place}]" if is_array else f":{place}", value


def _read_elements(file: BinaryIO, slice_: Slice, size: int) -> list[dict[str, Any]] | None:
    """The slice's rows at once, if it is short and none is faulty. One that ends where the file does is cut off.

    An empty element alone in its slice (`[{}, , {}]`) makes an empty array, which is no fault to the parser.
    """
    if slice_.end - slice_.start > min(_SHORT_SLICE, _MAX_ROW) or slice_.end == size:
        return None
    file.seek(slice_.start)
    rows = parse_rows(file.read(slice_.end - slice_.start))
    return rows if rows is not None and len(rows) == slice_.num_rows else None


def _read_row(file: BinaryIO, begin: int, end: int, encoding: str) -> dict[str, Any] | BadRow:
    if end - begin > _MAX_ROW:
        return BadRow("too_large", f"{end - begin} bytes from byte {begin} on; a row may have {_MAX_ROW} at most")
    file.seek(begin)
    return parse_row(file.read(end - begin), encoding)


def _cut_off(begin: int, end: int) -> BadRow:
    return BadRow("not_json", f"the file ends (byte {end}) inside this element, which starts at byte {begin}: cut off?")


@contextmanager
def _naming(source: Source, file: Path | str | None) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        if text.startswith(f"source {source.name!r}"):
            raise
        raise ValueError(f"source {source.name!r}: {file}: {text}") from error


_REPORTED: set[str] = set()


def _report(source: Source, remarks: dict[str, list[str]]) -> None:
    for found in remarks.values():
        more = f" (and {len(found) - 1} more files alike)" if len(found) > 1 else ""
        line = f"source {source.name!r}: {found[0]}{more}. State the source's `encoding` to settle it"
        if line not in _REPORTED:
            print(line, file=sys.stderr)
        _REPORTED.add(line)


# Hub data sets.


def _slice_hub(source: Source, rows_per_slice: int) -> list[Slice]:
    if source.format != "auto" or source.encoding:
        raise ValueError(f"source {source.name!r}: `format` and `encoding` belong to files, not to a hub data set")
    dataset = hub_data_set(source)
    counts = [(len(dataset), dataset.data.nbytes)]
    ranges = enumerate(_row_ranges(counts, rows_per_slice, source.first))
    return [Slice(source.name, index, None, start, end, start, n, start) for index, (start, end, n, _) in ranges]


def _read_hub_slice(source: Source, slice_: Slice) -> Iterator[RawRow]:
    dataset = hub_data_set(source)
    rows = dataset.select(range(slice_.start, min(slice_.end, len(dataset))))
    for number, value in enumerate(rows, slice_.start):
        yield RawRow(number, f"{source.dataset}[{number}]", without_absent(value))
