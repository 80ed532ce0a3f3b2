"""Messages under other keys: roles in any case, pairs, padded nulls, columns of messages, hh-rlhf, and tools."""

from __future__ import annotations

import datetime

import pytest

from data_prep.conversation import ToolCall
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.row_forms import RowReader
from tests.support.conversions import ANSWER, USER, convert, reason_and_detail, source_of, turns

TALK = [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    ("messages", "keys"),
    [
        (
            [{"speaker": "human", "text": "Hi"}, {"speaker": "gpt", "text": "Hello"}],
            {"role": "speaker", "content": "text"},
        ),
        ([{"from": "human", "text": "Hi"}, {"from": "gpt", "text": "Hello"}], {"content": "text"}),
        ([{"speaker": "human", "value": "Hi", "n": 1}, {"speaker": "gpt", "content": "Hello"}], {"role": "speaker"}),
        ([{"user": "Hi", "assistant": "Hello"}], {"user": "user", "assistant": "assistant"}),
        ([{"human": "Hi", "gpt": "Hello"}], {"user": "human", "assistant": "gpt"}),
        ([{"q": "Hi", "a": None}, {"q": None, "a": "Hello"}], {"user": "q", "assistant": "a"}),
        ([{"ROLE": "USER", "content": "Hi"}, {"ROLE": "Assistant", "content": "Hello"}], {"role": "ROLE"}),
    ],
)
def test_messages_by_the_keys_that_the_recipe_names(messages, keys):
    assert turns("messages", {"messages": messages}, message_keys=keys) == TALK


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"user": "hi", "assistant": "yo"}, "say `message_keys: {user: user, assistant: assistant}`"),
        ({"human": "hi", "gpt": "yo"}, "say `message_keys: {user: human, assistant: gpt}`"),
        ({"speaker": "human", "text": "q"}, "`message_keys: {role: speaker, content: text}`"),
        ({"id": "7", "speaker": "bot", "text": "long"}, "`message_keys: {role: speaker, content: text}`"),
        (
            {"who": "customer", "msg": "Where is my order?", "ts": "12:00"},
            "`message_keys: {role: who, content: msg}`, and its roles with `roles: {customer: user}` or assistant",
        ),
        ({"a": 1}, "`message_keys: {role: KEY, content: KEY}`"),
    ],
)
def test_messages_of_other_keys_are_dropped_with_what_to_write(item, said):
    reason, detail = reason_and_detail("messages", {"messages": [item]})
    assert reason == "not_messages" and said in detail


def test_pairs_with_a_system_prompt_reasoning_and_flags():
    item = {"s": "S", "q": "Hi", "a": "Hello", "weight": 0}
    found = convert("messages", {"messages": [item]}, message_keys={"system": "s", "user": "q", "assistant": "a"})
    assert [(m.role, m.content, m.train) for m in found.messages] == [
        ("system", "S", None),
        ("user", "Hi", None),
        ("assistant", "Hello", False),
    ]


def test_keys_that_a_table_has_padded_with_nulls():
    padded = {"from": None, "value": None, "weight": None, "tool_calls": None, "reasoning": None, "name": None}
    assert turns("messages", {"messages": [USER | padded, ANSWER | padded]}) == TALK
    other = [{"role": None, "content": None, "from": "human", "value": "Hi"}, ANSWER]
    assert turns("messages", {"messages": other}) == TALK
    part = {"type": "text", "text": None, "value": "Hi", "image_url": None}
    assert turns("messages", {"messages": [USER | {"content": [part]}, ANSWER]}) == TALK


def test_two_contents_or_roles_that_differ_cost_the_row():
    assert turns("messages", {"messages": [USER | {"value": "Hi", "from": "user"}, ANSWER]}) == TALK
    for more in ({"value": "Bye"}, {"from": "assistant"}):
        reason, detail = reason_and_detail("messages", {"messages": [USER | more, ANSWER]})
        assert reason == "not_messages" and "differ" in detail


@pytest.mark.parametrize("key", ["tools", "images", "rejected", "documents"])
def test_a_key_that_changes_the_turn_costs_the_row(key):
    row = {"messages": [{"role": "system", "content": "S", key: ["x"]}, USER, ANSWER]}
    reason, detail = reason_and_detail("messages", row)
    assert reason == "unread_key" and f"{key!r} holds a list of 1" in detail
    assert turns("messages", row, ignore=[key])[1:] == TALK


def test_reasoning_and_calls_under_several_keys_have_to_agree():
    same = ANSWER | {"reasoning": "hm", "reasoning_content": "hm"}
    assert convert("messages", {"messages": [USER, same]}).messages[1].reasoning == "hm"
    parts = {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hello"}]}
    for more in ({"thinking": "so"}, {"thinking": 3}, parts | {"reasoning": "so", "reasoning_content": "so"}):
        assert reason_and_detail("messages", {"messages": [USER, same | more]})[0] == "not_messages"
    call = {"name": "f", "arguments": {"a": 1}}
    twice = {"role": "assistant", "content": "", "tool_calls": [{"function": call}], "function_call": call}
    assert convert("messages", {"messages": [USER, twice]}).messages[1].tool_calls == (ToolCall("f", {"a": 1}),)


def test_columns_of_messages_are_transposed():
    assert turns("messages", {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}}) == TALK
    assert turns("prompt_completion", {"prompt": "Hi", "completion": ANSWER}) == TALK


@pytest.mark.parametrize("name", ["User", "USER", "Human", "human"])
def test_roles_in_any_case(name):
    assert turns("messages", {"messages": [USER | {"role": name}, ANSWER | {"role": "Assistant"}]}) == TALK
    assert turns("messages", {"messages": [USER | {"role": "Nemo"}, ANSWER]}, roles={"nemo": "user"}) == TALK


def test_a_text_of_hh_rlhf():
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nthere\n\nHuman:  two\n\nAssistant: three"
    expected = [("user", "Hi"), ("assistant", "Hello\n\nthere"), ("user", " two"), ("assistant", "three")]
    assert turns("messages", {"chosen": text, "rejected": text}, columns={"messages": "chosen"}) == expected
    assert turns("messages", {"messages": text[2:]}) == expected
    assert reason_and_detail("messages", {"messages": "\n\nHuman: Hi\n\nAssistant:"})[0] == "empty_output"


def test_numbers_are_texts():
    assert turns("messages", {"messages": [USER, ANSWER | {"content": 42}]})[1] == ("assistant", "42")


# Tools.

CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("", ""),
        (None, ""),
        ({"t": 3, "é": [1]}, '{"t": 3, "é": [1]}'),
        ([{"type": "bus", "n": 1}], '[{"type": "bus", "n": 1}]'),
        ([], "[]"),
        (False, "false"),
        (3, "3"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
    ],
)
def test_results_of_tools_are_kept_as_json(result, text):
    row = {"messages": [USER, CALL, {"role": "tool", "content": result}, ANSWER]}
    assert turns("messages", row)[2] == ("tool", text)


@pytest.mark.parametrize("result", [[{"type": "image_url", "url": "u"}], datetime.date(2020, 1, 1)])
def test_results_of_tools_that_are_no_text_cost_the_row(result):
    row = {"messages": [USER, CALL, {"role": "tool", "content": result}, ANSWER]}
    assert reason_and_detail("messages", row)[0] == "not_text"


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_arguments_by_their_usual_names(key):
    item = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "name": "f", key: {"a": None}}]}
    assert convert("messages", {"messages": [USER, item]}).messages[1].tool_calls == (ToolCall("f", {"a": None}),)
    used = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", key: {"a": 1}}]}
    assert convert("messages", {"messages": [USER, used]}).messages[1].tool_calls == (ToolCall("f", {"a": 1}),)


def test_tools_of_both_of_openais_interfaces():
    row = {"messages": [USER, ANSWER], "tools": [{"type": "function", "name": "f", "parameters": {}}]}
    nested = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    assert convert("messages", row).tools == convert("messages", row | {"tools": list(nested)}).tools == nested
    for none in (None, "", " ", "[]", [], {}):
        assert convert("messages", row | {"tools": none}).tools == ()


@pytest.mark.parametrize("key", ["train", "reasoning", "tool_calls"])
def test_a_key_that_no_message_has_is_remembered(key):
    reader = RowReader(source_of("messages", message_keys={key: "my_key"}))
    reader.conversation(RawRow(0, "x:1", {"messages": [USER, ANSWER]}))
    assert reader.unseen == {"messages[].my_key"}
    reader.conversation(RawRow(1, "x:2", {"messages": [USER, ANSWER | {"my_key": None}]}))
    assert reader.unseen == set()
