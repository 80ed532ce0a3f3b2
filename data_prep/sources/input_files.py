"""The files that a source names, local or behind a URL: names, format, compression, and what identifies them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from data_prep.recipe import Source

COMPRESSED = frozenset({".gz", ".zst"})
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_FORMATS |= {".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow"}
_MAGIC = ((rb"PAR1\x15", "parquet"), (rb"ARROW1\0\0", "arrow"), (rb"\xff{4}(?s:...)\0", "arrow"))
_COMPRESSION_MAGIC = ((rb"\x1f\x8b", "gzip"), (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"))
_NOT_READ = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf", "a 7z archive"),
)
_NOT_READ_SUFFIXES = frozenset({".bz2", ".xz", ".zip", ".7z", ".rar", ".lz4", ".tar", ".xlsx", ".xls"})
_URL = re.compile(r"(?!file://)[A-Za-z][A-Za-z0-9+.-]*(://|::.*://)")
# What a file store says about a file's version; each store has names of its own.
_VERSION_KEYS = (
    *("size", "ETag", "etag", "checksum", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation"),
    *("sha", "blob_id", "version_id", "VersionId"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created"),
)
_FORMS_READ = "JSON, JSON lines, CSV, TSV (each also as .gz or .zst), Parquet and Arrow"


def source_files(source: Source) -> list[Path | str]:
    """The source's files, as paths, and URLs as strings: globs expanded, each file once, in order.

    Raises:
        ValueError: nothing matches, not a file, an empty file, or a form that is not read.
    """
    patterns = [source.path] if isinstance(source.path, str) else source.path or []
    found = {file for pattern in patterns for file in _expand(source, pattern)}
    files = sorted(found, key=lambda file: file.parts if isinstance(file, Path) else tuple(file.split("/")))
    for file in files:
        suffix = (suffixes(file) or [""])[-1]
        if suffix in _NOT_READ_SUFFIXES:
            raise ValueError(
                f"source {source.name!r}: {file}: {suffix} files are not read; the forms read are {_FORMS_READ}: "
                "convert the file"
            )
    if not files:
        raise ValueError(f"source {source.name!r}: `path` lists no files")
    return files


def file_identity(source: Source, file: Path | str) -> dict[str, Any]:
    """What the file is, JSON-able: its name, and what its store says about its version."""
    if isinstance(file, Path):
        stat = file.stat()
        return {"path": str(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with _reaching(source, file):
        filesystem, path = _filesystem(file)
        info = filesystem.info(path)
    return {"path": file, **{key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}}


@contextmanager
def opened(source: Source, file: Path | str) -> Iterator[BinaryIO]:
    """The file's bytes as they are, from the first on."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            yield stream
        return
    with _reaching(source, file):
        filesystem, path = _filesystem(file)
        # Streamed over HTTP, as not all servers answer requests for a range of bytes.
        options = {"block_size": 0} if file.startswith("http") else {}
        with filesystem.open(path, "rb", **options) as stream:
            yield stream


def is_url(name: str) -> bool:
    """Whether fsspec is asked for the file."""
    return _URL.match(name) is not None


def suffixes(file: Path | str) -> list[str]:
    """Of the file's name, in lower case."""
    name = urlsplit(file.partition("::")[0]).path if isinstance(file, str) else file.name
    return [suffix.lower() for suffix in PurePosixPath(name).suffixes]


def compression(head: bytes) -> str | None:
    """What a file is compressed with, by its first bytes, whatever its name says."""
    return next((name for magic, name in _COMPRESSION_MAGIC if re.match(magic, head)), None)


def find_format(source: Source, file: Path | str, head: bytes) -> str:
    """json (either form), csv, tsv, parquet or arrow, by the recipe, else the content, else the suffix.

    Raises:
        ValueError: a form that is not read, or another one than the recipe says.
    """
    for magic, what in _NOT_READ:
        if head.startswith(magic):
            raise ValueError(f"{what}; the forms read are {_FORMS_READ}: convert the file")
    content = next((name for magic, name in _MAGIC if re.match(magic, head)), None)
    inner = [suffix for suffix in suffixes(file) if suffix not in COMPRESSED]
    if source.format == "auto":
        return content or _FORMATS.get(inner[-1] if inner else "", "json")
    stated = "json" if source.format == "jsonl" else source.format
    expected = stated if stated in ("parquet", "arrow") else None
    if content != expected:
        raise ValueError(f"`format: {source.format}`, but the file starts {head[:8]!r}, as {content or 'text'} does")
    return stated


# Names.


def _expand(source: Source, pattern: str) -> list[Path] | list[str]:
    if is_url(pattern):
        with _reaching(source, pattern):
            return _expand_url(source, pattern)
    name = str(Path(os.path.expanduser(pattern.removeprefix("file://"))))  # noqa: PTH111 - an unknown ~user is no error
    # First, since a plain file name may hold glob characters.
    if Path(name).is_file():
        return _refuse_empty(source, [Path(name)])
    if Path(name).is_dir():
        raise ValueError(f"source {source.name!r}: {pattern} is a folder: name its files, such as {pattern}/*.jsonl")
    if not glob.has_magic(name):
        raise ValueError(f"source {source.name!r}: {pattern}: no such file (current folder: {Path.cwd()})")
    paths = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 - absolute patterns too
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ValueError(f"source {source.name!r}: no file matches {pattern} (current folder: {Path.cwd()})")
    return _refuse_empty(source, files)


def _refuse_empty(source: Source, files: list[Path]) -> list[Path]:
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"source {source.name!r}: {file} is empty (0 bytes): remove it from `path`, or fetch it")
    return files


# URLs.


def _expand_url(source: Source, pattern: str) -> list[str]:
    filesystem, path = _filesystem(pattern)
    urls = [pattern]
    if _is_glob(pattern, filesystem, path):
        urls = [_url(pattern, path, name) for name in filesystem.glob(path)]
    if not urls:
        raise ValueError(f"source {source.name!r}: no file matches {pattern}")
    for url in urls:
        info = filesystem.info(_filesystem(url)[1])
        if info.get("type") == "directory":
            raise ValueError(f"source {source.name!r}: {url} is a folder: name its files, such as {url}/*.jsonl")
        if info.get("size") == 0:
            raise ValueError(f"source {source.name!r}: {url} is empty (0 bytes): remove it from `path`, or write it")
    return urls


def _is_glob(pattern: str, filesystem: Any, path: str) -> bool:
    """Whether a URL with glob characters stands for several files. The name of one file may hold ? and [ as well, and
    over HTTP a ? begins the query."""
    if "*" in pattern:
        return True
    return glob.has_magic(pattern) and not filesystem.exists(path) and not pattern.startswith("http")


def _url(pattern: str, path: str, name: str) -> str:
    """The URL of a file that matches: the pattern with the file's `name` in the place of its `path`."""
    path, name = path.lstrip("/"), name.lstrip("/")
    head, chain, rest = pattern.partition("::")
    if head.endswith(path):
        return head.removesuffix(path) + name + chain + rest
    return pattern.removesuffix(path) + name


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. Credentials come from the file system's own files and environment."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


@contextmanager
def _reaching(source: Source, url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each file system below raises types of its own
        if isinstance(error, ValueError) and str(error).startswith("source "):
            raise
        text = str(error).partition("\n")[0][:300]
        raise ValueError(
            f"source {source.name!r}: cannot read {url}: {type(error).__name__}: {text}\n  {_remedy(url, error)}"
        ) from error


def _remedy(url: str, error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, ImportError):
        return "Install the package named there into the environment that prepares the data (s3fs for s3://, gcsfs for gs://)."
    if isinstance(error, FileNotFoundError):
        return "Check the name; a bucket's name is part of it."
    if isinstance(error, PermissionError) or any(sign in text for sign in ("credential", "forbidden", "denied", "401")):
        return "Check the credentials: they come from the store's own configuration files and environment variables."
    if "protocol not known" in text:
        return "Check what stands before ://, or give a path without it."
    return f"Check that {url.partition('://')[0]}:// can be reached from here, or copy the file here and name its path."
