"""Local, seekable UTF-8 copies of inputs that are remote, compressed, in another encoding, or columns and not rows.

Rows are found once and then read by slices, by any worker. In a compressed stream each slice would have to decompress
all that lies before it, which for a file of many slices takes far longer than preparing it. A remote file would be
fetched twice, might change in between, and each worker would need the network. So such an input is copied once, in a
stream, as plain UTF-8 into a cache folder; what reads rows knows nothing of all that. The price is disk space.

A copy's name holds a hash of the input's name, size and version, so that a changed input gets another copy. It appears
under that name when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.recipe import Source
from data_prep.sources.input_files import compression, file_identity, find_format, is_url, opened
from data_prep.sources.json_objects import columns, rows_of_columns
from data_prep.sources.table_rows import TABLE_FORMATS
from data_prep.sources.text_encodings import UTF8, Detected, detect, known, to_utf8

CACHE_VARIABLE = "PACKHAUL_CACHE"
_JOB_CACHE_VARIABLE = "PACKHAUL_JOB_CACHE"  # ours, to tell worker processes
_CHUNK = 1 << 20  # bytes read at once
_HEAD = 16  # bytes that tell what a file is
_MAX_LAYERS = 2  # of compression; some files decompress to themselves, for ever
_FIRST_BYTES = 1 << 26  # looked at for the encoding where only a source's first rows are wanted


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An input in seekable form: plain and, if it is text, UTF-8."""

    path: Path
    copy: str | None  # the copy's name in the cache folder; None where the input itself will do
    format: str  # json (an array or lines), csv, tsv, parquet or arrow
    encoding: str  # of the input
    remark: str | None  # on the encoding, for a person


def use_cache(folder: Path | None) -> None:
    """Keep copies in this folder, in this process and those that it starts, where $PACKHAUL_CACHE names none."""
    if folder is None:
        os.environ.pop(_JOB_CACHE_VARIABLE, None)
    else:
        os.environ[_JOB_CACHE_VARIABLE] = str(folder.absolute())


def cache_folder() -> Path:
    """$PACKHAUL_CACHE, else the folder that `use_cache` was given, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "packhaul"
    return Path(os.environ.get(CACHE_VARIABLE) or os.environ.get(_JOB_CACHE_VARIABLE) or default).expanduser()


def localize(source: Source, file: Path | str) -> LocalFile:
    """Find out what a file is, and copy it if it has to be.

    Raises:
        ValueError: it cannot be reached or decompressed, is of a form that is not read, or there is no room.
    """
    path, copy = _plain(source, file)
    with path.open("rb") as opened_file:
        head = opened_file.read(_HEAD)
    if not head:
        raise ValueError("it is empty (decompressed): remove it from `path`, or fetch it again")
    if compression(head):
        raise ValueError(f"it is compressed more than {_MAX_LAYERS} times over: decompress it")
    format = find_format(source, file, head)
    if format in TABLE_FORMATS:
        if source.encoding:
            raise ValueError(f"`encoding` belongs to text files; this is {format}: remove it")
        return LocalFile(path, copy, format, UTF8, None)
    detected = _encoding(source, path)
    if detected.encoding != UTF8:
        path, copy = _text(source, file, path, detected.encoding)
    if format == "json" and source.format != "jsonl" and not source.field and columns(path):
        path, copy = _rows(source, file, path, detected.encoding)
    return LocalFile(path, copy, format, detected.encoding, detected.remark)


def local_path(source: Source, file: str, encoding: str, copy: str | None) -> Path:
    """Where `localize` left a file; copied again if the cache folder has lost it, or is another machine's.

    Raises:
        ValueError: as `localize`, or the input is another one than when it was copied first.
    """
    if copy is None:
        return Path(file)
    path = cache_folder() / copy
    if path.exists():
        return path
    input_file = file if is_url(file) else Path(file)
    path, name = _plain(source, input_file)
    if encoding != UTF8:
        path, name = _text(source, input_file, path, encoding)
    if name != copy and columns(path):
        path, name = _rows(source, input_file, path, encoding)
    if name != copy:
        raise ValueError("the input changed after it was sliced; prepare it again")
    return path


def _encoding(source: Source, path: Path) -> Detected:
    if source.encoding:
        return Detected(known(source.encoding))
    return detect(path, _FIRST_BYTES if source.first else None)


def _plain(source: Source, file: Path | str) -> tuple[Path, str | None]:
    """The file fetched and decompressed, and the name of the copy that this took."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            if compression(stream.read(_HEAD)) is None:
                return file, None
    return _made(source, file, "", lambda: _decompressed(source, file))


def _text(source: Source, file: Path | str, plain: Path, encoding: str) -> tuple[Path, str]:
    return _made(source, file, encoding, lambda: _in_utf8(plain, encoding))


def _rows(source: Source, file: Path | str, plain: Path, encoding: str) -> tuple[Path, str]:
    """A file of columns as an array of rows."""
    return _made(source, file, f"{encoding}, rows of columns", lambda: rows_of_columns(plain))


def _name(source: Source, file: Path | str, encoding: str) -> str:
    identity = json.dumps([file_identity(source, file), encoding], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", str(file).rsplit("/", 1)[-1])[-60:]
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}-{readable}"


# Making a copy.


def _made(source: Source, file: Path | str, encoding: str, content: Callable[[], Iterator[bytes]]) -> tuple[Path, str]:
    """A copy and its name in the cache folder. It is made from the content if it is not there yet."""
    folder, name = cache_folder(), _name(source, file, encoding)
    target = folder / name
    if target.exists():
        return target, name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{name}.lock") as is_held:
            if not target.exists():
                if is_held:
                    _remove_partial(folder, name)
                _write(folder / f"{name}.{uuid.uuid4().hex}.partial", content(), target)
                if _name(source, file, encoding) != name:
                    target.unlink()
                    raise ValueError("it changed while it was copied; prepare it again")
    except OSError as error:
        raise ValueError(
            f"cannot be copied (decompressed, as UTF-8) into {folder}: {error}; set {CACHE_VARIABLE} to a folder that "
            "has room"
        ) from error
    return target, name


def _remove_partial(folder: Path, name: str) -> None:
    """What processes that were killed have left of this copy."""
    for partial in folder.glob(f"{name}.*.partial"):
        partial.unlink()


def _write(partial: Path, content: Iterator[bytes], target: Path) -> None:
    try:
        with partial.open("wb") as file:
            for chunk in content:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """One process makes a copy while the others wait. Where the file system has no locks, each makes it."""
    with path.open("ab") as file:
        is_held = False
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            is_held = True
        yield is_held


def _in_utf8(path: Path, encoding: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        try:
            yield from to_utf8(iter(lambda: file.read(_CHUNK), b""), encoding)
        except UnicodeError as error:
            raise ValueError(f"not {encoding}: {error}; utf-16-le and utf-16-be say the order of the bytes") from error


def _decompressed(source: Source, file: Path | str) -> Iterator[bytes]:
    with opened(source, file) as raw:
        stream: Any = _buffered(raw)
        kinds: list[str] = []
        try:
            while len(kinds) < _MAX_LAYERS and (kind := compression(stream.peek(_HEAD)[:_HEAD])):
                kinds.append(kind)
                stream = _decompressor(stream, kind)
            while chunk := stream.read(_CHUNK):
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            if not kinds:
                raise
            raise ValueError(
                f"source {source.name!r}: {file}: {kinds[-1]} data that is damaged or cut off: {error}; fetch it again"
            ) from error


def _decompressor(stream: Any, kind: str) -> Any:
    if kind == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=stream, mode="rb")
    import pyarrow as pa  # Python has zstd from 3.14 on

    return _buffered(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), kind))


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(_Readable(stream), _CHUNK)


class _Readable(io.RawIOBase):
    """Anything with `read`, as Python's buffers want it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
