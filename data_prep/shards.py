"""The data contract: what a shard directory holds, how it is written, opened and verified.

    manifest.json            last; its existence means complete; holds the hash of every file that training reads
    tokenizer/               the tokenizer with the chat template that rendered the data
    train/00000.arrow ...    Arrow IPC streams (memory-mapped by `datasets`), one packed row each:
                               input_ids    list<int32>   the row's documents, one after the other
                               labels       list<int32>   IGNORE_INDEX (-100) where not trained, unshifted
                               seq_lengths  list<int32>   tokens per document; their sum is len(input_ids) <= seq_len
                               sources      list<int32>   each document's source: index into manifest["sources"]
    eval/00000.arrow ...     the same for the held-out documents
    dropped/SOURCE.jsonl     every row that was not used, with its reason
    documents/               which raw row each document comes from, and how it is used: see provenance.py

`train` imports nothing else from `data_prep` but the readers of strict_files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NotRequired, TypedDict

from data_prep.arrow_columns import list_column
from data_prep.atomic_files import naming, to_json, write_atomically, written_atomically

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_DIR = "tokenizer"
SPLITS = ("train", "eval")
COLUMNS = ("input_ids", "labels", "seq_lengths", "sources")
IGNORE_INDEX = -100  # the label of what is not trained; torch's cross-entropy skips it
ROWS_PER_BATCH = 256  # rows of one Arrow record batch: what a reader maps at once


class WrittenShard(TypedDict):
    """The content of one shard file."""

    rows: int  # packed rows
    tokens: int
    max_token_id: int  # largest id in it
    bytes: int
    sha256: str


class ShardFile(WrittenShard):
    """One shard file."""

    file: str  # path below the shard directory, such as "train/00000.arrow"


class SplitCounts(TypedDict):
    """The packed rows of one split."""

    rows: int  # packed rows
    documents: int  # one that is used twice counts twice
    tokens: int
    trained_tokens: int
    efficiency: float | None  # tokens of the rows by rows * seq_len; None without rows


class Split(SplitCounts):
    """One split: its counts and its files."""

    shards: list[ShardFile]  # in order


class Share(TypedDict):
    """One source in the mixture."""

    source: str
    asked: float | None  # share of the mixture by weight; None without weights
    got: float
    train_documents: int  # different ones
    train_uses: int  # one that is used twice counts twice
    eval_documents: int


class PlannedSource(TypedDict):
    """What became of one source's raw rows."""

    name: str
    rows: int  # raw rows
    dropped: dict[str, int]  # raw rows by reason
    changed: dict[str, int]  # raw rows that were truncated, split or rewritten (names: docs/recipe.md)
    places: dict[str, int]  # how often the texts of these rows were rewritten, by the same names
    lost_tokens: dict[str, int]  # by the same names, where a raw row had been tokenized
    turns: NotRequired[dict[str, int]]  # of the raw rows that were tokenized: see rendering/labels.py
    kept: int  # raw rows
    documents: int
    unused: int  # documents left out by `take` or `weight`
    tokens: int  # with repeated uses
    trained_tokens: int
    train_documents: int
    train_uses: int
    eval_documents: int


class SourceCounts(PlannedSource):
    """One source as the manifest lists it."""

    encodings: dict[str, int]  # its text files by encoding


class TokenizerIdentity(TypedDict):
    """Hashes that identify a tokenizer."""

    name: str  # folder or hub id
    sha256: str  # of all of it
    vocab_sha256: str  # of its vocabulary alone (token -> id)
    size: int  # tokens


class Manifest(TypedDict):
    """What manifest.json holds, next to its own hash, which `write_manifest` adds and `read_manifest` checks."""

    format_version: int
    identity: str  # of recipe, inputs and tokenizer: work of another identity is not reused
    recipe: dict[str, Any]  # as resolved
    made_from: NotRequired[dict[str, Any]]  # the other parts of the identity: input files, tokenizer, ...
    seq_len: int  # tokens of a packed row at most
    tokenizer: TokenizerIdentity
    tokenizer_files: dict[str, str]  # path below the shard directory -> sha256
    chat_template: str  # where it came from
    chat_template_sha256: str
    encoders: list[str]  # those that made the ids
    bos_token_id: int | None
    end_token_ids: list[int]  # the id that ends an answer, then any other that ends a trained turn
    sources: list[SourceCounts]  # a packed row's `sources` are indices into it
    recognised: list[str]  # sources whose `form` was found by their columns
    mixture: list[Share]
    notes: list[str]  # what could not be reached
    splits: dict[str, Split]  # by the names in SPLITS
    documents: NotRequired[dict[str, Any]]  # of the files of data_prep.provenance
    versions: dict[str, str | None]  # of the libraries that decide the bytes; None: not installed


def write_shard(path: Path, rows: Iterable[dict[str, np.ndarray]]) -> WrittenShard:
    """Write one shard atomically, one record batch after the other.

    Args:
        rows: packed rows: COLUMNS -> (n,) int32 arrays; at most ROWS_PER_BATCH of them are held.

    Returns:
        The manifest's entry of the shard, but for its name.
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


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, with the hash of its own content as its last key."""
    write_atomically(directory / MANIFEST, to_json({**manifest, "sha256": _own_hash(manifest)}))


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def tokenizer_hashes(directory: Path) -> dict[str, str]:
    """The sha256 of each file of the tokenizer, by its path below the shard directory."""
    files = sorted(path for path in (directory / TOKENIZER_DIR).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): _digest_of(path) for path in files}


def read_manifest(directory: str | Path) -> Any:
    """The manifest (a Manifest) of a complete shard directory.

    Raises:
        ValueError: no such directory, preparation not finished, unreadable, or another format version.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ValueError(f"shard directory {directory}: no such directory; make it with `packhaul prepare`")
    list(directory.iterdir())  # a network file system may remember for a minute that the file was not there
    if not path.exists():
        raise ValueError(
            f"shard directory {directory} has no {MANIFEST}: its preparation has not finished. Run the same "
            "`packhaul prepare` command again; it goes on where it stopped"
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


def shard_files(directory: str | Path, manifest: Mapping[str, Any], split: str) -> list[Path]:
    """The shard files of a split, in order."""
    return [Path(directory) / shard["file"] for shard in manifest["splits"][split]["shards"]]


def check_files(
    directory: str | Path, manifest: Mapping[str, Any], *, hashes: bool = False, share: int = 0, shares: int = 1
) -> list[str]:
    """Problems of the shard files: missing or of another size; with `hashes` also of other bytes, in the tokenizer's
    files too. Empty if sound.

    Args:
        share, shares: look only at share number `share` of `shares` of the files, so that processes can divide them.
    """
    files: list[Mapping[str, Any]] = [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    if hashes:
        files += _tokenizer_files(manifest)
    return _problems(directory, files[share::shares], hashes)


def check_tokenizer(directory: str | Path, manifest: Mapping[str, Any]) -> list[str]:
    """Problems of the tokenizer's files: missing, or of other bytes. Empty if sound."""
    return _problems(directory, _tokenizer_files(manifest), True)


def check_documents(directory: str | Path, manifest: Mapping[str, Any]) -> list[str]:
    """Problems of the files of data_prep.provenance, by their hashes. Empty if sound, or if there are none."""
    hashes = manifest.get("documents", {}).get("files", {})
    return _problems(directory, [{"file": name, "sha256": digest} for name, digest in hashes.items()], True)


def _tokenizer_files(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [{"file": name, "sha256": digest} for name, digest in manifest.get("tokenizer_files", {}).items()]


def _problems(directory: str | Path, files: Sequence[Mapping[str, Any]], hashes: bool) -> list[str]:
    problems = (_check_file(Path(directory) / file["file"], file, hashes) for file in files)
    return [problem for problem in problems if problem]


def _check_file(path: Path, expected: Mapping[str, Any], hashes: bool) -> str | None:
    if not path.exists():
        return f"{path}: missing"
    if "bytes" in expected and path.stat().st_size != expected["bytes"]:
        return f"{path}: expected {expected['bytes']} bytes, found {path.stat().st_size}"
    if hashes and (found := _digest_of(path)) != expected["sha256"]:
        return f"{path}: expected sha256 {expected['sha256'][:16]}..., found {found[:16]}...: the bytes have changed"
    return None


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with naming(path), path.open("rb") as file:
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
