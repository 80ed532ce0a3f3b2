"""Forms of files: compressed, remote, Parquet and Arrow give the rows that were written, however they are cut."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import random
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from data_prep import local_copies, opening, tables
from data_prep.conversation import BadRow
from data_prep.json_rows import parse_cell
from data_prep.local_copies import cache_folder, use_cache
from data_prep.readers import RawRow, Slice, read_slice, slice_source, source_files, source_identity
from tests.conftest import ROOT
from tests.reading import read_all, source_of, values, write

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [{"a": f"{number} 한글 \n", "m": [{"role": "user", "content": "x" * (number % 5)}]} for number in range(50)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = b"a,b\n" + b"".join(b'%d,"x\n%d"\n' % (number, number) for number in range(50))
CSV_ROWS = [{"a": f"{number}", "b": f"x\n{number}"} for number in range(50)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path / "cache"))
    tables._PLACES.clear()
    return tmp_path / "cache"


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


# Compressed.

COMPRESSED = [
    ("x.jsonl.gz", gzip.compress(JSONL), ROWS),
    ("x.jsonl.gz", gzip.compress(JSONL[:999]) + gzip.compress(JSONL[999:]), ROWS),
    ("x.jsonl.zst", zstd(JSONL), ROWS),
    ("x.jsonl.zst", b"\x50\x2a\x4d\x18\x02\0\0\0ab" + zstd(JSONL[:999]) + zstd(JSONL[999:]), ROWS),
    ("x.json.gz", gzip.compress(json.dumps(ROWS).encode()), ROWS),
    ("x.csv.gz", gzip.compress(CSV), CSV_ROWS),
    ("x.tsv.zst", zstd(CSV.replace(b",", b"\t")), CSV_ROWS),
    ("x.csv", gzip.compress(CSV), CSV_ROWS),  # whatever the name says
    ("x.csv.gz", CSV, CSV_ROWS),
    ("x", gzip.compress(JSONL), ROWS),
    ("x.csv.gz", gzip.compress(gzip.compress(CSV)), CSV_ROWS),
    ("x.csv.gz", gzip.compress(CSV.decode().encode("utf-16")), CSV_ROWS),
]


@pytest.mark.parametrize(("name", "content", "expected"), COMPRESSED)
def test_compressed_files_give_the_rows_of_the_plain_file(tmp_path, name, content, expected):
    source = source_of(write(tmp_path / name, content))
    for rows_per_slice in (1, 7, 100):
        rows = read_all(source, rows_per_slice)
        assert values(rows) == expected
        assert [row.number for row in rows] == list(range(50))
        assert rows[3].where.startswith(f"{tmp_path / name}:") or name.startswith("x.json.gz")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:40],
        lambda raw: raw[:60] + b"\xff\0\xff" + raw[63:],
        lambda raw: raw + b"junk",
    ],
)
def test_a_damaged_compressed_file_is_refused(tmp_path, cache, name, damage):
    raw = gzip.compress(JSONL) if name.endswith("gz") else zstd(JSONL)
    with pytest.raises(
        ValueError, match=rf"source 's': .*{name}: (gzip|zstd) data that is damaged or cut off: .*fetch"
    ):
        slice_source(source_of(write(tmp_path / name, damage(raw))), 10)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"], "nothing of it is left"


def test_files_that_decompress_to_compressed_files_end(tmp_path):
    path = write(tmp_path / "x.gz", gzip.compress(gzip.compress(gzip.compress(JSONL))))
    with pytest.raises(ValueError, match="it is compressed more than 2 times over"):
        slice_source(source_of(path), 2)
    with pytest.raises(ValueError, match="it is empty"):
        read_all(source_of(write(tmp_path / "y.gz", gzip.compress(b""))))


# Copies.


def test_a_copy_is_made_once_and_again_when_it_is_lost(tmp_path, cache, monkeypatch):
    source = source_of(write(tmp_path / "x.jsonl.gz", gzip.compress(JSONL)))
    slices = slice_source(source, 7)
    [copy] = {piece.copy for piece in slices}
    assert (cache / copy).read_bytes() == JSONL
    assert Slice(**json.loads(json.dumps(asdict(slices[1])))) == slices[1]
    with monkeypatch.context() as no_more:
        no_more.setattr(local_copies, "_decompressed", None)
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


def test_one_copy_is_made_however_many_want_it(tmp_path, monkeypatch):
    made = []
    original = local_copies._write
    monkeypatch.setattr(local_copies, "_write", lambda *args: made.append(args) or original(*args))
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
    use_cache(write(tmp_path / "file", "") / "folder")
    with pytest.raises(
        ValueError, match=r"x\.jsonl\.gz: cannot be copied .*set PACKHAUL_CACHE to a folder that has room"
    ):
        slice_source(source_of(path), 10)
    monkeypatch.delenv("PACKHAUL_CACHE")
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
    assert opening._url(pattern, path, name) == url


# Parquet and Arrow.


def write_table(path: Path, table, size: int, **options) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=size, **options)
        return path
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    options = {"options": pa.ipc.IpcWriteOptions(**options)} if options else {}
    with new(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=size)
    return path


TABLES = [
    ("x.parquet", {}),
    ("x.parquet", {"compression": "zstd", "data_page_size": 64}),
    ("x.arrows", {}),
    ("x.arrow", {}),
    ("x.arrow", {"compression": "lz4"}),
]


@pytest.mark.parametrize(("name", "options"), TABLES)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_tables_give_their_rows_however_they_are_cut(tmp_path, name, options, size):
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(ROWS), size, **options))
    for rows_per_slice in (1, 3, 7, 50, 99):
        slices = slice_source(source, rows_per_slice)
        assert [piece.num_rows for piece in slices[:-1]] == [rows_per_slice] * (len(slices) - 1)
        rows = {piece.index: list(read_slice(source, piece)) for piece in random.Random(0).sample(slices, len(slices))}
        rows = [row for index in sorted(rows) for row in rows[index]]
        assert values(rows) == ROWS
        assert [row.where for row in rows] == [f"{tmp_path / name}[{number}]" for number in range(50)]
    assert values(read_all(source_of(tmp_path / name, first=9), 4)) == ROWS[:9]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrows"])
def test_slices_that_are_read_in_turns_or_given_up_do_not_disturb_each_other(tmp_path, name):
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(ROWS), 3))
    slices = slice_source(source, 10)
    pairs = list(zip(read_slice(source, slices[0]), read_slice(source, slices[3]), strict=True))
    assert values([row for pair in pairs for row in pair]) == [
        row for n in range(10) for row in (ROWS[n], ROWS[30 + n])
    ]
    list(read_slice(source, slices[0]))
    pairs = list(zip(read_slice(source, slices[1]), read_slice(source, slices[2]), strict=True))
    assert [(first.value, second.value) for first, second in pairs] == list(zip(ROWS[10:20], ROWS[20:30], strict=True))
    for piece in slices:
        next(iter(read_slice(source, piece)))
    assert values(read_all(source, 10)) == ROWS
    write_table(tmp_path / name, pa.Table.from_pylist(ROWS[::-1]), 3)
    assert values(read_all(source, 10)) == ROWS[::-1]


@pytest.mark.parametrize(("name", "batches"), [("x.parquet", 8), ("x.arrows", 8)])
def test_a_process_decodes_a_file_once(tmp_path, monkeypatch, name, batches):
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(ROWS), 50 if name == "x.parquet" else 7))
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 7)
    decoded = []
    for function in ("_parquet_batches", "_arrow"):
        original = getattr(tables, function)

        def count(*args, _original=original, **options):
            for item in _original(*args, **options):
                if not options.get("is_mapped"):
                    decoded.append(item)
                yield item

        monkeypatch.setattr(tables, function, count)
    assert values(read_all(source, 3)) == ROWS
    assert len(decoded) == batches


def test_a_row_group_is_gone_to_without_decoding_those_before(tmp_path, monkeypatch):
    source = source_of(write_table(tmp_path / "x.parquet", pa.Table.from_pylist(ROWS), 10))
    slices = slice_source(source, 5)
    first_rows = []
    original = tables._parquet_batches

    def note(*args):
        for row, batch in original(*args):
            first_rows.append(row)
            yield row, batch

    monkeypatch.setattr(tables, "_parquet_batches", note)
    assert values(list(read_slice(source, slices[-1]))) == ROWS[45:]
    assert values(list(read_slice(source, slices[0]))) == ROWS[:5]
    assert values(list(read_slice(source, slices[6]))) == ROWS[30:35]
    assert first_rows == [40, 0, 30]


def test_first_limits_the_rows_over_all_tables(tmp_path):
    for name in ("a.parquet", "b.parquet", "c.arrow"):
        write_table(tmp_path / name, pa.Table.from_pylist(ROWS), 10)
    for first in (1, 49, 50, 51, 100, 150, 999):
        assert values(read_all(source_of(tmp_path / "*.*", first=first), 20)) == (ROWS * 3)[:first]


def test_values_become_plain_python(tmp_path):
    day = datetime.date(2024, 2, 29)
    row = {"text": "x", "number": 1, "share": 0.5, "flag": True, "none": None, "raw": b"\0", "day": day}
    row |= {"list": [[1], None], "object": {"a": {"b": "c"}}, "exact": decimal.Decimal("1.50")}
    table = pa.Table.from_pylist([row])
    table = table.append_column("map", pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())))
    table = table.append_column("coded", pa.array(["x"]).dictionary_encode())
    table = table.append_column("large", pa.array(["y"], pa.large_string()))
    for name in ("x.parquet", "x.arrows"):
        [found] = read_all(source_of(write_table(tmp_path / name, table, 1)))
        assert found.value == {**row, "map": {"k": 1}, "coded": "x", "large": "y"}
        assert type(found.value["object"]) is dict and type(found.value["list"]) is list


def test_a_cell_that_python_cannot_hold_costs_its_row_only(tmp_path):
    texts = pa.array([b"a", b"\xff\xfe", b"c"]).cast(pa.binary())
    bad_text = pa.StringArray.from_buffers(3, *texts.buffers()[1:])
    times = pa.array([0, 2**62, 1], pa.int64()).cast(pa.timestamp("us"), safe=False)
    twice = pa.array([[("k", 1)], [("k", 1), ("k", 2)], []], pa.map_(pa.string(), pa.int64()))
    for column, reason in ((bad_text, "not_utf8"), (times, "not_readable"), (twice, "not_readable")):
        path = write_table(tmp_path / "x.parquet", pa.table({"a": column, "n": [0, 1, 2]}), 3)
        found = values(read_all(source_of(path), 2))
        assert [row if isinstance(row, str) else row["n"] for row in found] == [0, reason, 2]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("x.parquet", lambda raw: raw[:-9], "cannot be read: "),
        ("x.parquet", lambda raw: raw[:4] + bytes(500) + raw[504:], "cannot be read: "),
        ("x.arrows", lambda raw: raw[:-8], "the stream has no end mark, so rows may be missing"),
        ("x.arrows", lambda raw: raw[: len(raw) // 2], "cannot be read: "),
        ("x.arrows", lambda raw: raw + raw, r"more follows the end of the stream \(byte"),
        ("x.arrow", lambda raw: raw[:-9], "cannot be read: "),
    ],
)
def test_damaged_tables_are_refused(tmp_path, name, damage, message):
    path = write_table(tmp_path / name, pa.Table.from_pylist(ROWS), 10)
    write(path, damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"source 's': .*{name}: .*{message}"):
        read_all(source_of(path), 10)


def test_tables_that_would_lose_or_fill_something_are_refused(tmp_path, monkeypatch):
    twice = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", "a"])
    for name in ("x.parquet", "x.arrows"):
        with pytest.raises(ValueError, match=rf"{name}: .*two columns are named 'a'"):
            slice_source(source_of(write_table(tmp_path / name, twice, 1)), 1)
    monkeypatch.setattr(tables, "_MAX_BATCH", 500)
    path = write_table(tmp_path / "y.arrow", pa.Table.from_pylist(ROWS), 50)
    with pytest.raises(ValueError, match=r"record batch 0 has \d+ bytes, .* max_chunksize=1000"):
        slice_source(source_of(path), 1)
    monkeypatch.setattr(tables, "_MAX_ROWS_PER_BYTE", 0.001)
    with pytest.raises(ValueError, match=r"says it has 50 rows in \d+ bytes"):
        slice_source(source_of(write_table(tmp_path / "z.parquet", pa.Table.from_pylist(ROWS), 50)), 1)


# Which form.


@pytest.mark.parametrize(
    ("name", "content", "format", "expected"),
    [
        ("x.txt", CSV, "csv", CSV_ROWS),
        ("x.csv", CSV.replace(b",", b"\t"), "tsv", CSV_ROWS),
        ("x.csv", JSONL, "jsonl", ROWS),
        ("x.jsonl", b'[1]\n{"a": 1}', "jsonl", ["not_an_object", {"a": 1}]),
        ("x.jsonl", b'\xef\xbb\xbf[{"a": 1}]', "jsonl", ["not_an_object"]),
        ("x.txt", b'[{"a": 1}]', "json", [{"a": 1}]),
        ("x.csv.gz", gzip.compress(JSONL), "jsonl", ROWS),
    ],
)
def test_a_stated_format_is_used(tmp_path, name, content, format, expected):
    assert values(read_all(source_of(write(tmp_path / name, content), format=format), 7)) == expected


def test_content_tells_a_table_whatever_its_name(tmp_path):
    for suffix, other in ((".parquet", "x"), (".arrow", "x.json"), (".arrows", "x.csv")):
        path = write_table(tmp_path / f"t{suffix}", pa.Table.from_pylist(ROWS), 9)
        assert values(read_all(source_of(path.rename(tmp_path / other)), 7)) == ROWS
    assert read_all(source_of(write(tmp_path / "y.csv", "PAR1,b\n1,2\n")))[0].value == {"PAR1": "1", "b": "2"}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (JSONL, {"format": "json"}, "is one array of objects in brackets, and this is not: is it `format: jsonl`"),
        (JSONL, {"format": "parquet"}, "`format: parquet`, but the file starts .* as text does"),
        ("PARQUET", {"format": "csv"}, r"`format: csv`, but the file starts b'PAR1.*, as parquet does"),
        ("PARQUET", {"encoding": "cp949"}, "`encoding` belongs to text files; this is parquet"),
        (b"PK\x03\x04rest", {}, "a ZIP archive or an Excel workbook; the forms read are JSON"),
        (b"\xfd7zXZ\0rest", {}, "an xz file; the forms read are"),
    ],
)
def test_another_form_than_stated_or_known_is_refused(tmp_path, content, options, message):
    path = tmp_path / "x"
    if content == "PARQUET":
        write_table(tmp_path / "x.parquet", pa.Table.from_pylist(ROWS), 9).rename(path)
    else:
        write(path, content)
    with pytest.raises(ValueError, match=rf"source 's': {path}: .*{message}"):
        slice_source(source_of(path, **options), 7)


def test_format_and_encoding_do_not_belong_to_a_hub_data_set():
    from data_prep.recipe import Source

    for option in ({"format": "csv"}, {"encoding": "cp949"}):
        with pytest.raises(ValueError, match="belong to files, not to a hub data set"):
            slice_source(Source(name="s", dataset="o/d", form="alpaca", **option), 3)


# Cells that hold JSON.


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('[{"role": "user", "content": "x"}]', [{"role": "user", "content": "x"}]),
        (' {"a": [1]}\n', {"a": [1]}),
        ("text", "text"),
        ("", ""),
        (None, None),
        (["x"], ["x"]),
        (3, 3),
    ],
)
def test_text_that_holds_json_is_parsed(cell, value):
    assert parse_cell(cell) == value


@pytest.mark.parametrize(
    ("cell", "detail"),
    [
        ("[{'role': 'user'}]", "it is Python's notation: write the column with json.dumps"),
        ('[{"role": "user"}', "of the cell, which starts"),
        ("[" * 5000, "the cell starts"),
        ("[" * 200 + "]" * 200, "nested more than 100 levels"),
        ("[" + "9" * 5000 + "]", "the cell starts"),
    ],
)
def test_a_cell_of_broken_json_is_a_bad_row(cell, detail):
    with pytest.raises(BadRow, match=detail) as found:
        parse_cell(cell)
    assert found.value.reason == "not_json"


# Whatever the bytes, and however many.


def test_no_damage_raises_anything_but_value_error(tmp_path):
    """Bytes of each form changed at random; every row that a slice promises comes, or the file is refused."""
    table = pa.Table.from_pylist(ROWS)
    contents = {"x.jsonl.gz": gzip.compress(JSONL), "x.csv.zst": zstd(CSV), "x.csv": CSV.decode().encode("utf-16")}
    for name, options in TABLES:
        contents[name] = write_table(tmp_path / name, table, 9, **options).read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        name = chance.choice(list(contents))
        raw = bytearray(contents[name])
        for _ in range(chance.choice([1, 2, 8])):
            place = chance.randrange(len(raw))
            raw[place : place + chance.choice([1, 4])] = chance.choice([b"\0", b"\xff\xff\xff\x7f", b"", b"a"])
        source = source_of(write(tmp_path / name, bytes(raw)))
        try:
            rows: list[RawRow] = read_all(source, chance.choice([1, 9, 100]))
            assert [row.number for row in rows] == list(range(len(rows)))
        except ValueError as error:
            assert str(error).startswith("source 's'"), error
            refused += 1
    assert 50 < refused < 400


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": "' + b"x" * 100_000_000 + b'"}\n{"a": 1}\n', ["too_large"]),
        ("x.json", b'[{"a": 1},{"a": ' + b"[" * 100_000_000 + b'"},{"a": 1}]', ["too_large"]),
        ("x.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 9_000_000 + b'\n{"a": 1}\n', ["not_json"]),
        ("x.csv", b"a\n1\n" + b"x" * 100_000_000 + b"\n1\n", ["too_large"]),
        ("x.csv", b'a\n1\n"' + b"x" * 100_000_000 + b"\n1\n", ["too_large"]),
        ("x.csv", b"a\n1\n" + b"\0" * 100_000_000 + b"\n1\n", ["too_large"]),
    ],
)
def test_a_huge_or_deep_row_ends_as_a_bad_row(tmp_path, name, content, reasons):
    found = values(read_all(source_of(write(tmp_path / name, content)), 2))
    (tmp_path / name).unlink()
    assert found[1 : 1 + len(reasons)] == reasons or found[1:] == ["not_json"]  # all is within the open brackets
    assert isinstance(found[0], dict)


MEASURE = """
import sys
from data_prep.readers import read_slice, slice_source
from data_prep.recipe import Source
from tests.benchmarks.bench_readers import peak_bytes
source = Source(name="s", path=sys.argv[1], form="alpaca")
rows = (row for piece in slice_source(source, 10_000) for row in read_slice(source, piece))
print(sum(isinstance(row.value, dict) for row in rows), peak_bytes())
"""


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    line = b'{"a": "%s"}\n' if name == "x.jsonl" else b'1,"x\n%s"\n'
    block = (line % (b"y" * 3000)) * 50
    copies = 200_000_000 // len(block)
    with (tmp_path / name).open("wb") as file:
        file.write(b"" if name == "x.jsonl" else b"a,b\n")
        for _ in range(copies):
            file.write(block)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    (tmp_path / name).unlink()
    count, peak = map(int, done.stdout.split())
    assert count == 50 * copies
    assert peak < 120_000_000, "of 300 MB allowed; the file has 200 MB"
