"""Rows made of raw rows: from a field, by a function, one for each answer; their places, numbers and reasons."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from data_prep.conversation import SIBLING
from data_prep.quality.filters import resolve_function
from data_prep.recipe import Source
from data_prep.sources.reshaped_rows import transform_identity
from tests.support.reading import read_all, values

FUNCTIONS = """
def double(row):
    return [row, {**row, "n": -row["n"]}]

def odd(row):
    return row if row["n"] % 2 else None

def changed(row):
    row["more"].append(1)
    return row

def raises(row):
    return row["none"]

def wrong(row):
    return "text"

number = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch) -> Path:
    """A module of the user's, `my_rows`."""
    path = tmp_path / "my_rows.py"
    path.write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    resolve_function.cache_clear()
    yield path
    resolve_function.cache_clear()
    sys.modules.pop("my_rows", None)


def lines(folder: Path, *rows: dict) -> Path:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path, **options) -> Source:
    return Source(name="s", path=str(path), **{"form": "alpaca", **options})


def test_a_transform_makes_one_row_several_or_none(tmp_path, functions):
    path = lines(tmp_path, {"n": 1}, {"n": 2})
    rows = read_all(source(path, transform="my_rows:double"))
    assert [row.value["n"] for row in rows] == [1, -1, 2, -2]
    assert [row.number for row in rows] == [0, SIBLING, 1, 1 + SIBLING]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (1, 1, 2, 2)]
    assert values(read_all(source(path, transform="my_rows:odd"), 1)) == [{"n": 1}, "left_out"]


def test_a_transform_may_change_the_row_and_its_faults_cost_it(tmp_path, functions):
    path = lines(tmp_path, {"n": 1, "more": []})
    assert values(read_all(source(path, transform="my_rows:changed"))) == [{"n": 1, "more": [1]}]
    for name, said in (("raises", "raised KeyError: 'none'"), ("wrong", "found text ('text')")):
        [row] = read_all(source(path, transform=f"my_rows:{name}"))
        assert row.value.reason == "transform_error" and said in row.value.detail


def test_a_transform_that_is_none_is_refused(tmp_path, functions):
    path = lines(tmp_path, {"n": 1})
    for name, said in (("my_rows:nothing", "cannot be imported"), ("my_rows:number", "not a function")):
        with pytest.raises(ValueError, match=f"transform: function '{name}' .*{said}"):
            read_all(source(path, transform=name))
    with pytest.raises(ValueError, match="does not name a function: write package"):
        source(path, transform="my rows")


def test_the_code_of_a_transform_is_part_of_what_the_rows_are(tmp_path, functions):
    path = lines(tmp_path, {"n": 1})
    assert transform_identity(source(path)) == {}
    before = transform_identity(source(path, transform="my_rows:double"))
    functions.write_text(FUNCTIONS + "# changed\n")
    assert before.keys() == {"function_sha256"} and before != transform_identity(source(path, transform="my_rows:odd"))


def test_the_rows_in_a_field(tmp_path):
    path = lines(tmp_path, {"id": 1, "data": {"n": 1}}, {"data": [{"n": 2}, {"n": 3}, "x"]}, {"other": {}})
    rows = read_all(source(path, field="data"))
    assert values(rows) == [{"n": 1}, {"n": 2}, {"n": 3}, "not_an_object", "missing_column"]
    assert rows[2].number == 1 + SIBLING
    assert "expected `field: data`; found columns ['other']" in rows[4].value.detail


def test_a_field_of_json_text(tmp_path):
    path = lines(tmp_path, {"data": '{"n": 1}'}, {"data": '[{"n": 2}]'}, {"data": "{"}, {"data": "3"})
    assert values(read_all(source(path, field="data"))) == [{"n": 1}, {"n": 2}, "not_an_object", "not_an_object"]


def test_what_lies_next_to_a_field_and_belongs_to_the_prompt_costs_the_row(tmp_path):
    path = lines(tmp_path, {"system": "S", "data": {"n": 1}})
    [row] = read_all(source(path, field="data"))
    assert row.value.reason == "unread_column" and "column 'system', next to `field: data`" in row.value.detail
    assert values(read_all(source(path, field="data", ignore=["system"]))) == [{"n": 1}]


def test_a_row_for_each_answer(tmp_path):
    path = lines(
        tmp_path, {"output": ["a", "b"]}, {"output": ["c"]}, {"output": "d"}, {"output": [{"role": "x"}, {}]}, {}
    )
    rows = values(read_all(source(path, answers="each")))
    assert rows == [{"output": o} for o in ("a", "b", ["c"], "d", [{"role": "x"}, {}])] + [{}]
    for form in ("messages", "text", "auto"):
        with pytest.raises(ValueError, match="`answers: each` needs one of the forms"):
            source(path, form=form, answers="each")


def test_field_transform_and_answers_follow_each_other(tmp_path, functions):
    path = lines(tmp_path, {"data": {"n": 1, "output": ["a", "b"]}})
    rows = read_all(source(path, field="data", transform="my_rows:double", answers="each"))
    assert [(row.value["n"], row.value["output"]) for row in rows] == [(1, "a"), (1, "b"), (-1, "a"), (-1, "b")]
    assert [row.number // SIBLING for row in rows] == [0, 1, 2, 3]
