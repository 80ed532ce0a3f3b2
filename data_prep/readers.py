"""Raw input to dict rows: files of every form and hub data sets, cut into slices that any worker can read alone.

Slicing finds where each row lies (json_spans, csv_records, tables); reading finds the rows of a slice again and turns
them into values one at a time. Memory is bounded by a chunk of the file and one row, whatever the file's size. Remote,
compressed and otherwise encoded files are read from a plain copy (local_copies).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.conversation import BadRow
from data_prep.csv_records import DELIMITERS, Header, read_header, records, to_row
from data_prep.encodings import UTF8
from data_prep.json_rows import parse_row, parse_rows
from data_prep.json_spans import Span, file_size, layout, spans, text_start
from data_prep.local_copies import local_path, localize
from data_prep.opening import file_identity, source_files
from data_prep.recipe import Source
from data_prep.tables import TABLE_FORMATS, count_rows, read_rows, without_absent

__all__ = ["TEXT_FORMATS", "RawRow", "Slice", "read_slice", "slice_source", "source_files", "source_identity"]

TEXT_FORMATS = frozenset({"json", "jsonl", *DELIMITERS})
_SLICE_BYTES = 1 << 25  # after which a slice of long rows ends, since its tokens are held in memory
_SHORT_SLICE = 1 << 22  # bytes of a JSON array that are parsed at once; the values take several times as much
_MAX_ROW = 1 << 24  # bytes; a longer "row" is a lost newline or quote, and its values could fill the memory


@dataclass(frozen=True, slots=True)
class Slice:
    """A restartable piece of one source. Plain values only, so it pickles and goes through JSON."""

    source: str  # the source's name
    index: int  # number of the slice within its source
    path: str | None  # file or URL; None for a hub data set
    start: int  # first byte (JSON, CSV; of the plain copy, if there is one) or first row (Parquet, Arrow, hub data set)
    end: int  # one past the last byte or row
    first_row: int  # row number, within the whole source (over all its files), of the slice's first row
    num_rows: int  # rows in it, malformed ones included
    first_line: int  # 1-based line of the first row (JSONL, CSV), else the row's 0-based number in its file
    format: str = "jsonl"  # json (an array), jsonl, csv, tsv, parquet or arrow
    encoding: str = UTF8  # of a text file
    copy: str | None = None  # name of the plain copy in the cache folder; None where the file itself is read


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found."""

    number: int  # 0-based within the source
    where: str  # "data/x.jsonl:17" (line; also CSV), "data/x.json[16]" (number in its file) or "hub/id[16]"
    # A BadRow where it could not be read: not_json, repeated_key, not_an_object, not_csv, wrong_columns, nul_byte,
    # not_utf8, not_decodable (another encoding), not_readable (a Parquet or Arrow cell), too_large.
    value: dict[str, Any] | BadRow


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


def read_slice(source: Source, piece: Slice) -> Iterator[RawRow]:
    """The slice's rows in order, unreadable ones too.

    Raises:
        ValueError: the input has changed since it was sliced, or is damaged.
    """
    rows = _read_hub_slice(source, piece) if piece.path is None else _read_file_slice(source, piece)
    found = 0
    for row in rows:
        found += 1
        yield row
    if found != piece.num_rows:
        raise ValueError(
            f"source {source.name!r}, slice {piece.index}: expected {piece.num_rows} rows in "
            f"{piece.path or source.dataset}, found {found}: the input changed after it was sliced; prepare it again"
        )


def source_identity(source: Source) -> list[dict[str, Any]]:
    """What the input is, JSON-able: work made from input of another identity must not be reused."""
    if source.path is None:
        hub = {key: getattr(source, key) for key in ("dataset", "subset", "split", "revision")}
        return [{**hub, "fingerprint": _hub_dataset(source)._fingerprint}]
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
        format, pieces = local.format, list(_row_ranges(count_rows(local.path, local.format), rows_per_slice, wanted))
    else:
        with local.path.open("rb") as opened:
            format, found = _find_rows(source, opened, local.format)
            pieces = list(_grouped(islice(found, wanted), rows_per_slice))
    slices: list[Slice] = []
    for index, (start, end, count, number) in enumerate(pieces, len(before)):
        place = (source.name, index, str(file), start, end, row, count, number)
        slices.append(Slice(*place, format, local.encoding, local.copy))
        row += count
    return slices


Piece = tuple[int, int, int, int]  # start, end, rows, first line or number


def _row_ranges(counts: list[tuple[int, int]], rows_per_slice: int, wanted: int | None) -> Iterator[Piece]:
    """Ranges of rows, which end earlier where the rows are long, as in `_grouped`.

    Args:
        counts: (rows, bytes) of what comes one after the other, each of rows that are about equally long.
        wanted: the first so many rows; None: all.
    """
    start, row, size, end = 0, 0, 0.0, sum(rows for rows, _ in counts)
    end = end if wanted is None else min(end, wanted)
    for rows, num_bytes in counts:
        stop = min(row + rows, end)
        while row < stop:
            per_row = num_bytes / rows
            room = math.ceil((_SLICE_BYTES - size) / per_row) if per_row else rows
            step = min(stop - row, start + rows_per_slice - row, max(1, room))
            row, size = row + step, size + step * per_row
            if row == end or row - start == rows_per_slice or size >= _SLICE_BYTES:
                yield start, row, row - start, start
                start, size = row, 0.0


def _grouped(found: Iterator[Span], rows_per_slice: int) -> Iterator[Piece]:
    for first in found:
        last, count = first, 1
        while count < rows_per_slice and last[1] - first[0] < _SLICE_BYTES and (span := next(found, None)):
            last, count = span, count + 1
        yield first[0], last[1], count, first[2]


def _find_rows(source: Source, file: BinaryIO, format: str) -> tuple[str, Iterator[Span]]:
    """The format, json told apart into array and lines, and the place of each row of a text file."""
    size = file_size(file)
    if format in DELIMITERS:
        header = _header(file, format)
        if header is None:
            return format, iter(())
        return format, _csv_spans(file, header, size, format)
    if source.format == "jsonl":
        return "jsonl", spans(file, text_start(file), size, 1, is_array=False)
    is_array, start = layout(file)
    if source.format == "json" and not is_array:
        raise ValueError("`format: json` is one array of objects in brackets, and this is not: is it `format: jsonl`?")
    return "json" if is_array else "jsonl", spans(file, start, size, 0 if is_array else 1, is_array=is_array)


def _csv_spans(file: BinaryIO, header: Header, end: int, format: str) -> Iterator[Span]:
    for record in records(file, header.end, end, header.next_line, DELIMITERS[format], _MAX_ROW):
        yield record.begin, record.end, record.line


def _header(file: BinaryIO, format: str) -> Header | None:
    return read_header(file, text_start(file), DELIMITERS[format], _MAX_ROW)


def _read_file_slice(source: Source, piece: Slice) -> Iterator[RawRow]:
    with _naming(source, piece.path):
        path = local_path(source, piece.path or "", piece.encoding, piece.copy)
        read = _read_table if piece.format in TABLE_FORMATS else _read_csv if piece.format in DELIMITERS else _read_json
        for number, (place, value) in enumerate(read(path, piece), piece.first_row):
            yield RawRow(number, f"{piece.path}{place}", value)


PlacedRow = tuple[str, dict[str, Any] | BadRow]  # ":17" or "[16]", value


def _read_table(path: Path, piece: Slice) -> Iterator[PlacedRow]:
    for number, value in enumerate(read_rows(path, piece.format, piece.start, piece.end), piece.start):
        yield f"[{number}]", value


def _read_csv(path: Path, piece: Slice) -> Iterator[PlacedRow]:
    with path.open("rb", buffering=1 << 20) as file:
        header = _header(file, piece.format)
        names = header.names if header else []
        delimiter = DELIMITERS[piece.format]
        for record in records(file, piece.start, piece.end, piece.first_line, delimiter, _MAX_ROW):
            yield f":{record.line}", to_row(record, names, piece.encoding)


def _read_json(path: Path, piece: Slice) -> Iterator[PlacedRow]:
    with path.open("rb") as scan, path.open("rb", buffering=1 << 20) as data:
        is_array, size = piece.format == "json", file_size(scan)
        if is_array and (rows := _read_elements(data, piece, size)) is not None:
            yield from ((f"[{number}]", value) for number, value in enumerate(rows, piece.first_line))
            return
        found = spans(scan, piece.start, piece.end, piece.first_line, is_array=is_array)
        for begin, end, place in found:
            cut_off = is_array and end == size  # a whole element has a comma or a bracket behind it
            value = _cut_off(begin, end) if cut_off else _read_row(data, begin, end, piece.encoding)
            yield f"[{place}]" if is_array else f":{place}", value


def _read_elements(file: BinaryIO, piece: Slice, size: int) -> list[dict[str, Any]] | None:
    """The slice's rows at once, if it is short and none is faulty. One that ends where the file does is cut off."""
    if piece.end - piece.start > min(_SHORT_SLICE, _MAX_ROW) or piece.end == size:
        return None
    file.seek(piece.start)
    return parse_rows(file.read(piece.end - piece.start))


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
    except ValueError as error:
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
    dataset = _hub_dataset(source)
    counts = [(len(dataset), dataset.data.nbytes)]
    pieces = enumerate(_row_ranges(counts, rows_per_slice, source.first))
    return [Slice(source.name, index, None, start, end, start, n, start) for index, (start, end, n, _) in pieces]


def _read_hub_slice(source: Source, piece: Slice) -> Iterator[RawRow]:
    dataset = _hub_dataset(source)
    rows = dataset.select(range(piece.start, min(piece.end, len(dataset))))
    for number, value in enumerate(rows, piece.start):
        yield RawRow(number, f"{source.dataset}[{number}]", without_absent(value))


def _hub_dataset(source: Source) -> Any:
    try:
        return _load_hub_dataset(source.dataset or "", source.subset, source.split, source.revision)
    except Exception as error:  # the libraries below raise a dozen unrelated types
        asked = {"subset": source.subset, "split": source.split, "revision": source.revision}
        raise ValueError(
            f"source {source.name!r}: cannot load data set {source.dataset!r} with {asked}: "
            f"{type(error).__name__}: {error}\n  {_remedy(error)}"
        ) from error


@lru_cache(maxsize=8)
def _load_hub_dataset(dataset: str, subset: str | None, split: str, revision: str | None) -> Any:
    """The data set, loaded once per process. The hub's token comes from its own login or environment."""
    from datasets import load_dataset

    return load_dataset(dataset, subset, split=split, revision=revision)


def _remedy(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if any(sign in text for sign in ("gated", "authenticat", "401 client", "403 client")):
        return "Accept its terms on its page, then log in with `hf auth login` or put HF_TOKEN into the environment."
    if "offline" in text:
        return "HF_HUB_OFFLINE is set and the set is not cached: unset it, or load it once where there is a network."
    if isinstance(error, ConnectionError):
        return "The hub cannot be reached: check the network, or load the data set once where there is one."
    return (
        "Check `dataset`, `subset`, `split` and `revision`; for a private or gated data set, log in with "
        "`hf auth login` or put HF_TOKEN into the environment."
    )
