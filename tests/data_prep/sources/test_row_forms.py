"""Sources: what each raw form becomes, and what is said of a row or a recipe that does not fit."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.conversation import BadRow
from data_prep.recipe import Source
from data_prep.sources.form_recognition import check_columns
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import read_slice, slice_source
from tests.support.conversions import ANSWER, GOOD, USER, convert, reason_and_detail, source_of, turns

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
    assert turns(form, GOOD[form] | {"system": "usual name"})[0] == ("system", "usual name")
    assert reason_and_detail(form, GOOD[form] | {"system": "not mapped"}, **mapped)[0] == "unread_column"
    assert reason_and_detail(form, GOOD[form] | {"sp": ["a"]}, **mapped)[0] == "not_text"


def test_a_system_message_in_the_row_is_kept_alone():
    row = {"messages": [{"role": "system", "content": "own"}, *GOOD["messages"]["messages"]]}
    assert [t for t in turns("messages", row, system="source's") if t[0] == "system"] == [("system", "own")]
    assert turns("messages", row | {"system": "own "})[0] == ("system", "own")
    assert reason_and_detail("messages", row | {"system": "other"})[0] == "two_system_prompts"


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
    for value, kind in ((float("nan"), "a number (nan)"), (True, "a truth value (True)")):
        assert reason_and_detail(form, GOOD[form] | {column: value}) == (
            "not_text",
            f"column {column!r}: expected text, found {kind}",
        )
    for value in ({"k": 1}, ["a", "b"]):
        assert reason_and_detail(form, GOOD[form] | {column: value})[0] in ("not_text", "not_messages")


@pytest.mark.parametrize(("form", "column"), [("alpaca", "input"), ("dolly", "context")])
def test_an_optional_column_must_be_text_too(form, column):
    for value in (True, {"k": 1}, ["a"]):
        reason, detail = reason_and_detail(form, GOOD[form] | {column: value})
        assert reason == "not_text"
        assert ("with a `transform`" in detail) == isinstance(value, list)
    assert turns(form, GOOD[form] | {column: float("nan")})[0] == ("user", "Add.")


@pytest.mark.parametrize(("number", "text"), [(4, "4"), (0, "0"), (0.5, "0.5"), (10**30, "1" + "0" * 30)])
def test_a_number_is_a_text_too(number, text):
    assert turns("question_answer", {"question": number, "answer": number}) == [("user", text), ("assistant", text)]


def test_a_list_of_answers():
    assert turns("question_answer", {"question": "q", "answer": ["only"]})[1] == ("assistant", "only")
    several = {"question": "q", "answer": ["a", "b"]}
    reason, detail = reason_and_detail("question_answer", several)
    assert reason == "not_text" and "say `answers: first`, or `answers: each`" in detail
    assert turns("question_answer", several, answers="first")[1] == ("assistant", "a")
    assert reason_and_detail("question_answer", {"question": "q", "answer": []})[0] == "not_text"
    assert turns("prompt_completion", {"prompt": "q", "completion": [7]})[1] == ("assistant", "7")


def test_reasoning_in_a_column_is_read_where_it_is_mapped():
    row = GOOD["question_answer"] | {"cot": "hm"}
    assert convert("question_answer", row, columns={"reasoning": "cot"}).messages[1].reasoning == "hm"
    assert convert("prompt_completion", {"prompt": "a", "completion": "b", "cot": 3}, columns={"reasoning": "cot"})
    for absent in ({}, {"cot": " "}, {"cot": None}):
        found = convert("question_answer", GOOD["question_answer"] | absent, columns={"reasoning": "cot"})
        assert found.messages[1].reasoning is None
    with pytest.raises(ValueError, match="form messages has no column 'reasoning'"):
        source_of("messages", columns={"reasoning": "cot"})


EARLIER = [("user", "1"), ("assistant", "2")]


@pytest.mark.parametrize("form", ["alpaca", "dolly", "question_answer"])
@pytest.mark.parametrize(
    "history",
    [
        [["1", "2"]],
        [[1, 2]],
        '[["1", "2"]]',
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}],
    ],
)
def test_a_history_is_earlier_turns(form, history):
    row = GOOD[form] | {"history": history, "system": "S"}
    assert turns(form, row) == [("system", "S"), *EARLIER, *turns(form, GOOD[form])]
    for none in (None, [], "", "[]"):
        assert turns(form, GOOD[form] | {"history": none}) == turns(form, GOOD[form])


@pytest.mark.parametrize("history", [[["1"]], [["1", "2", "3"]], ["1", "2"], {"1": "2"}, 3, [[["a"], "b"]]])
def test_a_history_of_another_form_costs_the_row(history):
    assert reason_and_detail("alpaca", GOOD["alpaca"] | {"history": history})[0] in (
        "not_history",
        "not_text",
        "not_messages",
    )


def test_answers_before_the_first_question_are_kept_and_not_trained():
    row = {"messages": [{"role": "assistant", "content": "Welcome!"}, USER, ANSWER]}
    assert [m.train for m in convert("messages", row).messages] == [False, None, None]
    asks = {"messages": [{"role": "assistant", "content": "Welcome!", "train": True}, USER, ANSWER]}
    assert reason_and_detail("messages", asks)[0] == "no_user_turn"
    assert reason_and_detail("messages", {"messages": [ANSWER, USER]})[0] == "no_user_turn"


def test_optional_columns_are_left_out_on_purpose():
    row = GOOD["alpaca"] | {"system": "S", "history": [["1", "2"]], "tools": [{"name": "f"}]}
    found = convert("alpaca", row, ignore=["system", "history", "tools", "input"])
    assert [m.content for m in found.messages] == ["Add.", "3"] and found.tools == ()
    with pytest.raises(ValueError, match=r"\['output'\] are read and in `ignore`"):
        source_of("alpaca", ignore=["output"])


def test_a_plain_text_is_one_trained_message():
    found = convert("text", {"text": " a\n", "instruction": "x", "system": "y"})
    assert (turns("text", {"text": " a\n"}), found.is_text) == ([("assistant", " a\n")], True)
    assert reason_and_detail("text", {"text": " "})[0] == "empty_output"
    assert reason_and_detail("text", {"text": "a", "images": ["x"]})[0] == "unread_column"


def test_a_row_that_was_not_read_keeps_its_reason():
    assert reason_and_detail("alpaca", BadRow("not_json", "rubbish")) == ("not_json", "rubbish")


# Prompts, placeholders, the form found by the columns.


def test_answers_in_a_prompt_are_not_trained():
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert [m.train for m in convert("prompt_completion", row).messages] == [None, False, None, None]


def test_placeholders_are_filled_and_others_left_alone():
    row = {"question": "Who are you, {{ name }}?", "answer": "I am {{name}} of {{place}}."}
    filled = [("user", "Who are you, Haul?"), ("assistant", "I am Haul of {{place}}.")]
    assert turns("question_answer", row, placeholders={"name": "Haul"}) == filled
    assert turns("question_answer", row)[1][1] == "I am {{name}} of {{place}}."


def test_a_completion_that_repeats_the_prompt_is_refused():
    talk = GOOD["messages"]["messages"]
    assert reason_and_detail("prompt_completion", {"prompt": "Hi", "completion": talk})[0] == "not_a_completion"


def test_an_empty_system_message_is_no_system_prompt():
    row = {"messages": [{"role": "system", "content": " "}, *GOOD["messages"]["messages"]]}
    assert turns("messages", row) == [("user", "Hi"), ("assistant", "Hello")]
    assert turns("messages", row, system="source's")[0] == ("system", "source's")


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
        ("chat/kto_en_messages.json", "messages", {}, {"unread_column": 300}),
        ("chat/kto_en_messages.json", "messages", {"ignore": ["label"]}, {"kept": 300}),
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
