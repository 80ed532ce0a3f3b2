"""Reading files in tests: sources, their rows, and files of several forms to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.conversation import BadRow
from data_prep.recipe import Source
from data_prep.sources.slices import RawRow, read_slice, slice_source

ROWS = [{"a": f"{number} 한글 \n", "m": [{"role": "user", "content": "x" * (number % 5)}]} for number in range(50)]
HARD_ROWS = [{"a": 1}, {"a": 'x, ] } " \\', "b": [{"c": [1, 2]}]}, {"a": "사과 {"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = b"a,b\n" + b"".join(b'%d,"x\n%d"\n' % (number, number) for number in range(50))
CSV_ROWS = [{"a": f"{number}", "b": f"x\n{number}"} for number in range(50)]
# Parquet, Arrow streams (.arrows) and Arrow files, and how pyarrow is to write them.
TABLES = [
    ("x.parquet", {}),
    ("x.parquet", {"compression": "zstd", "data_page_size": 64}),
    ("x.arrows", {}),
    ("x.arrow", {}),
    ("x.arrow", {"compression": "lz4"}),
]


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


def zstd(content: bytes) -> bytes:
    """Compressed by zstd, one frame."""
    import pyarrow as pa

    return pa.Codec("zstd").compress(content, asbytes=True)


def write_table(path: Path, table: Any, size: int, **options: Any) -> Path:
    """The path, with the table in row groups or batches of `size` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=size, **options)
        return path
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    options = {"options": pa.ipc.IpcWriteOptions(**options)} if options else {}
    with new(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=size)
    return path


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
