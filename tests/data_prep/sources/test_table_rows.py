"""Parquet and Arrow: the rows that were written, as plain Python, however they are cut; nothing of a damaged file."""

from __future__ import annotations

import datetime
import decimal
import random

import pytest

from data_prep.sources import slices, table_rows
from data_prep.sources.slices import read_slice, slice_source
from tests.support.reading import ROWS, TABLES, read_all, source_of, values, write, write_table

pa = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _no_place_of_another_test():
    table_rows._PLACES.clear()


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
def test_slices_of_long_rows_end_earlier(tmp_path, monkeypatch, name):
    """Their tokens are held in memory."""
    monkeypatch.setattr(slices, "_SLICE_BYTES", 1 << 16)
    rows = [{"text": random.Random(i).randbytes(5000 if i >= 30 else 1).hex()} for i in range(50)]
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(rows), 10))
    sizes = [piece.num_rows for piece in slice_source(source, 20)]
    assert sizes == [20, 17, 7, 6]  # 10,000 bytes each from the 31st row on
    assert values(read_all(source, 20)) == rows


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


@pytest.mark.parametrize("name", ["x.parquet", "x.arrows"])
def test_fields_that_only_other_rows_have_are_not_there(tmp_path, name):
    """Arrow gives all structs of a column the same fields; what a row did not have would be trained as null."""
    rows = [
        {"tools": [{"name": "f", "parameters": {"city": {"type": "string"}}}], "calls": {"city": "Seoul"}, "x": None},
        {"tools": [{"name": "g", "parameters": {"a": {"type": "number"}}}], "calls": {"a": 1}, "x": None},
    ]
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(rows), 2))
    assert values(read_all(source, 2)) == rows


@pytest.mark.parametrize(("name", "batches"), [("x.parquet", 8), ("x.arrows", 8)])
def test_a_process_decodes_a_file_once(tmp_path, monkeypatch, name, batches):
    source = source_of(write_table(tmp_path / name, pa.Table.from_pylist(ROWS), 50 if name == "x.parquet" else 7))
    monkeypatch.setattr(table_rows, "_ROWS_AT_ONCE", 7)
    decoded = []
    for function in ("_parquet_batches", "_arrow_batches"):
        original = getattr(table_rows, function)

        def count(*args, _original=original):
            for item in _original(*args):
                decoded.append(item)
                yield item

        monkeypatch.setattr(table_rows, function, count)
    assert values(read_all(source, 3)) == ROWS
    assert len(decoded) == batches


def test_a_row_group_is_gone_to_without_decoding_those_before(tmp_path, monkeypatch):
    source = source_of(write_table(tmp_path / "x.parquet", pa.Table.from_pylist(ROWS), 10))
    slices = slice_source(source, 5)
    first_rows = []
    original = table_rows._parquet_batches

    def note(*args):
        for row, batch in original(*args):
            first_rows.append(row)
            yield row, batch

    monkeypatch.setattr(table_rows, "_parquet_batches", note)
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
    monkeypatch.setattr(table_rows, "_MAX_BATCH", 500)
    path = write_table(tmp_path / "y.arrow", pa.Table.from_pylist(ROWS), 50)
    with pytest.raises(ValueError, match=r"record batch 0 has \d+ bytes, .* max_chunksize=1000"):
        slice_source(source_of(path), 1)
    monkeypatch.setattr(table_rows, "_MAX_ROWS_PER_BYTE", 0.001)
    with pytest.raises(ValueError, match=r"says it has 50 rows in \d+ bytes"):
        slice_source(source_of(write_table(tmp_path / "z.parquet", pa.Table.from_pylist(ROWS), 50)), 1)
