"""Raw rows converted to conversations in tests, and rows of each form."""

from __future__ import annotations

import pytest

from data_prep.conversation import BadRow, Conversation
from data_prep.recipe import Source
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import RawRow

GOOD = {
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1 2", "response": "3"},
    "question_answer": {"question": "Why?", "answer": "So."},
    "prompt_completion": {"prompt": "Once", "completion": " upon"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
}


def source_of(form: str, **options) -> Source:
    """A source of this form."""
    return Source(name="s", path="x.jsonl", form=form, **options)


def convert(form: str, value: dict | BadRow, separator: str = "\n\n", **options) -> Conversation:
    """The conversation in one row."""
    return to_conversation(source_of(form, **options), RawRow(7, "x.jsonl:8", value), input_separator=separator)


def turns(form: str, value: dict, *args, **options) -> list[tuple[str, str]]:
    """Role and content of each of its messages."""
    return [(m.role, m.content) for m in convert(form, value, *args, **options).messages]


def reason_and_detail(form: str, value: dict | BadRow, **options) -> tuple[str, str]:
    """Why a row is refused."""
    with pytest.raises(BadRow) as caught:
        convert(form, value, **options)
    return caught.value.reason, caught.value.detail


USER = {"role": "user", "content": "Hi"}


ANSWER = {"role": "assistant", "content": "Hello"}
