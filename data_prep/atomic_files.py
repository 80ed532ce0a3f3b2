"""Files that are whole or not there: written under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write under a temporary name, flush to disk, rename: a reader finds the whole file or none."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which has its name once it is whole. What was written of one that fails is removed.

    Raises:
        OSError: it cannot be written, such as for want of room; names the file.
    """
    # The tasks of a job array may write the same file from several nodes, where process numbers repeat.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """The system's errors say which file they are about: those of reading and writing do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(path) in str(error):
            raise
        if error.errno is None:  # a library's
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """What can go wrong while a file that we have written is read is a ValueError that names it.

    Args:
        remedy: what to do where its content is not what was written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's: the system had no objection
            raise _damaged(path, error, remedy) from error
        with naming(path):
            raise
    except (ValueError, EOFError, LookupError, TypeError, struct.error, BadZipFile) as error:
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: Exception, remedy: str) -> ValueError:
    text = str(error).partition("\n")[0][:300] or type(error).__name__
    return ValueError(f"{path} is damaged ({text}): {remedy}")


def to_json(value: Any) -> bytes:
    """The one JSON form of our files: sorted keys would hide the recipe's order, so keys stay as they are."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
