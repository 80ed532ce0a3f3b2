"""Raw input to dict rows: JSON arrays, JSONL files and hub data sets, cut into slices that any worker can read alone.

Slicing finds the byte span of each row (json_spans); reading finds them again within the slice and parses one at a
time. Memory is bounded by a chunk of the file and one row, whatever the file's size.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.conversation import BadRow
from data_prep.json_spans import file_size, layout, spans
from data_prep.recipe import Source

_MAX_ROW = 1 << 26  # bytes; a longer "row" is a lost newline or quote, and reading it could fill the memory
_MAX_DEPTH = 100  # of nested values; far below Python's recursion limit, which others reach who walk the row later
_OTHER_FORMS = frozenset({".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip"})


@dataclass(frozen=True, slots=True)
class Slice:
    """A restartable piece of one source. Plain values only, so it pickles and goes through JSON."""

    source: str  # the source's name
    index: int  # number of the slice within its source
    path: str | None  # file; None for a hub data set
    start: int  # first byte (files) or first row (hub data set)
    end: int  # one past the last byte or row
    first_row: int  # row number, within the whole source (over all its files), of the slice's first row
    num_rows: int  # rows in it, malformed ones included
    first_line: int  # JSONL: 1-based line of the first row; JSON array, hub: 0-based number of the first element


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found."""

    number: int  # 0-based within the source
    where: str  # "data/x.jsonl:17" (line), "data/x.json[16]" (element) or "hub/id[16]"
    value: dict[str, Any] | BadRow  # BadRow (not_json, not_an_object, not_utf8, too_large) where it could not be read


def slice_source(source: Source, rows_per_slice: int) -> list[Slice]:
    """Cut a source, or its first `source.first` rows, into slices of `rows_per_slice` rows (fewer at a file's end).

    Raises:
        ValueError: no such input, a form that is not read, no rows, or text after the end of a JSON array.
    """
    if source.path is None:
        slices = _slice_hub(source, rows_per_slice)
    else:
        slices = []
        for path in source_files(source):
            slices += _slice_file(source, path, rows_per_slice, slices)
    if not slices:
        raise ValueError(f"source {source.name!r}: no rows in {source.path or source.dataset}")
    return slices


def read_slice(source: Source, piece: Slice) -> Iterator[RawRow]:
    """The slice's rows in order, unreadable ones too.

    Raises:
        ValueError: the input has changed since it was sliced.
    """
    rows = _read_hub_slice(source, piece) if piece.path is None else _read_file_slice(piece)
    found = 0
    for row in rows:
        found += 1
        yield row
    if found != piece.num_rows:
        raise ValueError(
            f"source {source.name!r}, slice {piece.index}: expected {piece.num_rows} rows in "
            f"{piece.path or source.dataset}, found {found}: the input changed after it was sliced; prepare it again"
        )


def source_files(source: Source) -> list[Path]:
    """The source's files: globs expanded, each file once, sorted by path.

    Raises:
        ValueError: nothing matches, not a file, an empty file, or a form that is not read.
    """
    patterns = [source.path] if isinstance(source.path, str) else source.path or []
    paths = sorted({path for pattern in patterns for path in _expand(source, pattern)})
    for path in paths:
        if path.suffix.lower() in _OTHER_FORMS:
            raise ValueError(
                f"source {source.name!r}: {path}: {path.suffix} files are not read; the forms read are JSON (one array "
                "of objects) and JSONL (one object per line), uncompressed, in UTF-8: convert the file"
            )
        if path.stat().st_size == 0:
            raise ValueError(f"source {source.name!r}: {path} is empty (0 bytes): remove it from `path`, or fetch it")
    if not paths:
        raise ValueError(f"source {source.name!r}: `path` lists no files")
    return paths


def source_identity(source: Source) -> list[dict[str, Any]]:
    """What the input is, JSON-able: work made from input of another identity must not be reused."""
    if source.path is None:
        hub = {key: getattr(source, key) for key in ("dataset", "subset", "split", "revision")}
        return [{**hub, "fingerprint": _hub_dataset(source)._fingerprint}]
    stats = [(path, path.stat()) for path in source_files(source)]
    return [{"path": str(path), "size": s.st_size, "mtime_ns": s.st_mtime_ns} for path, s in stats]


def _expand(source: Source, pattern: str) -> list[Path]:
    name = str(Path(pattern).expanduser())
    if Path(name).is_file():  # first, since a plain file name may hold glob characters
        return [Path(name)]
    if Path(name).is_dir():
        raise ValueError(f"source {source.name!r}: {pattern} is a folder: name its files, such as {pattern}/*.jsonl")
    if not glob.has_magic(name):
        raise ValueError(f"source {source.name!r}: {pattern}: no such file (current folder: {Path.cwd()})")
    paths = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 - absolute patterns too
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ValueError(f"source {source.name!r}: no file matches {pattern} (current folder: {Path.cwd()})")
    return files


# Files.


def _slice_file(source: Source, path: Path, rows_per_slice: int, before: list[Slice]) -> list[Slice]:
    row = before[-1].first_row + before[-1].num_rows if before else 0
    slices: list[Slice] = []
    with path.open("rb") as file:
        wanted = None if source.first is None else source.first - row
        is_array, start = layout(file)
        found = islice(spans(file, start, file_size(file), 0 if is_array else 1, is_array=is_array), wanted)
        for first in found:
            last, count = first, 1
            for span in islice(found, rows_per_slice - 1):
                last, count = span, count + 1
            index = len(before) + len(slices)
            slices.append(Slice(source.name, index, str(path), first[0], last[1], row, count, first[2]))
            row += count
    return slices


def _read_file_slice(piece: Slice) -> Iterator[RawRow]:
    path = Path(piece.path or "")
    with path.open("rb") as scan, path.open("rb", buffering=1 << 20) as data:
        is_array, size = layout(scan)[0], file_size(scan)
        found = spans(scan, piece.start, piece.end, piece.first_line, is_array=is_array)
        for number, (begin, end, place) in enumerate(found, piece.first_row):
            where = f"{piece.path}[{place}]" if is_array else f"{piece.path}:{place}"
            cut_off = is_array and end == size  # a whole element has a comma or a bracket behind it
            yield RawRow(number, where, _cut_off(begin, end) if cut_off else _read_row(data, begin, end))


def _read_row(file: BinaryIO, begin: int, end: int) -> dict[str, Any] | BadRow:
    if end - begin > _MAX_ROW:
        return BadRow("too_large", f"{end - begin} bytes from byte {begin} on; a row may have {_MAX_ROW} at most")
    file.seek(begin)
    return _parse(file.read(end - begin))


def _parse(raw: bytes) -> dict[str, Any] | BadRow:
    raw = raw.strip(b" \t\r\n")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"{error.reason} at byte {error.start} of the row, which starts {raw[:60]!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow("not_json", f"{error.msg} at character {error.pos} of the row, which starts {text[:60]!r}")
    except (ValueError, RecursionError) as error:  # more digits than Python converts to an integer, or too deep
        return BadRow("not_json", f"{error}; the row starts {text[:60]!r}")
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"expected an object with named columns, found {text[:60]!r}")
    if raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH and _is_too_deep(value):
        return BadRow("not_json", f"nested more than {_MAX_DEPTH} levels deep; the row starts {text[:60]!r}")
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        children = (
            node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)
        )
        level = [child for some in children for child in some]
    return any(isinstance(node, dict | list) for node in level)


def _cut_off(begin: int, end: int) -> BadRow:
    return BadRow("not_json", f"the file ends (byte {end}) inside this element, which starts at byte {begin}: cut off?")


# Hub data sets.


def _slice_hub(source: Source, rows_per_slice: int) -> list[Slice]:
    num_rows = len(_hub_dataset(source))
    if source.first is not None:
        num_rows = min(num_rows, source.first)
    starts = range(0, num_rows, rows_per_slice)
    ends = [min(start + rows_per_slice, num_rows) for start in starts]
    pairs = enumerate(zip(starts, ends, strict=True))
    return [Slice(source.name, index, None, start, end, start, end - start, start) for index, (start, end) in pairs]


def _read_hub_slice(source: Source, piece: Slice) -> Iterator[RawRow]:
    dataset = _hub_dataset(source)
    rows = dataset.select(range(piece.start, min(piece.end, len(dataset))))
    for number, value in enumerate(rows, piece.start):
        yield RawRow(number, f"{source.dataset}[{number}]", value)


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
