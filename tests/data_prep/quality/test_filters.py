"""Filters: each leaves out what it says, with its reason; mistakes in a recipe are refused when it is read."""

from __future__ import annotations

import sys
import time

import pytest
from pydantic import ValidationError

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.quality import filters
from data_prep.quality.filters import Filters, check, check_trained_tokens, filter_identity, resolve_function


def conversation(question: str = "감기약 추천해 줘", *answers: str) -> Conversation:
    turns = [Message("user", question)]
    for answer in answers or ("해열제와 진통제가 있습니다.",):
        turns += [Message("assistant", answer), Message("user", "그리고?")]
    return Conversation(tuple(turns[:-1]), "med", 3)


def reason(row: Conversation, language: str | None = None, **options) -> str | None:
    try:
        check(row, Filters(**options), language)
    except BadRow as bad:
        return bad.reason
    return None


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's, in the current folder."""
    (tmp_path / "my_filters.py").write_text(
        "def has_korean(messages):\n"
        "    return any('가' <= c <= '힣' for m in messages for c in m['content'])\n"
        "def short(messages):\n"
        "    return 'the answer is short' if len(messages[-1]['content']) < 5 else True\n"
        "def broken(messages):\n"
        "    return messages[99]['content']\n"
        "def forgets(messages):\n"
        "    pass\n"
        "def rewrites(messages):\n"
        "    messages[0]['content'] = ''\n"
        "    messages[1]['tool_calls'][0]['function']['arguments'].clear()\n"
        "    return True\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_filters", raising=False)  # that of another test
    resolve_function.cache_clear()
    yield tmp_path / "my_filters.py"
    resolve_function.cache_clear()


def test_no_filter_keeps_everything():
    assert reason(conversation()) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_answer_characters": 6}, None),
        ({"min_answer_characters": 7}, "filtered_length"),
        ({"max_answer_characters": 6}, None),
        ({"max_answer_characters": 5}, "filtered_length"),
    ],
)
def test_length_is_that_of_all_answers_in_characters(options, expected):
    assert reason(conversation("a long question that does not count", "네네네", "아니요"), **options) == expected


def test_length_in_trained_tokens():
    options = Filters(min_trained_tokens=3, max_trained_tokens=5)
    for tokens in (3, 5):
        check_trained_tokens(tokens, options)
    for tokens, detail in ((2, "2 trained tokens; at least 3"), (6, "6 trained tokens; at most 5")):
        with pytest.raises(BadRow, match=detail) as caught:
            check_trained_tokens(tokens, options)
        assert caught.value.reason == "filtered_length"


def test_language():
    assert reason(conversation(), "ko", languages=["ko", "en"]) is None
    assert reason(conversation(), "ja", languages=["ko", "en"]) == "filtered_language"
    assert reason(conversation(), None, languages=["ko"]) == "filtered_language"
    assert reason(conversation(), "und", languages=["ko", "und"]) is None


def test_every_wanted_pattern_is_in_some_message_and_no_other_is_in_any():
    row = conversation("감기약 추천", "타이레놀이 있습니다.", "죄송합니다. 저는 AI입니다.")
    assert reason(row, must_match=["감기", r"있습니다\.$"]) is None
    assert reason(row, must_match=["감기", "두통"]) == "filtered_regex"
    assert reason(row, must_not_match=["두통", r"as an AI"]) is None
    assert reason(row, must_not_match=[r"저는 AI\w+"]) == "filtered_regex"
    assert reason(row, must_match=[r"^\p{Hangul}+약"]) is None


def test_the_detail_names_the_pattern_and_what_it_found():
    with pytest.raises(BadRow, match=r"message 1 \(assistant\) matches '진통\.': '진통제'"):
        check(conversation(), Filters(must_not_match=["진통."]), None)


# The user's function.


@pytest.mark.parametrize("name", ["my_filters:has_korean", "my_filters.has_korean"])
def test_a_function_that_says_yes_or_no(module, name):
    assert reason(conversation(), function=name) is None
    assert reason(conversation("Hi", "Hello."), function=name) == "filtered_function"


def test_a_function_that_says_why(module):
    with pytest.raises(BadRow, match="my_filters:short: the answer is short") as caught:
        check(conversation("?", "네"), Filters(function="my_filters:short"), None)
    assert caught.value.reason == "filtered_function"


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("broken", "raised IndexError: list index out of range"),
        ("forgets", r"returned 'None' \(NoneType\); expected True"),
    ],
)
def test_a_function_that_fails_is_told_apart_from_one_that_refuses(module, function, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        check(conversation(), Filters(function=f"my_filters:{function}"), None)
    assert caught.value.reason == "filter_error"


def test_a_function_cannot_change_the_row(module):
    call = ToolCall("search", {"query": "감기약"})
    row = Conversation((Message("user", "감기약"), Message("assistant", "", tool_calls=(call,))), "med", 3)
    assert reason(row, function="my_filters:rewrites") is None
    assert (row.messages[0].content, call.arguments) == ("감기약", {"query": "감기약"})


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("my_filters:nothing", "AttributeError"),
        ("no_such_module:f", "No module named 'no_such_module'.*current folder"),
        ("my_filters:number", "is a int, not a function"),
    ],
)
def test_a_function_that_is_not_there_is_an_error_of_the_recipe(module, function, detail):
    with pytest.raises(ValueError, match=f"filters: .*{function}.*{detail}|{detail}"):
        resolve_function(function)


def test_other_code_is_another_filter(module):
    options = Filters(function="my_filters:has_korean")
    before = filter_identity(options)
    assert before == filter_identity(options)
    module.write_text(module.read_text() + "# changed\n")
    assert filter_identity(options) != before
    assert filter_identity(Filters()) == {}


# Mistakes.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"must_match": ["fine", "(never closed"]}, r"'\(never closed' is not a regular expression: missing \)"),
        ({"must_not_match": ["*"]}, r"'\*' is not a regular expression"),
        ({"function": "just_a_name"}, "'just_a_name' does not name a function"),
        ({"function": "a b:c"}, "'a b:c' does not name a function"),
        ({"languages": ["ko", "kr"]}, r"no such language code: \['kr'\]; known: .*ko"),
        ({"languages": []}, "at least 1 item"),
        ({"min_answer_characters": 9, "max_answer_characters": 8}, "no row could pass"),
        ({"min_trained_tokens": 9, "max_trained_tokens": 8}, "no row could pass"),
        ({"max_answer_chars": 8}, "Extra inputs"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Filters(**options)


def test_a_pattern_that_backtracks_without_end_stops_the_run_and_is_named(monkeypatch):
    monkeypatch.setattr(filters, "REGEX_SECONDS", 0.2)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"'\^\(a\|aa\)\+\$' took more than 0.2 s .*source 'med', row 3") as caught:
        check(conversation("a" * 60 + "!"), Filters(must_match=["^(a|aa)+$"]), None)
    assert not isinstance(caught.value, BadRow)  # a slow machine must not drop more rows than a fast one
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "more", [{"reasoning": "the secret"}, {"tool_calls": (ToolCall("f", {"a": [{"b": "secret"}]}),)}]
)
def test_patterns_are_looked_for_in_thoughts_and_in_calls_too(more):
    row = Conversation((Message("user", "Hi"), Message("assistant", "Hello", **more)), "s", 0)
    assert reason(row, must_not_match=["secret"]) == "filtered_regex"
    assert reason(row, must_match=["secret"]) is None
