"""JSON rows that cannot be read are bad rows, each by itself; arrays read at once give the same rows."""

from __future__ import annotations

import json

import pytest

from data_prep.sources import slices
from data_prep.sources.slices import slice_source
from tests.support.reading import HARD_ROWS, read_all, source_of, values, write


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


@pytest.mark.parametrize("rows_per_slice", [1, 2, 5])
def test_an_empty_element_is_one_bad_row_alone_in_its_slice_too(tmp_path, rows_per_slice):
    rows = read_all(source_of(write(tmp_path / "x.json", '[{"a": 1},, {"a": 2}]')), rows_per_slice)
    assert values(rows) == [{"a": 1}, "not_json", {"a": 2}]


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
    whole = json.dumps(HARD_ROWS, indent=1, ensure_ascii=False).encode()
    path = tmp_path / "x.json"
    for cut in range(1, len(whole) - 1):
        rows = read_all(source_of(write(path, whole[:cut])))
        assert values(rows[:-1]) == HARD_ROWS[: len(rows) - 1], cut
        assert values(rows[-1:]) == ["not_json"], cut
        begin = int(rows[-1].value.detail.rpartition("starts at byte ")[2].partition(":")[0])
        assert whole[begin - 1 : begin] in (b"[", b","), cut
    assert len(rows) == len(HARD_ROWS)


def test_text_after_the_array_is_refused_with_its_place(tmp_path):
    content = json.dumps(HARD_ROWS, indent=1)
    path = write(tmp_path / "x.json", content + "\n" + content)
    with pytest.raises(ValueError, match=rf"x\.json: the JSON array ends at byte {len(content)}, but more follows"):
        slice_source(source_of(path), 2)


def test_a_row_too_large_is_bad_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "_MAX_ROW", 100)
    big = {"a": "x" * 200}
    for content in (
        json.dumps([HARD_ROWS[0], big, HARD_ROWS[2]]),
        "\n".join(map(json.dumps, [HARD_ROWS[0], big, HARD_ROWS[2]])),
    ):
        rows = read_all(source_of(write(tmp_path / "x", content)))
        assert values(rows) == [HARD_ROWS[0], "too_large", HARD_ROWS[2]]


@pytest.mark.parametrize("spoilt", [None, "[1]", "{1}", '{"a": "\x01"}', "", '{"a": ' + "[" * 101 + "]" * 101 + "}"])
def test_an_array_read_at_once_gives_the_rows_that_are_read_one_by_one(tmp_path, monkeypatch, spoilt):
    rows = [json.dumps({"a": f"{i} 한글", "m": [{"b": [i]}]}, ensure_ascii=bool(i % 2)) for i in range(20)]
    if spoilt is not None:
        rows[7] = spoilt
    source = source_of(write(tmp_path / "x.json", "[" + ",\n ".join(rows) + "]"))
    at_once = read_all(source, 5)
    monkeypatch.setattr("data_prep.sources.slices._SHORT_SLICE", 0)
    one_by_one = read_all(source, 5)
    assert [(r.number, r.where) for r in at_once] == [(r.number, r.where) for r in one_by_one]
    assert values(at_once) == values(one_by_one)
    assert len(at_once) == 20


def test_an_array_is_read_at_once(tmp_path, monkeypatch):
    source = source_of(write(tmp_path / "x.json", json.dumps(HARD_ROWS)))
    monkeypatch.setattr("data_prep.sources.slices._read_row", None)  # would be called for each row
    assert len(read_all(source, 7)) == len(HARD_ROWS)
