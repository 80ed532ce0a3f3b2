"""Readers: every line and element becomes one row, in order, however the file is cut, broken or written."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import json_spans, readers
from data_prep.conversation import BadRow
from data_prep.readers import Slice, read_slice, slice_source, source_files, source_identity
from data_prep.recipe import Source
from tests.reading import read_all, source_of, values, write

ROWS = [{"a": 1}, {"a": 'x, ] } " \\', "b": [{"c": [1, 2]}]}, {"a": "사과 {"}]


# The forms and how they are told apart.


@pytest.mark.parametrize("rows_per_slice", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
        "\ufeff" + json.dumps(ROWS),
        " \n\t" + json.dumps(ROWS) + "\n\n",
        "\n".join(json.dumps(row) for row in ROWS),
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n",
        "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n",
        "\ufeff" + "\n".join(json.dumps(row) for row in ROWS),
        "\n \n" + "\n\r\n\t\n".join(json.dumps(row) for row in ROWS) + "\n\n",
    ],
)
def test_arrays_and_lines_with_bom_crlf_and_blank_lines(tmp_path, content, rows_per_slice):
    rows = read_all(source_of(write(tmp_path / "x.json", content)), rows_per_slice)
    assert values(rows) == ROWS
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


# Rows that cannot be read.


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"a": }', "not_json"),
        ('{"a": 1} {"b": 2}', "not_json"),
        ('{"a": 1}}', "not_json"),
        ('{"a": [1]]}', "not_json"),
        ("rubbish", "not_json"),
        ('{"a": "raw\nnewline"}', "not_json"),
        ("", "not_json"),
        ("5", "not_an_object"),
        ('"text, with ] and }"', "not_an_object"),
        ('[{"a": 1}, {"a": 2}]', "not_an_object"),
        ("null", "not_an_object"),
        ('{"a": ' + "9" * 5000 + "}", "not_json"),
        ('{"a": ' + "[" * 3000 + "]" * 3000 + "}", "not_json"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "not_json"),
        ('{"a": ' + '{"b": ' * 100 + "1" + "}" * 100 + "}", "not_json"),
    ],
)
def test_a_malformed_element_is_one_bad_row(tmp_path, element, reason):
    rows = read_all(source_of(write(tmp_path / "x.json", f'[{{"a":1}},{element},{{"a":2}}]')))
    assert values(rows) == [{"a": 1}, reason, {"a": 2}]
    if element and "\n" not in element:
        rows = read_all(source_of(write(tmp_path / "x.jsonl", f'{{"a":1}}\n{element}\n{{"a":2}}')))
        assert values(rows) == [{"a": 1}, reason, {"a": 2}]


def test_many_brackets_that_are_not_deep_are_no_offence(tmp_path):
    flat = {"a": [[] for _ in range(500)], "b": "[" * 500}
    deep: dict = {"a": 1}
    for _ in range(98):
        deep = {"a": deep}
    rows = read_all(source_of(write(tmp_path / "x.json", json.dumps([flat, deep]))))
    assert values(rows) == [flat, deep]


@pytest.mark.parametrize("template", [b'[{"a":1},%s,{"a":2}]', b'{"a":1}\n%s\n{"a":2}'])
def test_bytes_that_are_not_utf8_spoil_their_row_only(tmp_path, template):
    for raw in ("{'a': '한국'}".encode("cp949"), b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}'):
        rows = read_all(source_of(write(tmp_path / "x", template % raw)))
        assert values(rows) == [{"a": 1}, "not_utf8", {"a": 2}]


@pytest.mark.parametrize("element", ['{"b":1,"c":2,"b":1}', '{"a":[{"b":{"c":1,"c":2}}]}'])
def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path, element):
    for content in (f'[{{"a":1}},{element},{{"a":2}}]', f'{{"a":1}}\n{element}\n{{"a":2}}'):
        rows = read_all(source_of(write(tmp_path / "x", content)))
        assert values(rows) == [{"a": 1}, "repeated_key", {"a": 2}]
        assert f"the key {'b' if 'b' in element[:3] else 'c'!r} stands twice" in rows[1].value.detail
    rows = read_all(source_of(write(tmp_path / "x.jsonl", f'{{"{"k" * 9999}":1,"{"k" * 9999}":2}}')))
    assert len(rows[0].value.detail) < 250


def test_literals_are_as_json_has_them(tmp_path):
    text = '{"a": NaN, "b": -Infinity, "c": 1}'
    for content in (text, f"[{text}]"):
        [row] = read_all(source_of(write(tmp_path / "x", content)))
        assert str(row.value) == str(json.loads(text))


def test_an_array_cut_off_anywhere_keeps_all_but_its_last_element(tmp_path):
    whole = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
    path = tmp_path / "x.json"
    for cut in range(1, len(whole) - 1):
        rows = read_all(source_of(write(path, whole[:cut])))
        assert values(rows[:-1]) == ROWS[: len(rows) - 1], cut
        assert values(rows[-1:]) == ["not_json"], cut
        begin = int(rows[-1].value.detail.rpartition("starts at byte ")[2].partition(":")[0])
        assert whole[begin - 1 : begin] in (b"[", b","), cut
    assert len(rows) == len(ROWS)


def test_text_after_the_array_is_refused_with_its_place(tmp_path):
    content = json.dumps(ROWS, indent=1)
    path = write(tmp_path / "x.json", content + "\n" + content)
    with pytest.raises(ValueError, match=rf"x\.json: the JSON array ends at byte {len(content)}, but more follows"):
        slice_source(source_of(path), 2)


def test_a_row_too_large_is_bad_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_MAX_ROW", 100)
    big = {"a": "x" * 200}
    for content in (json.dumps([ROWS[0], big, ROWS[2]]), "\n".join(map(json.dumps, [ROWS[0], big, ROWS[2]]))):
        rows = read_all(source_of(write(tmp_path / "x", content)))
        assert values(rows) == [ROWS[0], "too_large", ROWS[2]]


# Slices.


def test_slices_are_plain_values_of_one_file_each(tmp_path):
    write(tmp_path / "b.json", json.dumps(ROWS))
    write(tmp_path / "a.jsonl", "\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
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
    assert values(rows) == ROWS + ROWS
    assert [row.number for row in rows] == list(range(6))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_slices_of_long_rows_end_early(tmp_path, monkeypatch, name):
    rows = [{"a": "x" * (60 if i % 3 else 5)} for i in range(20)]
    lines = [row["a"] if name == "x.csv" else json.dumps(row) for row in rows]
    content = {"x.jsonl": "\n".join(lines), "x.json": f"[{', '.join(lines)}]", "x.csv": "\n".join(["a", *lines])}
    source = source_of(write(tmp_path / name, content[name]))
    assert [piece.num_rows for piece in slice_source(source, 8)] == [8, 8, 4]
    monkeypatch.setattr(readers, "_SLICE_BYTES", 150)
    slices = slice_source(source, 8)
    assert sum(piece.num_rows for piece in slices) == 20 and len(slices) > 3
    assert all(piece.end - piece.start < 150 + 80 for piece in slices)
    assert values([row for piece in slices for row in read_slice(source, piece)]) == rows


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 100])
def test_first_limits_the_rows_over_all_files(tmp_path, first):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, json.dumps(ROWS))
    slices = slice_source(source_of(tmp_path / "*.json", first=first), 2)
    assert sum(piece.num_rows for piece in slices) == min(first, 6)
    assert values(read_all(source_of(tmp_path / "*.json", first=first))) == (ROWS + ROWS)[:first]


def test_input_that_changed_after_slicing_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"a":1}\n{"a":2}\n')
    [piece] = slice_source(source_of(path), 10)
    write(path, '{"a":1,"b":2}\n\n\n')
    with pytest.raises(ValueError, match=r"expected 2 rows .* found 1: the input changed"):
        list(read_slice(source_of(path), piece))


@pytest.mark.parametrize("separator", [",", "\n"])
def test_rows_are_found_wherever_a_chunk_ends(tmp_path, monkeypatch, separator):
    strings = ["\\", '"', '\\"', "\\\\", '"],[{', '\\\\"', "\ud55c", "x" * 30]
    rows = [{text: [{"b": text}, text]} for text in strings] + ROWS
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
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


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


# Which files.


def test_globs_lists_and_home_are_expanded_sorted_and_each_file_comes_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "x[1].jsonl"):
        write(tmp_path / name, "{}")
    a, b, c, x = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl", "x[1].jsonl"))
    assert source_files(source_of(tmp_path / "[ab].jsonl")) == [a, b]
    assert source_files(source_of([str(b), "~/a.jsonl", str(tmp_path / "?.jsonl")])) == [a, b]
    assert source_files(source_of(tmp_path / "**" / "c.jsonl")) == [c]
    many = [write(tmp_path / f"n{number:02}.json", "{}") for number in range(30)]
    assert source_files(source_of([str(path) for path in reversed(many)])) == many
    assert source_files(source_of(x)) == [x]
    (tmp_path / "sub-x").mkdir()
    write(tmp_path / "sub-x/c.jsonl", "{}")
    assert source_files(source_of(tmp_path / "sub*" / "c.jsonl")) == [c, tmp_path / "sub-x/c.jsonl"]  # folder by folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jsonl", "absent.jsonl: no such file"),
        ("~nobody-here/x.jsonl", "~nobody-here/x.jsonl: no such file"),
        ("absent*.jsonl", r"no file matches .*absent\*.jsonl"),
        ("folder", r"folder is a folder: name its files, such as .*folder/\*.jsonl"),
        ("empty.jsonl", "empty.jsonl is empty"),
        *[(f"x{suffix}", "files are not read; the forms read are JSON,") for suffix in (".bz2", ".XZ", ".zip")],
        ("x.parquet", "x.parquet: cannot be read: "),
        ("x.arrow", "x.arrow: cannot be read: "),
        ("blank.jsonl", "no rows in"),
        ("no_elements.json", "no rows in"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    contents = {"empty.jsonl": "", "blank.jsonl": "\ufeff \n\n", "no_elements.json": " [\n ] "}
    if not name.startswith(("absent", "folder", "~")):
        write(tmp_path / name, contents.get(name, "a,b\n1,2\n"))
    with pytest.raises(ValueError, match=rf"source 's': .*{message}"):
        slice_source(source_of(name if name.startswith("~") else tmp_path / name), 10)


def test_an_empty_array_among_other_files_adds_no_rows(tmp_path):
    write(tmp_path / "a.json", "[]")
    write(tmp_path / "b.json", json.dumps(ROWS))
    assert values(read_all(source_of(tmp_path / "*.json"))) == ROWS


def test_identity_changes_with_the_files(tmp_path):
    source = source_of(tmp_path / "*.jsonl")
    path = write(tmp_path / "x.jsonl", '{"a":1}\n')
    before = source_identity(source)
    assert json.loads(json.dumps(before)) == before == source_identity(source)
    os.utime(path, ns=(1, 1))
    touched = source_identity(source)
    write(tmp_path / "y.jsonl", '{"a":1}\n')
    assert before != touched != source_identity(source) != before


# Hub data sets, through `datasets`; a local folder stands in for the hub.


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    readers._load_hub_dataset.cache_clear()
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "train.jsonl", "".join(json.dumps({"a": str(i), "b": None}) + "\n" for i in range(7)))
    yield folder
    readers._load_hub_dataset.cache_clear()


def test_a_hub_data_set_is_sliced_and_read_by_rows(hub_folder):
    source = Source(name="s", dataset=str(hub_folder), form="alpaca")
    slices = slice_source(source, 3)
    assert [(p.path, p.start, p.end, p.first_row, p.num_rows) for p in slices] == [
        (None, 0, 3, 0, 3),
        (None, 3, 6, 3, 3),
        (None, 6, 7, 6, 1),
    ]
    rows = read_all(source, 3)
    assert values(rows) == [{"a": str(i), "b": None} for i in range(7)]
    assert rows[4].where == f"{hub_folder}[4]"
    assert [row.number for row in rows] == list(range(7))
    assert len(read_all(Source(name="s", dataset=str(hub_folder), form="alpaca", first=4), 3)) == 4


def test_identity_of_a_hub_data_set_changes_with_its_rows(hub_folder):
    source = Source(name="s", dataset=str(hub_folder), form="alpaca")
    [before] = source_identity(source)
    assert json.loads(json.dumps(before)) == before
    assert before.keys() == {"dataset", "subset", "split", "revision", "fingerprint"}
    write(hub_folder / "train.jsonl", '{"a": "other"}\n')
    readers._load_hub_dataset.cache_clear()  # as a new process would find it
    assert source_identity(source) != [before]


def test_a_missing_split_and_a_missing_folder_say_what_to_check(hub_folder):
    with pytest.raises(ValueError, match=r"(?s)source 's': cannot load data set .*'split': 'tset'.*Check `dataset`"):
        slice_source(Source(name="s", dataset=str(hub_folder), split="tset", form="alpaca"), 3)
    with pytest.raises(ValueError, match=r"(?s)cannot load data set .*absent.*Check `dataset`"):
        slice_source(Source(name="s", dataset=str(hub_folder / "absent"), form="alpaca"), 3)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (FileNotFoundError("Dataset 'o/d' is a gated dataset on the Hub."), "`hf auth login` or put HF_TOKEN"),
        (ConnectionError("Couldn't reach 'o/d' on the Hub (OfflineModeIsEnabled)"), "HF_HUB_OFFLINE is set"),
        (ConnectionError("Couldn't reach 'o/d' on the Hub"), "check the network"),
        (FileNotFoundError("Dataset 'o/d' doesn't exist on the Hub or cannot be accessed."), "Check `dataset`"),
    ],
)
def test_hub_errors_say_what_to_do(hub_folder, monkeypatch, error, remedy):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match=remedy):
        slice_source(Source(name="s", dataset="o/d", form="alpaca"), 3)


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


@pytest.mark.parametrize("spoilt", [None, "[1]", "{1}", '{"a": "\x01"}', "", '{"a": ' + "[" * 101 + "]" * 101 + "}"])
def test_an_array_read_at_once_gives_the_rows_that_are_read_one_by_one(tmp_path, monkeypatch, spoilt):
    rows = [json.dumps({"a": f"{i} 한글", "m": [{"b": [i]}]}, ensure_ascii=bool(i % 2)) for i in range(20)]
    if spoilt is not None:
        rows[7] = spoilt
    source = source_of(write(tmp_path / "x.json", "[" + ",\n ".join(rows) + "]"))
    at_once = read_all(source, 5)
    monkeypatch.setattr("data_prep.readers._SHORT_SLICE", 0)
    one_by_one = read_all(source, 5)
    assert [(r.number, r.where) for r in at_once] == [(r.number, r.where) for r in one_by_one]
    assert values(at_once) == values(one_by_one)
    assert len(at_once) == 20


def test_an_array_is_read_at_once(tmp_path, monkeypatch):
    source = source_of(write(tmp_path / "x.json", json.dumps(ROWS)))
    monkeypatch.setattr("data_prep.readers._read_row", None)  # would be called for each row
    assert len(read_all(source, 7)) == len(ROWS)
