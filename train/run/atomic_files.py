"""Files that are written whole or not at all, and digests that show when a bit of them has changed.

Standard library and xxhash only: importing this costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from train.run.log import ANY_RANK

log = logging.getLogger(__name__)

# Against damage, not against forgery: some GiB/s on one core, where SHA-256 reaches 0.1 to 1.5.
DIGEST = "xxh3_128"
_BLOCK = 4 * 2**20  # bytes read at once


@dataclass(frozen=True)
class FileRecord:
    """What is known of a file that was written completely."""

    size: int  # bytes
    digest: str | None  # hexadecimal, by DIGEST; None where nobody computed it


def write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; see `write_text_atomically`."""
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write so that `path` holds the old content or the new, never a part, whatever is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def digest(file: Path) -> str:
    """The hexadecimal digest of a file's bytes."""
    state = xxhash.xxh3_128()
    with file.open("rb") as source:
        for block in _blocks(source):
            state.update(block)
    return state.hexdigest()


def flush(files: Iterable[Path]) -> dict[Path, FileRecord]:
    """Force the files and the folders that name them to disk; each file's size and digest."""
    records = {file: _flush(file) for file in files}
    # A file is only safe once the folder that names it is on disk, and the folder that names that one.
    for folder in sorted({folder for file in records for folder in (file.parent, file.parent.parent)}):
        fsync_folder(folder)
    return records


def move(source: Path, target: Path) -> FileRecord:
    """Bring a file to `target` and force its bytes to disk; by renaming where both lie in one file system.

    The folder that names it is left to the caller. While the bytes are copied they are digested, so that what is
    recorded is what was read from `source`.
    """
    if source.stat().st_dev == target.parent.stat().st_dev:
        record = _flush(source)
        source.replace(target)
        return record
    state, size = xxhash.xxh3_128(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        for block in _blocks(reader):
            state.update(block)
            size += writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    source.unlink()
    return FileRecord(size, state.hexdigest())


def rename(folder: Path, target: Path) -> None:
    """Rename and make the new name durable."""
    folder.rename(target)
    fsync_folder(target.parent)


@contextlib.contextmanager
def warning(consequence: str) -> Iterator[None]:
    """Say that something could not be written, such as for a full quota, instead of ending the training over it."""
    try:
        yield
    except OSError as error:
        log.warning(f"{consequence}: {error}", extra=ANY_RANK)


def fsync_folder(folder: Path) -> None:
    """Force the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(file: Path) -> FileRecord:
    """Digest the file and force it to disk. Opening it also makes a network file system fetch the true size."""
    found = digest(file)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return FileRecord(os.fstat(descriptor).st_size, found)
    finally:
        os.close(descriptor)


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block
