"""Inputs that are copied before they are read: once, whole or not at all, and the same from a URL as from a file."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from data_prep.sources import input_files, plain_copies
from data_prep.sources.input_files import source_files
from data_prep.sources.plain_copies import cache_folder, use_cache
from data_prep.sources.slices import Slice, read_slice, slice_source, source_identity
from tests.support.reading import CSV, CSV_ROWS, JSONL, ROWS, read_all, source_of, values, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_copy_is_made_once_and_again_when_it_is_lost(tmp_path, cache, monkeypatch):
    source = source_of(write(tmp_path / "x.jsonl.gz", gzip.compress(JSONL)))
    slices = slice_source(source, 7)
    [copy] = {piece.copy for piece in slices}
    assert (cache / copy).read_bytes() == JSONL
    assert Slice(**json.loads(json.dumps(asdict(slices[1])))) == slices[1]
    with monkeypatch.context() as no_more:
        no_more.setattr(plain_copies, "_decompressed", None)
        assert values(read_all(source, 7)) == ROWS
        assert values(list(read_slice(source, slices[-1]))) == ROWS[49:]
    (cache / copy).unlink()
    (cache / f"{copy}.0.partial").write_bytes(b"left by a kill")
    assert values(list(read_slice(source, slices[0]))) == ROWS[:7]
    assert {path.name for path in cache.iterdir()} == {copy, f"{copy}.lock"}


def test_a_changed_input_gets_another_copy_and_its_old_slices_are_refused(tmp_path, cache):
    path = write(tmp_path / "x.csv", "a,b\n1,안녕하세요\n".encode("utf-16"))
    old = slice_source(source_of(path), 7)
    write(path, "a,b\n2,반갑습니다만\n".encode("utf-16"))
    assert values(read_all(source_of(path))) == [{"a": "2", "b": "반갑습니다만"}]
    for copy in cache.iterdir():
        copy.unlink()
    with pytest.raises(ValueError, match=r"source 's': .*x\.csv: the input changed after it was sliced"):
        list(read_slice(source_of(path), old[0]))


def test_an_input_that_changes_while_it_is_copied_is_refused(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(JSONL))
    original = plain_copies._decompressed

    def append(*args):
        yield from original(*args)
        write(path, path.read_bytes() + gzip.compress(JSONL))

    with monkeypatch.context() as during_the_copy:
        during_the_copy.setattr(plain_copies, "_decompressed", append)
        with pytest.raises(ValueError, match=r"source 's': .*x\.jsonl\.gz: it changed while it was copied"):
            slice_source(source_of(path), 10)
    assert {copy.suffix for copy in cache.iterdir()} == {".lock"}
    assert len(read_all(source_of(path), 100)) == 100


def test_one_copy_is_made_however_many_want_it(tmp_path, monkeypatch):
    made = []
    original = plain_copies._write
    monkeypatch.setattr(plain_copies, "_write", lambda *args: made.append(args) or original(*args))
    source = source_of(write(tmp_path / "x.jsonl.gz", gzip.compress(JSONL * 200)))
    threads = [threading.Thread(target=slice_source, args=(source, 100)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(read_all(source, 5000)) == 10_000


def test_no_room_for_copies_says_what_to_set(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(JSONL))
    monkeypatch.delenv("PACKHAUL_CACHE")
    use_cache(write(tmp_path / "file", "") / "folder")
    with pytest.raises(
        ValueError, match=r"x\.jsonl\.gz: cannot be copied .*set PACKHAUL_CACHE to a folder that has room"
    ):
        slice_source(source_of(path), 10)
    use_cache(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "packhaul"


# URLs. fsspec's memory:// stands in for a store.


@pytest.fixture
def store():
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def test_urls_and_globs_on_them_are_read_as_files_are(tmp_path, store):
    store.pipe({"/d/b.jsonl": JSONL, "/d/a.csv.gz": gzip.compress(CSV), "/d/sub/c.json": b'[{"c": 1}]'})
    assert source_files(source_of("memory://d/*.*")) == ["memory://d/a.csv.gz", "memory://d/b.jsonl"]
    local = write(tmp_path / "x.jsonl", b'{"x": 1}')
    source = source_of(
        ["memory://d/**/*.json", "memory://d/b.jsonl", str(local), "memory://d/*.gz", "memory://d/b.jsonl"]
    )
    rows = read_all(source, 7)
    assert values(rows) == [{"x": 1}, *CSV_ROWS, *ROWS, {"c": 1}]
    assert [rows[0].where, rows[51].where] == [f"{local}:1", "memory://d/b.jsonl:1"]
    assert [row.number for row in rows] == list(range(102))


def test_a_slice_of_a_url_is_read_without_the_store(store):
    store.pipe("/d/b.jsonl", JSONL)
    source = source_of("memory://d/b.jsonl")
    slices = slice_source(source, 7)
    store.store.clear()
    assert values([row for piece in slices for row in read_slice(source, piece)]) == ROWS


def test_chained_urls_and_file_urls(tmp_path, store):
    import zipfile

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/x.csv", CSV)
        archive.writestr("in/y.csv", CSV)
    store.pipe("/d/z.zip", (tmp_path / "z.zip").read_bytes())
    path = write(tmp_path / "x.csv", CSV)
    assert source_files(source_of("zip://in/*.csv::memory://d/z.zip"))[1] == "zip://in/y.csv::memory://d/z.zip"
    assert values(read_all(source_of("zip://in/*.csv::memory://d/z.zip"), 9)) == CSV_ROWS * 2
    assert source_files(source_of(f"file://{path}")) == [path]


def test_identity_of_a_url_changes_with_its_content(store):
    store.pipe("/d/b.jsonl", b'{"a": 1}')
    before = source_identity(source_of("memory://d/b.jsonl"))
    assert json.loads(json.dumps(before)) == before == source_identity(source_of("memory://d/b.jsonl"))
    assert values(read_all(source_of("memory://d/b.jsonl"))) == [{"a": 1}]
    store.pipe("/d/b.jsonl", b'{"a": 2}')
    assert source_identity(source_of("memory://d/b.jsonl")) != before
    assert values(read_all(source_of("memory://d/b.jsonl"))) == [{"a": 2}]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://d/absent.jsonl", r"cannot read memory://d/absent.jsonl: FileNotFoundError.*\n  Check the name"),
        ("memory://d/*.absent", "no file matches memory"),
        ("memory://d", r"memory://d is a folder: name its files, such as memory://d/\*.jsonl"),
        ("memory://d/empty.jsonl", "memory://d/empty.jsonl is empty"),
        ("memory://d/x.jsonl.bz2", r"x.jsonl.bz2: \.bz2 files are not read"),
        ("nothing://d/x", r"Protocol not known: nothing\n  Check what stands before ://"),
        ("sftp://localhost/x.jsonl", r'requires "paramiko" to be installed\n  Install the package named there'),
    ],
)
def test_urls_that_cannot_be_read_are_refused(store, url, message):
    store.pipe({"/d/empty.jsonl": b"", "/d/x.jsonl.bz2": b"x"})
    with pytest.raises(ValueError, match=f"source 's': .*{message}"):
        slice_source(source_of(url), 10)


@pytest.mark.parametrize(
    ("pattern", "path", "name", "url"),
    [
        ("s3://bucket/*.csv", "bucket/*.csv", "bucket/x.csv", "s3://bucket/x.csv"),
        ("sftp://me@host/d/*.csv", "/d/*.csv", "/d/x.csv", "sftp://me@host/d/x.csv"),
        ("https://host/*.csv", "https://host/*.csv", "https://host/x.csv", "https://host/x.csv"),
        ("simplecache::s3://bucket/*.csv", "bucket/*.csv", "bucket/x.csv", "simplecache::s3://bucket/x.csv"),
        ("zip://*.csv::s3://b/z.zip", "*.csv", "x.csv", "zip://x.csv::s3://b/z.zip"),
    ],
)
def test_what_a_glob_finds_keeps_its_store(pattern, path, name, url):
    assert input_files._url(pattern, path, name) == url
