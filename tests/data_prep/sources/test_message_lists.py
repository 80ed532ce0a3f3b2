"""Lists of messages: roles, parts, tool calls, reasoning and flags in every usual form, or a reason why not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import ROLES, BadRow, Message, ToolCall
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import RawRow
from tests.support.conversions import ANSWER, GOOD, USER, convert, reason_and_detail, source_of, turns


@pytest.mark.parametrize(
    ("messages", "reason", "said"),
    [
        (None, "no_messages", ""),
        ([], "no_messages", ""),
        ("Hi", "not_messages", "not readable as JSON"),
        ('[{"role": "user", "content": "A", "content": "B"}]', "not_messages", "the key 'content' stands twice"),
        ({"role": "user"}, "not_messages", "found an object"),
        ([USER, "Hello"], "not_messages", "message 1: expected an object with role and content, found text"),
        ([USER, {"role": "assistant"}], "not_messages", "message 1"),
        ([{"from": "human", "value": "Hi"}], "no_assistant_turn", ""),
        ([USER, {"role": ["assistant"], "content": "x"}], "unknown_role", "['assistant']"),
        (
            [{"role": "narrator", "content": "Hi"}, ANSWER],
            "unknown_role",
            "'narrator'; name it with `roles: {NAME: user}`, or",
        ),
        ([USER, {"role": "assistant", "content": None}], "empty_output", ""),
        ([{"role": "user", "content": " "}, ANSWER], "empty_input", ""),
        ([USER], "no_assistant_turn", ""),
        ([ANSWER, USER], "no_user_turn", ""),
        ([USER, ANSWER, {"role": "system", "content": "S"}], "system_not_first", ""),
        (
            [USER, {"role": "assistant", "content": True}],
            "not_text",
            "message 1: expected content as text, found a truth value",
        ),
        ([{"role": "user", "content": [{"type": "image", "url": "u"}]}, ANSWER], "not_text", "message 0, part 0"),
        ([{"role": "user", "content": ["Hi"]}, ANSWER], "not_text", "part 0"),
        ([USER, ANSWER | {"tool_calls": [{"arguments": {}}]}], "tool_call", "message 1: expected a call with name"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": "{"}]}], "tool_call", "not readable as JSON"),
        (
            [USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": '{"q":1,"q":2}'}]}],
            "tool_call",
            "'q' stands twice",
        ),
        ([USER | {"tool_calls": [{"name": "f"}]}, ANSWER], "tool_call", "only the assistant may"),
        ([USER, ANSWER | {"weight": 0.5}], "fractional_weight", "message 1"),
        ([USER, ANSWER | {"reasoning": 3}], "not_text", "expected reasoning as text"),
        ([USER, {"role": "assistant", "content": "\ud800"}], "not_unicode", ""),
        ([USER, ANSWER | {"tool_calls": [{"name": "\ud83d"}]}], "not_unicode", "character 0"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": {"a": ["b\ud83d"]}}]}], "not_unicode", "char"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": {"\ud83d": 1}}]}], "not_unicode", "character 0"),
    ],
)
def test_messages_that_cannot_be_used(messages, reason, said):
    found = reason_and_detail("messages", {"messages": messages})
    assert found[0] == reason
    assert said in found[1]


def test_tools_that_are_not_unicode_cost_the_row():
    tools = [{"name": "f", "description": "\ud83d"}]
    assert reason_and_detail("messages", {"messages": [USER, ANSWER], "tools": tools})[0] == "not_unicode"


def test_keys_that_ask_for_nothing_are_passed_over():
    row = {"messages": [USER | {"weight": 0, "name": "x"}, ANSWER | {"tool_calls": None, "weight": 1, "train": True}]}
    assert turns("messages", row) == [("user", "Hi"), ("assistant", "Hello")]


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(ROLES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "weight", "tool_calls", "name", "arguments", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(form=st.sampled_from(list(GOOD)), data=st.data())
def test_no_row_raises_anything_but_bad_row(form, data):
    row = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD[form], CELLS)))
    try:
        conversation = convert(form, row)
    except BadRow as bad:
        assert len(bad.detail) < 2_000
    else:
        assert all(m.role in ROLES and (m.content.strip() or m.tool_calls) for m in conversation.messages)


CALL = {"name": "look_up", "arguments": {"word": "포장"}}


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": CALL | {"arguments": json.dumps(CALL["arguments"])}}],
        },
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(CALL)}]},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "tool_call", "value": json.dumps([CALL])},
    ],
)
def test_tool_calls_in_every_usual_form(answer):
    result = {"role": "tool", "content": "found"}
    conversation = convert("messages", {"messages": [USER, answer, result, ANSWER], "tools": [{"name": "look_up"}]})
    assert conversation.messages[1] == Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": "포장"}),))
    assert conversation.tools == ({"type": "function", "function": {"name": "look_up"}},)
    as_text = convert("messages", {"messages": [USER, answer, result, ANSWER], "tools": '[{"name": "look_up"}]'})
    assert as_text == conversation


def test_sharegpt_roles_and_the_recipes_own():
    row = {"conversations": [{"from": f, "value": f} for f in ("system", "human", "gpt", "observation", "narrator")]}
    found = turns("sharegpt", row, roles={"narrator": "assistant"})
    assert [role for role, _ in found] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_as_a_field_or_as_a_part(key):
    field = convert("messages", {"messages": [USER, ANSWER | {key: "hm"}]}).messages[1]
    text = {"type": "text", "value": "Hello"}
    for part in (
        {"type": "reasoning", "value": "hm"},
        {"type": key, key: "hm"},
        {"type": key, "text": "hm"},
        {"type": key, key: [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
    ):
        read = convert("messages", {"messages": [USER, ANSWER | {"content": [part, text]}]}).messages[1]
        assert field == read == Message("assistant", "Hello", reasoning="hm")


@pytest.mark.parametrize(
    "part", [{"type": "image", "text": "a"}, {"type": "text"}, {"type": "thinking", "thinking": [3]}, "text"]
)
def test_a_typed_part_without_a_text_is_refused(part):
    with pytest.raises(BadRow, match=r"not_text: .*expected a type such as text, reasoning or tool_call, with a text"):
        convert("messages", {"messages": [USER, ANSWER | {"content": [part]}]})


@pytest.mark.parametrize(
    ("flag", "expected"), [({"train": False}, False), ({"weight": 1}, True), ({"loss_weight": 0.0}, False), ({}, None)]
)
def test_flags_of_single_turns(flag, expected):
    assert convert("messages", {"messages": [USER, ANSWER | flag]}).messages[1].train is expected


DEEP = "[" * 101 + "]" * 101


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": DEEP}, "not_messages"),
        ({"messages": [{"role": "user", "content": "q"}], "tools": DEEP}, "not_tools"),
        ({"messages": [{"role": "assistant", "tool_calls": DEEP}]}, "tool_call"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": f'{{"a": {DEEP}}}'}}]},
            "tool_call",
        ),
    ],
)
def test_json_in_cells_has_the_depth_limit_of_rows(row, reason):
    with pytest.raises(BadRow, match=f"{reason}: .*JSON nested more than 100 levels deep"):
        to_conversation(source_of("messages"), RawRow(0, "d/x.jsonl:1", row))
