"""Forms of files: compressed, remote, Parquet and Arrow give the rows that were written, however they are cut."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.recipe import Source
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import RawRow, slice_source
from tests.conftest import ROOT
from tests.support.reading import (
    CSV,
    CSV_ROWS,
    JSONL,
    ROWS,
    TABLES,
    read_all,
    source_of,
    values,
    write,
    write_table,
    zstd,
)

pa = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def test_messages_in_a_cell_of_text_are_read(tmp_path):
    """As in CSV, and in a string column of Parquet."""
    messages = [{"role": "user", "content": 'a "한"'}, {"role": "assistant", "content": "b\n"}]
    text = json.dumps(messages, ensure_ascii=False)
    csv_path = write(tmp_path / "x.csv", "messages\n" + '"' + text.replace('"', '""') + '"\n')
    for path in (csv_path, write_table(tmp_path / "x.parquet", pa.table({"messages": [text]}), 1)):
        source = Source(name="s", path=str(path), form="messages")
        [row] = read_all(source)
        conversation = to_conversation(source, row)
        assert [(m.role, m.content) for m in conversation.messages] == [(m["role"], m["content"]) for m in messages]


def test_format_and_encoding_do_not_belong_to_a_hub_data_set():
    for option in ({"format": "csv"}, {"encoding": "cp949"}):
        with pytest.raises(ValueError, match="belong to files, not to a hub data set"):
            slice_source(Source(name="s", dataset="o/d", form="alpaca", **option), 3)


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


HUGE = 100_000_000
HUGE_ROWS = [
    ("x.jsonl", b'{"a": 1}\n{"a": "', b"x", HUGE, b'"}\n{"a": 1}\n', "too_large"),
    ("x.jsonl", b'{"a": 1}\n{"a": ', b"[", HUGE // 10, b'\n{"a": 1}\n', "not_json"),
    ("x.json", b'[{"a": 1},{"a": "', b"x", HUGE, b'"},{"a": 1}]', "too_large"),
    ("x.json", b'[{"a": 1},{"a": ', b"[", HUGE, b'},{"a": 1}]', "not_json"),  # all that follows is within the brackets
    ("x.csv", b"a\n1\n", b"x", HUGE, b"\n1\n", "too_large"),
    ("x.csv", b'a\n1\n"', b"x", HUGE, b"\n1\n", "too_large"),
    ("x.csv", b"a\n1\n", b"\0", HUGE, b"\n1\n", "too_large"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "before", "unit", "times", "behind", "reason"), HUGE_ROWS)
def test_a_huge_or_deep_row_ends_as_a_bad_row(tmp_path, name, before, unit, times, behind, reason):
    path = write(tmp_path / name, before + unit * times + behind)
    found = values(read_all(source_of(path), 2))
    path.unlink()
    assert found[1] == reason
    assert [isinstance(row, dict) for row in found] == (
        [True, False] if unit * 2 == b"[[" and len(found) == 2 else [True, False, True]
    )


MEASURE = """
import sys
from data_prep.sources.slices import read_slice, slice_source
from data_prep.recipe import Source
from tests.benchmarks.bench_readers import peak_bytes
source = Source(name="s", path=sys.argv[1], form="alpaca")
rows = (row for piece in slice_source(source, 10_000) for row in read_slice(source, piece))
print(sum(isinstance(row.value, dict) for row in rows), peak_bytes())
"""


def write_large(path: Path, num_blocks: int) -> None:
    """Blocks of 50 rows of 3,000 characters."""
    if path.suffix == ".arrows":
        block = pa.RecordBatch.from_pylist([{"a": "y" * 3000}] * 50)
        with pa.ipc.new_stream(str(path), block.schema) as writer:
            for _ in range(num_blocks):
                writer.write_batch(block)
        return
    line = b'{"a": "%s"}\n' if path.suffix == ".jsonl" else b'1,"x\n%s"\n'
    with path.open("wb") as file:
        file.write(b"" if path.suffix == ".jsonl" else b"a,b\n")
        for _ in range(num_blocks):
            file.write((line % (b"y" * 3000)) * 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.arrows"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    write_large(tmp_path / name, 1300)
    assert (tmp_path / name).stat().st_size > 190_000_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (tmp_path / name).unlink()
    count, peak = map(int, done.stdout.split())
    assert count == 50 * 1300
    assert peak < 150_000_000, "of 300 MB allowed; the file has 195 MB"
