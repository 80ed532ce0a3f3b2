"""CSV and TSV: the rows that Python's csv module gives, however they are cut; what is wrong costs its own row only."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_prep.conversation import BadRow
from data_prep.sources import csv_rows, slices
from data_prep.sources.slices import Slice, read_slice, slice_source
from tests.conftest import LOADED
from tests.support.reading import read_all, source_of, values, write

PROPERTY = settings(deadline=None, suppress_health_check=LOADED, max_examples=200)
CELLS = st.text(max_size=8) | st.text('",\n\r\t a한', max_size=10)
CELLS = CELLS.filter(lambda text: "\0" not in text and text.encode("utf-8", "ignore").decode() == text)


@PROPERTY
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    line_end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    frame=st.tuples(st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "\n", "\r\n\n"])),
    format=st.sampled_from(["csv", "tsv"]),
    rows_per_slice=st.integers(1, 5),
)
def test_rows_are_those_of_the_csv_module(tmp_path, rows, line_end, quoting, frame, format, rows_per_slice):
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if format == "csv" else "\t", lineterminator=line_end, quoting=quoting)
    writer.writerow(["a", "b", "c"])
    text.write(frame[1])
    writer.writerows(rows)
    path = write(tmp_path / f"x.{format}", (frame[0] + text.getvalue() + frame[1]).encode())
    try:
        expected = list(csv.DictReader(io.StringIO(text.getvalue(), newline="\n"), delimiter=writer.dialect.delimiter))
    except csv.Error:  # a carriage return that the writer has not quoted
        assume(False)
    found = read_all(source_of(path), rows_per_slice)
    assert values(found) == expected
    assert [row.number for row in found] == list(range(len(rows)))


def test_where_names_the_line_a_row_starts_on_and_slices_are_plain(tmp_path):
    path = write(tmp_path / "x.csv", '\na,b\n1,2\n\n"3\n\n3",4\r\n5,6\n7,8')
    slices = slice_source(source_of(path), 2)
    assert [(piece.first_line, piece.num_rows, piece.format) for piece in slices] == [(3, 2, "csv"), (8, 2, "csv")]
    assert [Slice(**json.loads(json.dumps(asdict(piece)))) for piece in slices] == slices
    rows = [row for piece in slices for row in read_slice(source_of(path), piece)]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (3, 5, 8, 9)]
    assert rows[1].value == {"a": "3\n\n3", "b": "4"}
    assert [row.where for row in read_slice(source_of(path), slices[1])] == [f"{path}:8", f"{path}:9"]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("1", "wrong_columns", "1 fields, where the first row names 2 columns; the row starts b'1"),
        ("1,2,3", "wrong_columns", "3 fields"),
        ("1,2,", "wrong_columns", "3 fields"),
        ('1,"two\nlines",3', "wrong_columns", "3 fields"),
        ('1,"x', "not_csv", "a quote that is not closed|text between a closing quote"),
        ('1,"he said "hi" to me"', "not_csv", "text between a closing quote and the end of its field"),
        ("1,x\rx", "not_csv", "a carriage return"),
        ("1,\0", "nul_byte", "a NUL byte in the row, which starts b'1"),
        ('1,"x\n\0"', "nul_byte", "a NUL byte"),
        (b"1,\xff", "not_utf8", "invalid start byte at byte 0 of the cell"),
        (b"1,\xed\xa0\x80", "not_utf8", "invalid continuation byte"),
    ],
)
def test_a_broken_row_costs_itself_only(tmp_path, line, reason, detail):
    raw = line.encode() if isinstance(line, str) else line
    content = b'a,b\n0,"x"\n%s\n"y",\xed\x95\x9c\n"4","z\nz"\n' % raw
    whole = [{"a": "0", "b": "x"}, {"a": "y", "b": "한"}, {"a": "4", "b": "z\nz"}]
    for rows_per_slice in (1, 2, 9):
        rows = read_all(source_of(write(tmp_path / "x.csv", content)), rows_per_slice)
        assert values(rows) == [whole[0], reason, *whole[1:]]
        assert rows[1].where.endswith("x.csv:3")
        assert re.search(detail, rows[1].value.detail)


def test_a_large_cell_is_no_error(tmp_path):
    """The csv module's own limit is 131,072 characters."""
    rows = [{"a": "x" * 200_000, "b": "한\n" * 100_000}]
    path = write(tmp_path / "x.csv", f'a,b\n{rows[0]["a"]},"{rows[0]["b"]}"\n')
    csv.field_size_limit(131_072)
    assert values(read_all(source_of(path))) == rows


def test_a_quote_left_open_at_the_end_costs_its_line_only(tmp_path):
    path = write(tmp_path / "x.csv", 'a,b\n1,2\n3,"x\n5,6\n7,8')
    for rows_per_slice in (1, 2, 3, 9):  # in a slice's last row too, where the end of the slice comes first
        rows = read_all(source_of(path), rows_per_slice)
        assert values(rows) == [{"a": "1", "b": "2"}, "not_csv", {"a": "5", "b": "6"}, {"a": "7", "b": "8"}]
        assert "a quote that is not closed" in rows[1].value.detail


def test_rows_too_large_are_bad_and_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "_MAX_ROW", 50)
    small = {"a": "1", "b": "2"}
    for row, reason, lines in (
        ("x" * 51 + ",2", "too_large", 1),
        ('1,"' + "x" * 60 + '"', "too_large", 1),
        ("x" * 30 + ',"' + "y" * 30 + '"', "too_large", 1),
        ('1,"' + "xxxx\n" * 20, "not_csv", 21),
        ('1,"x\n' + "y" * 80, "not_csv", 2),
    ):
        rows = read_all(source_of(write(tmp_path / "x.csv", f"a,b\n1,2\n{row}\n1,2\n")), 2)
        assert [values(rows)[0], values(rows)[-1]] == [small, small]
        assert values(rows)[1] == reason
        assert rows[-1].where.endswith(f":{3 + lines}")
        assert not any(isinstance(row.value, dict) for row in rows[1:-1])


@pytest.mark.parametrize("line", ['1,"x', '"x', '1,""', '1,"', '""x', '"x""y'])
def test_each_line_is_read_a_few_times_at_most(tmp_path, monkeypatch, line):
    """However quotes are left open: rereading all that follows for each of them would never end."""
    read = []
    original = csv_rows._Lines._read
    monkeypatch.setattr(csv_rows._Lines, "_read", lambda lines: read.append(1) or original(lines))
    for first in ("", '0,"'):
        read.clear()
        slices = slice_source(source_of(write(tmp_path / "x.csv", "a,b\n" + first + f"{line}\n" * 2000)), 100)
        assert len(read) < 3 * 2000 + 20
        assert sum(piece.num_rows for piece in slices) >= 1000


# The first row.


def test_unnamed_columns_are_named_by_their_place(tmp_path):
    rows = read_all(source_of(write(tmp_path / "x.csv", ",a,\n1,2,3\n")))
    assert values(rows) == [{"column_1": "1", "a": "2", "column_3": "3"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", r"x\.csv: the first row names two columns 'a'"),
        (b"\xc7\xd1,b\n1,2\n", r"x\.csv: the first row, which has to name the columns, cannot be read: not_utf8"),
        ('a,"b\n1,2\n', "cannot be read: not_csv: a quote that is not closed"),
        ("a,b\r1,2\r", "cannot be read: not_csv: a carriage return"),
        ("a\0,b\n", "cannot be read: nul_byte: .*state `encoding: utf-16-le`"),
        ("," * 20_000 + "\n1\n", "names 20001 columns; a file may have 10000"),
        ("a,b\n", "no rows in"),
        ("\n\r\n \n", "no rows in"),
        ("\ufeff\n", "no rows in"),
    ],
)
def test_a_first_row_that_names_no_columns_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"source 's': .*{message}"):
        slice_source(source_of(write(tmp_path / "x.csv", content)), 10)


# Whatever the bytes.

PIECES = [
    b'"',
    b'""',
    b",",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"a",
    b"\xed\x95\x9c",
    b"\xff",
    b'"x"',
    b"1,2\n",
    b'"a\nb",c\n',
]
NOISE = st.binary(min_size=1, max_size=60) | st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).map(b"".join)


@settings(PROPERTY, max_examples=600)
@given(noise=NOISE, start=st.sampled_from([b"", b"a,b\n", b'a,b\n1,"2\n']), max_row=st.sampled_from([9, 40, 1 << 24]))
@example(noise=b'"\n\n"x\n,', start=b"a,b\n", max_row=1 << 24)
def test_no_bytes_raise_and_no_line_is_lost(tmp_path, monkeypatch, noise, start, max_row):
    monkeypatch.setattr(slices, "_MAX_ROW", max_row)
    content = start + noise
    source = source_of(write(tmp_path / "x.csv", content), encoding="utf-8")
    try:
        single = slice_source(source, 1)
    except ValueError:
        return
    position = content.index(b"\n") + 1 if start else single[0].start
    for piece in single:
        assert not content[position : piece.start].strip(b"\r\n"), "only blank lines lie between rows"
        assert content.count(b"\n", 0, piece.start) + 1 == piece.first_line
        position = piece.end
    assert not content[position:].strip(b"\r\n")
    rows = [row for piece in single for row in read_slice(source, piece)]
    assert [row.number for row in rows] == list(range(len(single)))
    assert all(isinstance(row.value, dict | BadRow) for row in rows)
    for rows_per_slice in (2, 5, 100):
        again = read_all(source, rows_per_slice)
        assert [(r.number, r.where) for r in again] == [(r.number, r.where) for r in rows]
        assert [r.value for r in again if isinstance(r.value, dict)] == [
            r.value for r in rows if isinstance(r.value, dict)
        ]


# Real files.


@pytest.mark.parametrize(
    ("name", "encoding", "num_rows"),
    [("ko/songys_chatbot_11823.csv", "utf-8", 11_823), ("med/toyhom_zh_2000_gb18030.csv", "gb18030", 1_954)],
)
def test_real_files_give_what_the_csv_module_gives(shared_data, tmp_path, monkeypatch, name, encoding, num_rows):
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path))
    path = shared_data / "text" / name
    with path.open(encoding=encoding, newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(expected) == num_rows
    assert values(read_all(source_of(path), 700)) == expected
