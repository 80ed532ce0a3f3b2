"""The data contract: what a shard directory holds, how it is written, opened and verified.

    manifest.json            last; its existence means complete; holds the hash of every file that training reads
    tokenizer/               the tokenizer with the chat template that rendered the data
    train/00000.arrow ...    Arrow IPC streams (memory-mapped by `datasets`), one packed row each:
                               input_ids    list<int32>   the row's documents, one after the other
                               labels       list<int32>   -100 where not trained, unshifted
                               seq_lengths  list<int32>   tokens per document; their sum is len(input_ids) <= seq_len
                               sources      list<int32>   each document's source: index into manifest["sources"]
    eval/00000.arrow ...     the same for the held-out documents
    dropped/SOURCE.jsonl     every row that was not used, with its reason

`train` imports nothing else from `data_prep` (beside the readers of strict_files).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_DIR = "tokenizer"
SPLITS = ("train", "eval")
COLUMNS = ("input_ids", "labels", "seq_lengths", "sources")
ROWS_PER_BATCH = 256  # rows of one Arrow record batch: what a reader maps at once


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write under a temporary name, flush to disk, rename: a reader finds the whole file or none."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which has its name once it is whole."""
    # The tasks of a job array may write the same file from several nodes, where process numbers repeat.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """The one JSON form of our files: sorted keys would hide the recipe's order, so keys stay as they are."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_shard(path: Path, rows: Iterable[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Write one shard atomically, one record batch after the other.

    Args:
        rows: packed rows: COLUMNS -> (n,) int32 arrays; at most ROWS_PER_BATCH of them are held.

    Returns:
        The manifest's entry of the shard: rows, tokens, max_token_id, bytes, sha256.
    """
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])
    path.parent.mkdir(parents=True, exist_ok=True)
    count, tokens, largest, left = 0, 0, 0, iter(rows)
    with written_atomically(path) as file:
        hashed = _HashedFile(file)
        with pa.ipc.new_stream(hashed, schema) as writer:
            while batch := list(islice(left, ROWS_PER_BATCH)):
                writer.write_batch(_record_batch(batch, schema))
                count += len(batch)
                tokens += sum(int(row["seq_lengths"].sum()) for row in batch)
                largest = max(largest, *(int(row["input_ids"].max()) for row in batch))
    digest = hashed.digest.hexdigest()
    return {"rows": count, "tokens": tokens, "max_token_id": largest, "bytes": hashed.size, "sha256": digest}


class _HashedFile:
    """A file to write, as pyarrow wants it, that knows the size and the hash of what went through."""

    closed = False

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _record_batch(rows: Sequence[dict[str, np.ndarray]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.record_batch([list_column([row[name] for row in rows]) for name in COLUMNS], schema=schema)


def list_column(values: Sequence[np.ndarray]) -> pa.Array:
    """One or more (n,) integer arrays as a column of list<int32>."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([v.size for v in values], out=offsets[1:])
    numbers = np.concatenate(values).astype(np.int32, copy=False)
    # From buffers: pyarrow's own way from numpy imports pandas first, which takes half a second in each process.
    items = pa.Array.from_buffers(pa.int32(), numbers.size, [None, pa.py_buffer(numbers)])
    return pa.Array.from_buffers(pa.list_(pa.int32()), len(values), [None, pa.py_buffer(offsets)], children=[items])


def int32_view(array: pa.Array) -> np.ndarray:
    """(n,) int32: an array of integers without nulls, in place (`to_numpy` imports pandas as well)."""
    import numpy as np

    data = array.buffers()[1]
    return np.frombuffer(data or b"", dtype=np.int32, count=len(array), offset=4 * array.offset if data else 0)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with the hash of its own content as its last key."""
    write_atomically(directory / MANIFEST, to_json({**manifest, "sha256": _own_hash(manifest)}))


def _own_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def tokenizer_hashes(directory: Path) -> dict[str, str]:
    """The sha256 of each file of the tokenizer, by its path below the shard directory."""
    files = sorted(path for path in (directory / TOKENIZER_DIR).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): _digest_of(path) for path in files}


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a complete shard directory.

    Raises:
        ValueError: no such directory, preparation not finished, unreadable, or another format version.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ValueError(f"shard directory {directory}: no such directory; make it with `python -m data_prep.prepare`")
    list(directory.iterdir())  # a network file system may remember for a minute that the file was not there
    if not path.exists():
        raise ValueError(
            f"shard directory {directory} has no {MANIFEST}: its preparation has not finished. Run the same "
            "`python -m data_prep.prepare` command again; it goes on where it stopped"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}): prepare the data again") from None
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format_version {FORMAT_VERSION}, found {found!r}: prepare the data again")
    if manifest.get("sha256", own := _own_hash(manifest)) != own:
        raise ValueError(
            f"{path}: its content is not what was written (its own sha256 differs): prepare the data again"
        )
    return manifest


def manifest_sha256(directory: str | Path) -> str:
    """Hash of the manifest file; with the shards' hashes in it, it identifies the data."""
    return hashlib.sha256((Path(directory) / MANIFEST).read_bytes()).hexdigest()


def shard_files(directory: str | Path, manifest: dict[str, Any], split: str) -> list[Path]:
    """The shard files of a split, in order."""
    return [Path(directory) / shard["file"] for shard in manifest["splits"][split]["shards"]]


def check_files(
    directory: str | Path, manifest: dict[str, Any], *, hashes: bool = False, share: int = 0, shares: int = 1
) -> list[str]:
    """Problems of the shard files: missing, of another size, and with `hashes` of other bytes, as may be the
    tokenizer's files. Empty if sound.

    Args:
        share, shares: look only at this one of so many shares of the files, so that processes can divide them.
    """
    files = [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    if hashes:
        files += _tokenizer_files(manifest)
    problems = (_check_file(Path(directory) / file["file"], file, hashes) for file in files[share::shares])
    return [problem for problem in problems if problem]


def check_tokenizer(directory: str | Path, manifest: dict[str, Any]) -> list[str]:
    """Problems of the tokenizer's files: missing, or of other bytes. Empty if sound."""
    problems = (_check_file(Path(directory) / file["file"], file, True) for file in _tokenizer_files(manifest))
    return [problem for problem in problems if problem]


def _tokenizer_files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"file": name, "sha256": digest} for name, digest in manifest.get("tokenizer_files", {}).items()]


def _check_file(path: Path, shard: dict[str, Any], hashes: bool) -> str | None:
    if not path.exists():
        return f"{path}: missing"
    if "bytes" in shard and path.stat().st_size != shard["bytes"]:
        return f"{path}: expected {shard['bytes']} bytes, found {path.stat().st_size}"
    if hashes and (found := _digest_of(path)) != shard["sha256"]:
        return f"{path}: expected sha256 {shard['sha256'][:16]}..., found {found[:16]}...: the bytes have changed"
    return None


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def read_rows(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The packed rows of one shard, without `datasets`.

    Raises:
        ValueError: not an Arrow stream, or other columns than COLUMNS.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            if tuple(stream.schema.names) != COLUMNS:
                raise ValueError(f"{path}: expected columns {COLUMNS}, found {tuple(stream.schema.names)}")
            for batch in stream:
                lists = [batch.column(name) for name in COLUMNS]
                for i in range(batch.num_rows):
                    yield {name: column[i].values.to_numpy() for name, column in zip(COLUMNS, lists, strict=True)}
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Arrow stream ({error})") from None
