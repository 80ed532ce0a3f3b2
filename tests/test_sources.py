"""Sources: what each raw form becomes, and what is said of a row or a recipe that does not fit."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import ROLES, BadRow, Conversation, Message, ToolCall
from data_prep.readers import RawRow, read_slice, slice_source
from data_prep.recipe import Source
from data_prep.sources import check_columns, resolve_form, to_conversation, unread_columns

GOOD = {
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1 2", "response": "3"},
    "question_answer": {"question": "Why?", "answer": "So."},
    "prompt_completion": {"prompt": "Once", "completion": " upon"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
}


def source_of(form: str, **options) -> Source:
    return Source(name="s", path="x.jsonl", form=form, **options)


def convert(form: str, value: dict | BadRow, separator: str = "\n\n", **options) -> Conversation:
    return to_conversation(source_of(form, **options), RawRow(7, "x.jsonl:8", value), input_separator=separator)


def turns(form: str, value: dict, *args, **options) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in convert(form, value, *args, **options).messages]


def reason_and_detail(form: str, value: dict | BadRow, **options) -> tuple[str, str]:
    with pytest.raises(BadRow) as caught:
        convert(form, value, **options)
    return caught.value.reason, caught.value.detail


# Forms.


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("alpaca", [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ("dolly", [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ("question_answer", [("user", "Why?"), ("assistant", "So.")]),
        ("prompt_completion", [("user", "Once"), ("assistant", " upon")]),
        ("messages", [("user", "Hi"), ("assistant", "Hello")]),
    ],
)
def test_each_form_with_its_own_and_with_mapped_columns(form, expected):
    assert turns(form, GOOD[form] | {"unused": 1}) == expected
    renamed = {f"my {key}": cell for key, cell in GOOD[form].items()}
    assert turns(form, renamed, columns={key: f"my {key}" for key in GOOD[form]}) == expected


def test_the_conversation_carries_its_source_and_row():
    conversation = convert("alpaca", GOOD["alpaca"])
    assert (conversation.source, conversation.row) == ("s", 7)


@pytest.mark.parametrize(("form", "more"), [("alpaca", "input"), ("dolly", "context")])
def test_an_input_is_set_apart_and_its_absence_leaves_the_instruction_alone(form, more):
    separator = "\n\n### Input:\n"
    assert turns(form, GOOD[form], separator)[0] == ("user", "Add.\n\n### Input:\n1 2")
    for absent in (None, "", " \n"):
        assert turns(form, GOOD[form] | {more: absent}, separator)[0] == ("user", "Add.")
    without = {key: cell for key, cell in GOOD[form].items() if key != more}
    assert turns(form, without, separator)[0] == ("user", "Add.")


def test_text_is_kept_to_the_character():
    row = {"instruction": "  a \n", "input": "\tb ", "output": " c\n\n"}
    assert turns("alpaca", row) == [("user", "  a \n\n\n\tb "), ("assistant", " c\n\n")]


def test_prompt_completion_as_message_lists():
    prompt = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]
    completion = [{"role": "assistant", "content": "4"}]
    expected = [("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    assert turns("prompt_completion", {"prompt": prompt, "completion": completion}) == expected
    assert reason_and_detail("prompt_completion", {"prompt": [], "completion": completion})[0] == "empty_input"
    assert reason_and_detail("prompt_completion", {"prompt": prompt, "completion": []})[0] == "empty_output"


def test_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes"}]}
    assert turns("messages", row) == [("user", "Hello"), ("assistant", "Yes")]


# System prompts.


@pytest.mark.parametrize("form", list(GOOD))
def test_the_system_prompt_of_the_row_goes_before_that_of_the_source(form):
    mapped = {"columns": {"system": "sp"}, "system": "source's"}
    assert turns(form, GOOD[form] | {"sp": "row's"}, **mapped)[0] == ("system", "row's")
    for blank in (None, "", "  "):
        assert turns(form, GOOD[form] | {"sp": blank}, **mapped)[0] == ("system", "source's")
    assert turns(form, GOOD[form], **mapped)[0] == ("system", "source's")
    assert turns(form, GOOD[form] | {"sp": " "}, columns={"system": "sp"})[0][0] == "user"
    assert turns(form, GOOD[form] | {"system": "not mapped"})[0][0] == "user"
    assert reason_and_detail(form, GOOD[form] | {"sp": 3}, **mapped)[0] == "not_text"


def test_a_system_message_in_the_row_is_kept_alone():
    row = {"messages": [{"role": "system", "content": "own"}, *GOOD["messages"]["messages"]]}
    assert [t for t in turns("messages", row, system="source's") if t[0] == "system"] == [("system", "own")]


# Rows that cannot be used.


@pytest.mark.parametrize(
    ("form", "column", "empty"),
    [
        ("alpaca", "instruction", "empty_input"),
        ("alpaca", "output", "empty_output"),
        ("dolly", "instruction", "empty_input"),
        ("dolly", "response", "empty_output"),
        ("question_answer", "question", "empty_input"),
        ("question_answer", "answer", "empty_output"),
        ("prompt_completion", "prompt", "empty_input"),
        ("prompt_completion", "completion", "empty_output"),
    ],
)
def test_a_column_that_is_missing_or_empty_or_not_text(form, column, empty):
    row = {f"{name}_x" if name == column else name: cell for name, cell in GOOD[form].items()}
    reason, detail = reason_and_detail(form, row)
    assert reason == "missing_column"
    assert f"expected column {column!r} (form {form}); found columns {list(row)}" in detail
    assert f"map it with `columns: {{{column}: {column}_x}}`" in detail
    for blank in (None, "", " \n\t", "\u3000"):
        assert reason_and_detail(form, GOOD[form] | {column: blank})[0] == empty
    for value, kind in ((3, "a number (3)"), (True, "a truth value (True)"), ({"k": 1}, "an object with keys ['k']")):
        assert reason_and_detail(form, GOOD[form] | {column: value}) == (
            "not_text",
            f"column {column!r}: expected text, found {kind}",
        )
    assert reason_and_detail(form, GOOD[form] | {column: ["a"]})[0] in ("not_text", "not_messages")


@pytest.mark.parametrize(("form", "column"), [("alpaca", "input"), ("dolly", "context")])
def test_an_optional_column_must_be_text_too(form, column):
    for value in (3, float("nan"), ["a"]):
        assert reason_and_detail(form, GOOD[form] | {column: value})[0] == "not_text"


def test_a_row_that_was_not_read_keeps_its_reason():
    assert reason_and_detail("alpaca", BadRow("not_json", "rubbish")) == ("not_json", "rubbish")


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


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
        ([{"role": "narrator", "content": "Hi"}, ANSWER], "unknown_role", "'narrator'; name it with `roles:"),
        ([USER, {"role": "assistant", "content": None}], "empty_output", ""),
        ([{"role": "user", "content": " "}, ANSWER], "empty_input", ""),
        ([USER], "no_assistant_turn", ""),
        ([ANSWER, USER], "no_user_turn", ""),
        ([USER, ANSWER, {"role": "system", "content": "S"}], "system_not_first", ""),
        (
            [USER, {"role": "assistant", "content": 3}],
            "not_text",
            "message 1: expected content as text, found a number",
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


# Chats with tools, thoughts and flags.

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
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "Hello"}]
    part = convert("messages", {"messages": [USER, ANSWER | {"content": parts}]}).messages[1]
    assert field == part == Message("assistant", "Hello", reasoning="hm")


@pytest.mark.parametrize(
    ("flag", "expected"), [({"train": False}, False), ({"weight": 1}, True), ({"loss_weight": 0.0}, False), ({}, None)]
)
def test_flags_of_single_turns(flag, expected):
    assert convert("messages", {"messages": [USER, ANSWER | flag]}).messages[1].train is expected


def test_answers_in_a_prompt_are_not_trained():
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert [m.train for m in convert("prompt_completion", row).messages] == [None, False, None, None]


def test_placeholders_are_filled_and_others_left_alone():
    row = {"question": "Who are you, {{ name }}?", "answer": "I am {{name}} of {{place}}."}
    filled = [("user", "Who are you, Haul?"), ("assistant", "I am Haul of {{place}}.")]
    assert turns("question_answer", row, placeholders={"name": "Haul"}) == filled
    assert turns("question_answer", row)[1][1] == "I am {{name}} of {{place}}."


@pytest.mark.parametrize(
    ("row", "form", "columns"),
    [
        (GOOD["alpaca"], "alpaca", {}),
        (GOOD["dolly"], "dolly", {}),
        (GOOD["question_answer"], "question_answer", {}),
        ({"Q": "x", "A": "y", "label": 0}, "question_answer", {"question": "Q", "answer": "A"}),
        ({"prompt": "x", "response": "y"}, "prompt_completion", {"completion": "response"}),
        ({"conversations": []}, "sharegpt", {}),
        (GOOD["messages"] | {"id": 1}, "messages", {}),
    ],
)
def test_auto_recognises_the_form(row, form, columns):
    source = resolve_form(source_of("auto"), [RawRow(0, "x:1", row)])
    assert (source.form, source.columns) == (form, columns)


@pytest.mark.parametrize(
    ("form", "column"),
    [("question_answer", "context"), ("alpaca", "context"), ("alpaca", "history"), ("messages", "system")],
)
def test_auto_refuses_to_leave_out_what_the_answer_may_depend_on(form, column):
    def found(cell):
        return resolve_form(source_of("auto"), [RawRow(0, "x:1", GOOD[form] | {column: cell, "note": "n"})])

    with pytest.raises(ValueError, match=rf"takes this as {form}, which does not read the columns \['{column}'\]"):
        found([["a", "b"]] if column == "history" else "text")
    assert unread_columns(found(""), [RawRow(0, "x:1", {"note": "n", column: None, "id": 3})]) == ["note"]


def test_tools_beside_prompt_and_completion_are_read():
    row = {"prompt": "x", "completion": "y", "functions": [{"name": "f"}]}
    source = resolve_form(source_of("auto"), [RawRow(0, "x:1", row)])
    assert source.columns == {"tools": "functions"}
    assert to_conversation(source, RawRow(0, "x:1", row)).tools[0]["function"]["name"] == "f"


def test_a_completion_that_repeats_the_prompt_is_refused():
    talk = GOOD["messages"]["messages"]
    assert reason_and_detail("prompt_completion", {"prompt": "Hi", "completion": talk})[0] == "not_a_completion"


def test_an_empty_system_message_is_no_system_prompt():
    row = {"messages": [{"role": "system", "content": " "}, *GOOD["messages"]["messages"]]}
    assert turns("messages", row) == [("user", "Hi"), ("assistant", "Hello")]
    assert turns("messages", row, system="source's")[0] == ("system", "source's")


def test_auto_that_fits_nothing_lists_the_columns():
    with pytest.raises(ValueError, match=r"fits none of the columns found: \['text'\]"):
        resolve_form(source_of("auto"), [RawRow(0, "x:1", {"text": "x"})])


# A form or mapping that does not fit the data.


def rows_of(*row_values) -> list[RawRow]:
    return [RawRow(number, f"d/x.jsonl:{number + 1}", value) for number, value in enumerate(row_values)]


def test_a_column_that_no_row_has_is_refused_with_the_nearest_and_the_fitting_forms():
    rows = rows_of({"question": "q", "answer": "a"}, BadRow("not_json", ""), {"question": "q", "outputs": "o"})
    with pytest.raises(ValueError) as caught:
        check_columns(source_of("alpaca", columns={"instruction": "question"}), rows)
    message = str(caught.value)
    assert "source 's': none of its first 3 rows, from d/x.jsonl:1 on, has column 'output'" in message
    assert "form alpaca expects columns ['question', 'output']" in message
    assert "found columns ['question', 'answer', 'outputs']; nearest: 'outputs'" in message
    assert "map it with `columns: {output: outputs}`" in message
    assert "forms that fit these columns as they are: question_answer" in message


def test_one_row_with_the_column_is_enough():
    check_columns(source_of("question_answer"), rows_of({"x": 1}, {"question": "q"}, {"answer": None}))
    check_columns(source_of("alpaca"), [])
    for form, row in GOOD.items():
        check_columns(source_of(form), rows_of(row))


def test_a_mapped_optional_column_is_refused_only_where_it_looks_misspelt(capsys):
    row = GOOD["alpaca"] | {"system_prompt": "s"}
    with pytest.raises(ValueError, match=r"has column 'system_promt'(?s:.*)columns: {system: system_prompt}"):
        check_columns(source_of("alpaca", columns={"system": "system_promt"}), rows_of(row))
    check_columns(source_of("alpaca", columns={"system": "persona"}), rows_of(row))
    assert "none of its first 1 rows has column 'persona', given for system" in capsys.readouterr().out


def test_rows_of_which_none_is_an_object_are_refused():
    rows = rows_of(BadRow("not_json", "Expecting value"), BadRow("not_an_object", "a list"))
    with pytest.raises(
        ValueError, match=r"none of its first 2 rows, from d/x.jsonl:1 on, is a JSON object; not_json: Exp"
    ):
        check_columns(source_of("alpaca"), rows)


# Real files.


@pytest.mark.parametrize(
    ("name", "form", "options", "expected"),
    [
        ("en/alpaca_52k.json", "alpaca", {}, {"kept": 51_953, "empty_output": 49}),
        (
            "ko/koalpaca_v1.1_medical_1908.jsonl",
            "question_answer",
            {"columns": {"system": "system_prompt"}},
            {"kept": 1_908},
        ),
        ("ko/logickor_42_messages.jsonl", "messages", {}, {"kept": 40, "empty_output": 2}),
        (
            "ko/kochatgpt_439_sharegpt.json",
            "sharegpt",
            {},
            {"kept": 439},
        ),
        ("en/dolly_12_full_columns.json", "dolly", {}, {"kept": 12}),
        ("en/dolly_6400_no_context.jsonl", "dolly", {"columns": {"response": "text"}}, {"kept": 6_400}),
        ("med/medquad_empty_answers_500.jsonl", "question_answer", {}, {"empty_output": 500}),
        ("chat/oasst_100_messages.jsonl", "messages", {}, {"kept": 100}),
        ("chat/reason_tool_use_50_messages.jsonl", "messages", {}, {"kept": 50}),
        ("chat/glaive_toolcall_en_sharegpt.json", "sharegpt", {}, {"kept": 300}),
        ("chat/fastchat_dummy_500_sharegpt.json", "sharegpt", {}, {"kept": 500}),
        ("chat/sharegpt_raw_5.json", "sharegpt", {}, {"kept": 5}),
        ("chat/llamafactory_v1_sft_messages.jsonl", "messages", {}, {"kept": 500}),
        ("chat/kto_en_messages.json", "messages", {}, {"kept": 300}),
    ],
)
def test_real_files_by_reason(shared_data, name, form, options, expected):
    source = Source(name="s", path=str(shared_data / "text" / name), form=form, **options)
    rows = [row for piece in slice_source(source, 1_000) for row in read_slice(source, piece)]
    check_columns(source, rows[:100])
    assert Counter(outcome(source, row) for row in rows) == expected


def outcome(source: Source, row: RawRow) -> str:
    try:
        to_conversation(source, row)
    except BadRow as bad:
        return bad.reason
    return "kept"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ko/kochatgpt_439_sharegpt.json", "found columns ['conversations']"),
        ("ko/kochatgpt_conversation_NOT_JSON.jsonl", "is a JSON object; not_json: Expecting value"),
        ("ko/logickor_qwen2_BOM.jsonl", "found columns ['id', 'category', "),
        ("med/medquad_nih.jsonl", "forms that fit these columns as they are: question_answer"),
    ],
)
def test_real_files_read_with_the_wrong_form(shared_data, name, message):
    source = Source(name="s", path=str(shared_data / "text" / name), form="messages")
    rows = list(read_slice(source, slice_source(source, 100)[0]))
    with pytest.raises(ValueError) as caught:
        check_columns(source, rows)
    assert message in str(caught.value)
    assert json.dumps(name.rpartition("/")[2])[1:-1] in str(caught.value)


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
