"""Readers: every line and element becomes one row, in order, however the file is cut, broken or written."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import BadRow
from data_prep.sources import json_spans, slices
from data_prep.sources.slices import Slice, read_slice, slice_source
from tests.conftest import LOADED
from tests.support.reading import HARD_ROWS, read_all, source_of, values, write

# The forms and how they are told apart.


@pytest.mark.parametrize("rows_per_slice", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(HARD_ROWS),
        json.dumps(HARD_ROWS, indent=2, ensure_ascii=False),
        json.dumps(HARD_ROWS, indent=2).replace("\n", "\r\n"),
        "\ufeff" + json.dumps(HARD_ROWS),
        " \n\t" + json.dumps(HARD_ROWS) + "\n\n",
        "\n".join(json.dumps(row) for row in HARD_ROWS),
        "\n".join(json.dumps(row, ensure_ascii=False) for row in HARD_ROWS) + "\n",
        "\r\n".join(json.dumps(row) for row in HARD_ROWS) + "\r\n",
        "\ufeff" + "\n".join(json.dumps(row) for row in HARD_ROWS),
        "\n \n" + "\n\r\n\t\n".join(json.dumps(row) for row in HARD_ROWS) + "\n\n",
    ],
)
def test_arrays_and_lines_with_bom_crlf_and_blank_lines(tmp_path, content, rows_per_slice):
    rows = read_all(source_of(write(tmp_path / "x.json", content)), rows_per_slice)
    assert values(rows) == HARD_ROWS
    assert [row.number for row in rows] == [0, 1, 2]


def test_where_names_the_line_or_the_element(tmp_path):
    lines = write(tmp_path / "x.jsonl", '\n{"a":1}\n\n\n{"a":2}\nrubbish\n')
    array = write(tmp_path / "x.json", '[{"a":1},\n{"a":2},rubbish]')
    assert [row.where for row in read_all(source_of(lines))] == [f"{lines}:2", f"{lines}:5", f"{lines}:6"]
    assert [row.where for row in read_all(source_of(array))] == [f"{array}[0]", f"{array}[1]", f"{array}[2]"]


@pytest.mark.parametrize("first_line", ["rubbish", "[INFO] loading", "[]", "[1, 2]", "<<start>>", "{", '{"a": "x', '"'])
def test_a_rubbish_first_line_of_jsonl_is_one_bad_row(tmp_path, first_line):
    rows = read_all(source_of(write(tmp_path / "x.jsonl", first_line + '\n{"a":1}\n{"a":2}\n')))
    assert isinstance(rows[0].value, BadRow)
    assert rows[0].where.endswith(":1")
    assert values(rows[1:]) == [{"a": 1}, {"a": 2}]


def test_a_stray_bracket_before_the_end_of_the_array_ends_neither(tmp_path):
    rows = read_all(source_of(write(tmp_path / "x.json", '[{"a":1},{"b":2}}]\n')))
    assert values(rows) == [{"a": 1}, "not_json"]
    assert "Extra data" in rows[1].value.detail


def test_a_single_pretty_printed_object_is_bad_rows(tmp_path):
    rows = read_all(source_of(write(tmp_path / "x.json", json.dumps({"data": [{"a": 1}]}, indent=1))))
    assert "not_json" in values(rows)
    assert not any(isinstance(row.value, dict) for row in rows)


# Slices.


def test_slices_are_plain_values_of_one_file_each(tmp_path):
    write(tmp_path / "b.json", json.dumps(HARD_ROWS))
    write(tmp_path / "a.jsonl", "\n" + "".join(json.dumps(row) + "\n" for row in HARD_ROWS))
    source = source_of(tmp_path / "*.json*")
    slices = slice_source(source, 2)
    assert [Path(piece.path).name for piece in slices] == ["a.jsonl", "a.jsonl", "b.json", "b.json"]
    assert [piece.index for piece in slices] == [0, 1, 2, 3]
    assert [(piece.first_row, piece.num_rows) for piece in slices] == [(0, 2), (2, 1), (3, 2), (5, 1)]
    assert [piece.first_line for piece in slices] == [2, 4, 0, 2]
    for piece in slices:
        assert pickle.loads(pickle.dumps(piece)) == piece
        assert Slice(**json.loads(json.dumps(asdict(piece)))) == piece
    rows = read_all(source)
    assert values(rows) == HARD_ROWS + HARD_ROWS
    assert [row.number for row in rows] == list(range(6))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_slices_of_long_rows_end_early(tmp_path, monkeypatch, name):
    rows = [{"a": "x" * (60 if i % 3 else 5)} for i in range(20)]
    lines = [row["a"] if name == "x.csv" else json.dumps(row) for row in rows]
    content = {"x.jsonl": "\n".join(lines), "x.json": f"[{', '.join(lines)}]", "x.csv": "\n".join(["a", *lines])}
    source = source_of(write(tmp_path / name, content[name]))
    assert [piece.num_rows for piece in slice_source(source, 8)] == [8, 8, 4]
    monkeypatch.setattr(slices, "_SLICE_BYTES", 150)
    pieces = slice_source(source, 8)
    assert sum(piece.num_rows for piece in pieces) == 20 and len(pieces) > 3
    assert all(piece.end - piece.start < 150 + 80 for piece in pieces)
    assert values([row for piece in pieces for row in read_slice(source, piece)]) == rows


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 100])
def test_first_limits_the_rows_over_all_files(tmp_path, first):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, json.dumps(HARD_ROWS))
    slices = slice_source(source_of(tmp_path / "*.json", first=first), 2)
    assert sum(piece.num_rows for piece in slices) == min(first, 6)
    assert values(read_all(source_of(tmp_path / "*.json", first=first))) == (HARD_ROWS + HARD_ROWS)[:first]


def test_input_that_changed_after_slicing_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"a":1}\n{"a":2}\n')
    [piece] = slice_source(source_of(path), 10)
    write(path, '{"a":1,"b":2}\n\n\n')
    with pytest.raises(ValueError, match=r"expected 2 rows .* found 1: the input changed"):
        list(read_slice(source_of(path), piece))


@pytest.mark.parametrize("separator", [",", "\n"])
def test_rows_are_found_wherever_a_chunk_ends(tmp_path, monkeypatch, separator):
    strings = ["\\", '"', '\\"', "\\\\", '"],[{', '\\\\"', "\ud55c", "x" * 30]
    rows = [{text: [{"b": text}, text]} for text in strings] + HARD_ROWS
    text = separator.join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    source = source_of(write(tmp_path / "x", f"[{text}]" if separator == "," else text))
    whole = slice_source(source, 1)
    for chunk in range(1, 60):
        monkeypatch.setattr(json_spans, "_CHUNK", chunk)
        assert slice_source(source, 1) == whole, chunk
        assert values(read_all(source, 5)) == rows, chunk


def test_memory_is_bounded_by_the_chunk_and_not_by_the_file(tmp_path):
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[" + ",".join(['{"a": "' + "x" * 5000 + '"}'] * 5000) + "]")
    source = source_of(path)
    tracemalloc.start()
    pieces = slice_source(source, 1000)
    count = sum(1 for piece in pieces for _ in read_slice(source, piece))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 8 << 20 < path.stat().st_size


# Properties.

KEYS = st.text(max_size=4)
TEXTS = st.text(max_size=12) | st.text('\\\\"[]{},:n\\n', max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
JSON_VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8
)
PROPERTY = settings(deadline=None, suppress_health_check=LOADED, max_examples=150)


@PROPERTY
@given(
    items=st.lists(st.dictionaries(KEYS, JSON_VALUES, max_size=4) | JSON_VALUES, min_size=1, max_size=7),
    style=st.fixed_dictionaries(
        {
            "indent": st.none() | st.sampled_from([0, 1, "\t"]),
            "ensure_ascii": st.booleans(),
            "separators": st.sampled_from([(",", ":"), (" , ", " : "), ("\n,\r\n", ":\t")]),
        }
    ),
    frame=st.tuples(st.sampled_from([b"", b"\xef\xbb\xbf"]), st.sampled_from([b"", b" ", b"\r\n"])),
    rows_per_slice=st.integers(1, 9),
    chunk=st.sampled_from([1, 2, 3, 7, 64, 1 << 20]),
)
def test_slices_cover_every_row_once_in_order(tmp_path, monkeypatch, items, style, frame, rows_per_slice, chunk):
    monkeypatch.setattr(json_spans, "_CHUNK", chunk)
    bom, space = frame
    array = json.dumps(items, **style).encode()
    plain = {"ensure_ascii": style["ensure_ascii"]}
    lines = [json.dumps(item, **plain).encode() for item in items]
    for content, expected in (
        (bom + space + array + space, json.loads(array)),
        (bom + (b"\n" + space).join([b'{"head": 1}', *lines]), [{"head": 1}, *map(json.loads, lines)]),
    ):
        rows = read_all(source_of(write(tmp_path / "x", content)), rows_per_slice)
        assert [row.number for row in rows] == list(range(len(expected)))
        assert values(rows) == [item if isinstance(item, dict) else "not_an_object" for item in expected]


ALPHABET = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b",",
    b":",
    b" ",
    b"\n",
    b"\r",
    b"1",
    b"a",
    b'{"a":1}',
    b"\xef\xbb\xbf",
]
NOISE = st.binary(min_size=1, max_size=60) | st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=60).map(b"".join)


@settings(PROPERTY, max_examples=400)
@given(
    noise=NOISE,
    start=st.sampled_from([b"", b"[", b'[{"a":1},', b'{"a":1}\n']),
    chunk=st.sampled_from([1, 2, 5, 1 << 20]),
)
def test_no_bytes_raise_anything_but_value_error(tmp_path, monkeypatch, noise, start, chunk):
    monkeypatch.setattr(json_spans, "_CHUNK", chunk)
    source = source_of(write(tmp_path / "x", start + noise))
    try:
        slices = slice_source(source, 2)
    except ValueError:
        return
    rows = [row for piece in slices for row in read_slice(source, piece)]
    assert [row.number for row in rows] == list(range(sum(piece.num_rows for piece in slices)))
    assert all(isinstance(row.value, dict | BadRow) for row in rows)
    monkeypatch.setattr(json_spans, "_CHUNK", 1 << 20)
    assert slice_source(source, 2) == slices


# Real files.


@pytest.mark.parametrize(
    ("name", "num_rows", "bad"),
    [
        ("en/alpaca_52k.json", 52_002, {}),
        ("ko/koalpaca_v1.1_medical_1908.jsonl", 1_908, {}),
        ("ko/koalpaca_v1_11432.json", 11_432, {}),
        ("med/medquad_nih.jsonl", 4_607, {}),
        ("med/medquad_empty_answers_500.jsonl", 500, {}),
        ("ko/logickor_qwen2_BOM.jsonl", 42, {}),
        ("ko/kochatgpt_conversation_NOT_JSON.jsonl", 3_951, {"not_json": 3_951}),
    ],
)
def test_real_files_give_all_their_rows(shared_data, name, num_rows, bad):
    path = shared_data / "text" / name
    source = source_of(path)
    slices = slice_source(source, 1_000)
    assert sum(piece.num_rows for piece in slices) == num_rows
    found = values([row for piece in slices for row in read_slice(source, piece)])
    assert {reason: found.count(reason) for reason in found if isinstance(reason, str)} == bad
    if not bad:
        text = path.read_text(encoding="utf-8-sig")
        assert found == (
            json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.split("\n") if line]
        )
