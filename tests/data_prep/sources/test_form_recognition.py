"""Forms found by the columns, and what is refused before anything is prepared."""

from __future__ import annotations

import json

import pytest

from data_prep.conversation import BadRow
from data_prep.recipe import Source
from data_prep.sources.form_recognition import check_columns, resolve_form, unread_names
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import read_slice, slice_source
from tests.support.conversions import ANSWER, GOOD, source_of


def rows_of(*row_values) -> list[RawRow]:
    return [RawRow(number, f"d/x.jsonl:{number + 1}", value) for number, value in enumerate(row_values)]


@pytest.mark.parametrize(
    ("row", "form", "columns"),
    [
        (GOOD["alpaca"], "alpaca", {}),
        (GOOD["dolly"], "dolly", {}),
        (GOOD["question_answer"], "question_answer", {}),
        ({"Q": "x", "A": "y", "label": 0}, "question_answer", {"question": "Q", "answer": "A"}),
        ({"query": "x", "response": "y"}, "question_answer", {"question": "query", "answer": "response"}),
        ({"prompt": "x", "response": "y"}, "prompt_completion", {"completion": "response"}),
        ({"conversations": []}, "sharegpt", {}),
        (GOOD["messages"] | {"id": 1}, "messages", {}),
    ],
)
def test_auto_recognises_the_form(row, form, columns):
    source = resolve_form(source_of("auto"), [RawRow(0, "x:1", row)])
    assert (source.form, source.columns) == (form, columns)


@pytest.mark.parametrize(
    ("more", "columns"),
    [
        ({"system": "S"}, {}),
        ({"system_prompt": "S"}, {"system": "system_prompt"}),
        ({"system": None, "system_prompt": "S"}, {"system": "system_prompt"}),
        ({"history": [["a", "b"]]}, {}),
        ({"functions": [{"name": "f"}]}, {"tools": "functions"}),
    ],
)
def test_auto_reads_what_belongs_to_the_prompt(more, columns):
    rows = rows_of(GOOD["question_answer"] | more)
    source = resolve_form(source_of("auto"), rows)
    assert (source.form, source.columns) == ("question_answer", columns)
    assert unread_names(source, rows) == []


def test_a_column_of_nulls_does_not_decide_the_form():
    rows = rows_of({"messages": None, **GOOD["alpaca"]}, {"messages": [], **GOOD["alpaca"]})
    assert resolve_form(source_of("auto"), rows).form == "alpaca"
    assert resolve_form(source_of("auto"), rows_of({"messages": None})).form == "messages"


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize(
    ("form", "column", "cell", "remedy"),
    [
        ("question_answer", "context", "text", "the context of dolly"),
        ("question_answer", "Context", 7, "map it as the input of alpaca"),
        ("alpaca", "context", ["a"], "or leave it out on purpose: `ignore: [context]`"),
        ("messages", "history", [["a", "b"]], "`columns: {history: history}`"),
        ("messages", "system_message", "be brief", "`columns: {system: system_message}`"),
        ("question_answer", "label", False, "leave those rows out with a `transform`"),
        ("messages", "label", 0, "`ignore: [label]`"),
        ("messages", "rejected_response", "bad", "training takes one"),
        ("sharegpt", "chosen", {"from": "gpt", "value": "x"}, "`columns: {prompt: COLUMN, completion: chosen}`"),
        ("alpaca", "images", ["a.png"], "only text is trained"),
        ("alpaca", "weight", 0.5, "expected 0 or 1"),
    ],
)
def test_what_changes_the_meaning_is_refused_with_what_to_do(form, column, cell, remedy, stated):
    good = GOOD["messages"]["messages"] if form == "sharegpt" else None
    rows = rows_of(({"conversations": good} if good else GOOD[form]) | {column: cell, "note": "n"})
    source = source_of(form) if stated else resolve_form(source_of("auto"), rows)
    if column == "system_message" and not stated:
        assert source.columns == {"system": "system_message"}
        return
    with pytest.raises(ValueError, match=r"source 's': d/x.jsonl:1: column ") as caught:
        unread_names(source, rows)
    assert remedy in str(caught.value)
    ignoring = source.model_copy(update={"ignore": (column,)})
    assert unread_names(ignoring, rows) == ["note"]
    for nothing in (None, "", " ", [], {}, float("nan")):
        assert unread_names(source, rows_of(rows[0].value | {column: nothing})) == ["note"]


def test_rows_with_images_are_dropped_where_there_are_others():
    row = GOOD["messages"] | {"images": ["a.png"]}
    assert unread_names(source_of("messages"), rows_of(row, GOOD["messages"])) == []
    with pytest.raises(ValueError, match="'images' holds a list of 1"):
        unread_names(source_of("messages"), rows_of(row, row))


def test_the_rejected_answers_are_named_once_the_chosen_ones_are_read():
    rows = rows_of({"prompt": "q", "chosen": "good", "rejected": "bad"})
    with pytest.raises(ValueError, match=r"answers to compare(?s:.*)`columns: {completion: chosen}`"):
        resolve_form(source_of("auto"), rows)
    assert unread_names(source_of("prompt_completion", columns={"completion": "chosen"}), rows) == ["rejected"]


@pytest.mark.parametrize("cell", ["x", 3, 0.5, False, ["a"], {"k": 1}])
def test_what_is_not_read_is_named_whatever_its_type_and_depth(cell):
    call = {"function": {"name": "f", "arguments": {}, "z": cell}, "y": cell}
    tool = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "r"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": cell}]}
    rows = rows_of({"messages": [parts, *tool, ANSWER | {"name": cell}], "x": cell, "empty": None})
    expected = ["x", "content[].cache_control", "tool_calls[].y", "tool_calls[].z", "messages[].name"]
    assert unread_names(source_of("messages"), rows) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "say `form: text`"),
        ({"version": "1", "data": [GOOD["alpaca"]]}, "say `field: data`"),
        ({"data": GOOD["messages"]}, "say `field: data`"),
        ({"a": 1}, "or bring the rows into a form with a `transform`"),
    ],
)
def test_auto_that_fits_nothing_says_what_to_write(row, said):
    with pytest.raises(ValueError, match="form auto fits none of the columns found") as caught:
        resolve_form(source_of("auto"), rows_of(row))
    assert said in str(caught.value)


def test_tools_beside_prompt_and_completion_are_read():
    row = {"prompt": "x", "completion": "y", "functions": [{"name": "f"}]}
    source = resolve_form(source_of("auto"), [RawRow(0, "x:1", row)])
    assert source.columns == {"tools": "functions"}
    assert to_conversation(source, RawRow(0, "x:1", row)).tools[0]["function"]["name"] == "f"


def test_auto_that_fits_nothing_lists_the_columns():
    with pytest.raises(ValueError, match=r"fits none of the columns found: \['text'\]"):
        resolve_form(source_of("auto"), [RawRow(0, "x:1", {"text": "x"})])


# A form or mapping that does not fit the data.


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


def test_a_file_of_one_object_over_several_lines_is_refused_with_the_key_of_its_rows(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"version": 1, "tags": ["a"], "스레드": [{"id": 1}]}, indent=1))
    source = Source(name="s", path=str(tmp_path / "x.json"))
    rows = list(read_slice(source, slice_source(source, 100)[0]))
    with pytest.raises(ValueError, match=r"the file is one object over several lines: .*, say `field: 스레드`\n"):
        resolve_form(source, rows)


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


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"version": 1, "대화": [{"id": 1}, {"id": 2}]},
            "'대화' holds a list of objects: if these are the rows, say `field: 대화`",
        ),
        ({"id": 1, "dialog": {"turns": [{"who": "a", "says": "b"}]}}, 'returns {"messages": row["dialog"]["turns"]}'),
    ],
)
def test_lists_of_objects_that_no_form_reads_are_named(row, said):
    with pytest.raises(ValueError, match="form auto fits none of the columns") as refused:
        resolve_form(source_of("auto"), rows_of(row))
    assert said in str(refused.value)


def test_korean_names_of_question_and_answer_are_known():
    source = resolve_form(source_of("auto"), rows_of({"번호": 1, "질문": "왜?", "답변": "그래서."}))
    assert (source.form, source.columns) == ("question_answer", {"answer": "답변", "question": "질문"})
