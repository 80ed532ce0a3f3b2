"""What a row is grouped by for the eval split: a hash of its first question, of a column's value, or of its tokens."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from data_prep.conversation import BadRow, Conversation
from data_prep.recipe import GroupBy, GroupByColumn
from data_prep.sources.slices import RawRow


def first_question(conversation: Conversation) -> str:
    """The first user message; a plain text has none and is taken whole."""
    questions = (m.content for m in conversation.messages if m.role == "user")
    return next(questions, conversation.messages[0].content)


def group_of(raw: RawRow, conversation: Conversation, how: GroupBy) -> int | None:
    """A 64-bit hash that all rows of a group share; None for a row that is a group of its own."""
    if how == "conversation":
        return None
    value = column_value(raw, how)
    if value is not None:
        return _hash(f"column {value}")
    question = first_question(conversation)
    if not question.isascii():
        question = unicodedata.normalize("NFKC", question)
    return _hash(f"question {' '.join(question.split()).casefold()}")


def column_value(raw: RawRow, how: GroupBy) -> str | None:
    """The text of the row's cell in the column that groups; None if there is none, or nothing in it."""
    if not isinstance(how, GroupByColumn) or isinstance(raw.value, BadRow):
        return None
    value = raw.value.get(how.column)
    return None if value is None or value == "" else _text(value)


def _text(value: Any) -> str:
    """A CSV file's 7 and a JSON file's are the same."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
