"""data_prep.strict_files.replace_member: one value of a JSON object's text changes, and no other character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.strict_files import replace_member

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES, min_size=1), st.data(), st.sampled_from([None, 0, 3]), st.booleans())
def test_one_value_is_replaced(members, data, indent, ascii_only):
    text = json.dumps(members, indent=indent, ensure_ascii=ascii_only)
    key = data.draw(st.sampled_from(sorted(members)))
    changed = replace_member(text, key, "né\n")
    assert list(json.loads(changed).items()) == list({**members, key: "né\n"}.items())
    back = json.dumps(json.loads(changed), indent=indent, ensure_ascii=ascii_only)
    assert back == json.dumps({**members, key: "né\n"}, indent=indent, ensure_ascii=ascii_only)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"b":{"a":1}, "a" :\t2}\r\n', '{"b":{"a":1}, "a" :\t"x"}\r\n'),  # not the inner one
        ('{"b": "\\"a\\": 1", "c": 1.50}', '{"b": "\\"a\\": 1", "c": 1.50}'),  # no such key
        ("{}", "{}"),
        (' {\n  "a": [1, {"z": "}"}],\n  "é": "\\u00e9"\n}', ' {\n  "a": "x",\n  "é": "\\u00e9"\n}'),
    ],
)
def test_every_other_character_stays(text, expected):
    assert replace_member(text, "a", "x") == expected
