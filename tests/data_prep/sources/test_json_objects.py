"""JSON files that are one object: rows below a key, and columns, read in slices like any array."""

from __future__ import annotations

import json

import pytest

from data_prep.recipe import Source
from data_prep.sources.json_objects import columns
from data_prep.sources.plain_copies import cache_folder
from data_prep.sources.slices import read_slice, slice_source
from tests.support.reading import ROWS, read_all, values, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path / "cache"))


def source(path, **options) -> Source:
    return Source(name="s", path=str(path), form="alpaca", **options)


BEFORE = {"version": "1 [{", "meta": {"data": [1, {"data": []}]}, "한글": None}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_rows_below_a_key(tmp_path, indent, mark):
    text = json.dumps({**BEFORE, "data": ROWS, "more": [1]}, ensure_ascii=False, indent=indent).encode()
    path = write(tmp_path / "x.json", mark + text)
    for rows_per_slice in (1, 7, 100):
        rows = read_all(source(path, field="data"), rows_per_slice)
        assert values(rows) == ROWS
        assert rows[3].where == f"{path}[3]" and rows[3].number == 3
    assert values(read_all(source(path, field="data", first=3), 2)) == ROWS[:3]


def test_a_key_in_another_alphabet(tmp_path):
    path = write(tmp_path / "x.json", json.dumps({"a": 1, "데이터": ROWS}, ensure_ascii=False))
    assert values(read_all(source(path, field="데이터"))) == ROWS


def test_rows_below_a_key_that_are_cut_off(tmp_path):
    text = json.dumps({"data": [{"a": 1}, {"a": 2}]})
    assert values(read_all(source(write(tmp_path / "x.json", text[:-4]), field="data"))) == [{"a": 1}, "not_json"]


def test_a_key_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "x.json", json.dumps(BEFORE))
    with pytest.raises(
        ValueError, match=r"source 's': .*x.json: expected `field: rows`.*\['version', 'meta', '한글'\]"
    ):
        slice_source(source(path, field="rows"), 10)


def test_a_key_before_the_rows_that_changes_them_is_refused(tmp_path):
    path = write(tmp_path / "x.json", json.dumps({"system": "Be brief.", "data": ROWS}))
    with pytest.raises(ValueError, match=r"the key 'system', next to `field: data`, .*`ignore: \[system\]`"):
        slice_source(source(path, field="data"), 10)
    assert values(read_all(source(path, field="data", ignore=["system"]))) == ROWS


def test_lines_and_arrays_with_a_field_stay_what_they_are(tmp_path):
    lines = "".join(json.dumps({"data": row}) + "\n" for row in ROWS)
    assert values(read_all(source(write(tmp_path / "x.json", lines), field="data"))) == ROWS
    one = json.dumps({"data": ROWS[0]})
    assert values(read_all(source(write(tmp_path / "one.json", one), field="data"))) == ROWS[:1]
    array = json.dumps([{"data": row} for row in ROWS])
    assert values(read_all(source(write(tmp_path / "y.json", array), field="data"), 7)) == ROWS
    lists = "".join(json.dumps({"data": ROWS[i : i + 5]}) + "\n" for i in range(0, 50, 5))
    assert values(read_all(source(write(tmp_path / "z.json", lists), field="data"))) == ROWS


COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize(
    "value",
    [COLUMNS, {name: {str(i): cell for i, cell in enumerate(cells)} for name, cells in COLUMNS.items()}],
    ids=["lists", "pandas"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_columns_are_read_as_rows(tmp_path, value, indent):
    path = write(tmp_path / "x.json", json.dumps(value, ensure_ascii=False, indent=indent))
    for rows_per_slice in (7, 100):
        rows = read_all(source(path), rows_per_slice)
        assert values(rows) == ROWS
        assert rows[3].where == f"{path}[3]"
    slices = slice_source(source(path), 7)
    for copy in cache_folder().iterdir():
        copy.unlink()
    assert [row.value for piece in slices for row in read_slice(source(path), piece)] == ROWS, "copied again"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1], "b": [1, 2]}',  # of different lengths
        '{"a": [1]}',  # one column may be a row
        '{"a": [], "b": []}',
        '{"messages": [{"role": "user"}], "tools": [{"name": "f"}]}',
        '{"messages": [1], "tools": [{"name": "f"}]}',
        '{"a": [1, 2], "b": [3, 4]}\n{"a": [1, 2], "b": [3, 4]}\n',  # lines
        '{"a": [1, 2], "b": [3, 4]} x',
        '{"a": {"0": 1, "1": 2}, "b": {"0": 1, "2": 2}}',  # other rows
        '{"a": {"0": 1}, "b": {"x": 1}}',
        '{"a": [1, 2], "a": [3, 4]}',
        '[{"a": [1]}]',
        "",
    ],
)
def test_what_may_be_rows_is_not_taken_for_columns(tmp_path, text):
    assert columns(write(tmp_path / "x.json", text)) is None


def test_stated_lines_are_never_columns(tmp_path):
    path = write(tmp_path / "x.json", json.dumps({"a": ["x"], "b": ["y"]}))
    assert values(read_all(source(path, format="jsonl"))) == [{"a": ["x"], "b": ["y"]}]
