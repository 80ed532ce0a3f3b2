"""What makes a group of rows: the question as a person reads it, a column's value, or nothing."""

from __future__ import annotations

import unicodedata

import pytest

from data_prep.conversation import Conversation, Message
from data_prep.recipe import GroupByColumn
from data_prep.sources.slices import RawRow
from data_prep.stages.row_groups import group_of

PAGE = GroupByColumn(column="page")


def group(question: str, how="question", **columns) -> int | None:
    messages = (Message("system", columns.pop("system", "x")), Message("user", question), Message("assistant", "y"))
    return group_of(RawRow(0, "a.jsonl:1", columns), Conversation(messages, "s", 0), how)


@pytest.mark.parametrize(
    "same",
    [
        " What is\tit?\n",
        "WHAT IS IT?",
        unicodedata.normalize("NFKC", "Ｗｈａｔ is it?"),
        "Ｗｈａｔ is it?",
    ],
)
def test_a_question_is_the_same_however_it_is_typed(same):
    assert group(same) == group("What is it?") != group("What is that?")


def test_korean_in_either_form_of_unicode_is_the_same():
    assert group(unicodedata.normalize("NFD", "이것은 무엇인가요?")) == group("이것은 무엇인가요?")


def test_only_the_first_question_counts():
    later = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    of_all = group_of(RawRow(0, "", {}), Conversation(later, "s", 0), "question")
    assert of_all == group("a", system="y") == group("a", system="z") == group("a", page=3)


@pytest.mark.parametrize(("value", "other"), [(7, "7"), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ("x", "x"), (0, 0)])
def test_rows_of_one_value_are_a_group(value, other):
    assert group("a", PAGE, page=value) == group("b", PAGE, page=other) != group("a", PAGE, page=8)


@pytest.mark.parametrize("columns", [{}, {"page": None}, {"page": ""}])
def test_a_row_without_a_value_goes_by_its_question(columns):
    assert group("a", PAGE, **columns) == group("a") != group("b", PAGE, page="question a")


def test_by_conversation_a_row_is_a_group_of_its_own():
    assert group("a", "conversation", page=7) is None
