"""Raw rows to conversations: one small function for each form, and each row's columns looked at."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.conversation import BadRow, Conversation, Message, validate
from data_prep.recipe import FORM_COLUMNS, Source
from data_prep.sources.cells import as_text, kind, names
from data_prep.sources.column_meanings import (
    MASK_FLAGS,
    ROW_FLAGS,
    TRAIN_FLAGS,
    answers_read,
    changes_meaning,
    is_filled,
    read_flag,
    remedy,
)
from data_prep.sources.message_lists import MessageReader
from data_prep.sources.slices import RawRow
from data_prep.sources.tool_calls import read_json, read_tools

Row = dict[str, Any]
_PLACEHOLDER = re.compile(r"{{\s*(\w+)\s*}}")
_FLAGS = frozenset((*TRAIN_FLAGS, *MASK_FLAGS, *ROW_FLAGS))
_MOST_UNREAD = 200  # names kept; some data has a name of its own in each row


def to_conversation(source: Source, row: RawRow, *, input_separator: str = "\n\n") -> Conversation:
    """The conversation in one row: see `RowReader`."""
    return RowReader(source, input_separator).conversation(row)


class RowReader:
    """Turns the rows of one source, whose form is known, into conversations.

    Args:
        input_separator: between the instruction and its input or context (forms alpaca and dolly). For a template that
            gives the input a section of its own, that section's heading.
        read_elsewhere: columns that something else reads, such as the one that makes groups.
    """

    def __init__(self, source: Source, input_separator: str = "\n\n", read_elsewhere: Collection[str] = ()):
        self.source = source
        self.unread: dict[str, None] = {}  # names of what holds something and is not read, in the order found
        self._separator = input_separator
        columns = {key: source.column(key) for key in (*FORM_COLUMNS[source.form], *source.columns)}
        self._passed = {*columns.values(), *source.ignore, *read_elsewhere}
        self._answered = frozenset().union(*map(answers_read, columns.values()))
        self._columns = {key: column for key, column in columns.items() if column not in source.ignore}
        self._messages = MessageReader(source, self._note)
        self._turns = _FORMS[source.form]
        self._unfilled = set(source.placeholders)

    @property
    def unseen(self) -> set[str]:
        """What the recipe names and no row so far has: keys of messages and placeholders."""
        return {f"messages[].{key}" for key in self._messages.unseen} | {f"{{{{{key}}}}}" for key in self._unfilled}

    def conversation(self, row: RawRow) -> Conversation:
        """The conversation in one row.

        Raises:
            BadRow: the row could not be read, lacks a column, holds something other than text, has a column that
                changes what it means and that is not read, or `validate` refuses it.
        """
        value = row.value
        if isinstance(value, BadRow):
            raise value
        if more := value.keys() - self._passed:
            self._look_at(value, more)
        turns = self._turns(self, value)
        if self.source.form != "text":
            turns = self._with_system(value, _without_greeting(turns))
        conversation = Conversation(
            tuple(turns), self.source.name, row.number, self._tools(value), self.source.form == "text"
        )
        if self.source.placeholders:
            conversation = self._filled(conversation, self.source.placeholders)
        validate(conversation)
        return conversation

    # Columns that the form does not read.

    def _look_at(self, row: Row, more: set[str]) -> None:
        for name, cell in row.items():
            if name not in more or not is_filled(cell):
                continue
            if name.lower() in _FLAGS:
                _refuse_untrained(name, cell)
            elif changes_meaning(name, self.source.form) and name not in self._answered:
                what = f"column {name!r} holds {kind(cell)}, which form {self.source.form} does not read"
                raise BadRow("unread_column", f"{what}: {remedy(name, self.source.form)}")
            elif len(self.unread) < _MOST_UNREAD:
                self._passed.add(name)
                self._note(name)

    def _note(self, name: str) -> None:
        if len(self.unread) < _MOST_UNREAD:
            self.unread[name] = None

    # Forms.

    def alpaca(self, row: Row) -> list[Message]:
        """An instruction, its input if there is one, and the output."""
        return self._answered_turns(row, "instruction", "input", "output")

    def dolly(self, row: Row) -> list[Message]:
        """An instruction, its context if there is one, and the response."""
        return self._answered_turns(row, "instruction", "context", "response")

    def question_answer(self, row: Row) -> list[Message]:
        """A question and its answer."""
        return self._answered_turns(row, "question", None, "answer")

    def _answered_turns(self, row: Row, question: str, more: str | None, answer: str) -> list[Message]:
        user, added = self._text(row, question, "empty_input"), self._optional_text(row, more) if more else None
        asked = user if added is None else f"{user}{self._separator}{added}"
        turns = [Message("user", asked), Message("assistant", self._answer(row, answer), None, self._reasoning(row))]
        history = row.get(self._columns.get("history", ""))
        return self._history(history) + turns if is_filled(history) else turns

    def prompt_completion(self, row: Row) -> list[Message]:
        """Two strings, or two lists of messages. The second continues the first; only the second is trained."""
        prompt = self._text_or_messages(row, "prompt", "user", "empty_input")
        untrained = [replace(m, train=False) if m.role == "assistant" else m for m in prompt]
        completion = self._text_or_messages(row, "completion", "assistant", "empty_output")
        if completion and completion[0].role in ("system", "user"):
            raise BadRow(
                "not_a_completion",
                f"column {self._columns['completion']!r} starts with a {completion[0].role} message: expected what "
                "follows the prompt. If it holds the whole conversation: `form: messages`, `columns: {messages: "
                f"{self._columns['completion']}}}`",
            )
        return untrained + completion

    def _text_or_messages(self, row: Row, key: str, role: str, empty: str) -> list[Message]:
        cell = self._cell(row, key)
        is_texts = isinstance(cell, list) and bool(cell) and not any(isinstance(item, dict) for item in cell)
        if not isinstance(cell, list | dict) or (is_texts and key == "completion"):
            text = self._answer(row, key) if key == "completion" else self._text(row, key, empty)
            return [Message(role, text, None, self._reasoning(row) if role == "assistant" else None)]
        if not cell:
            raise BadRow(empty, f"column {self._columns[key]!r} is an empty list")
        return self._messages.read(cell, f"column {self._columns[key]!r}")

    def messages(self, row: Row) -> list[Message]:
        """A list of messages."""
        return self._messages.read(self._cell(row, "messages"), f"column {self._columns['messages']!r}")

    def sharegpt(self, row: Row) -> list[Message]:
        """The same in a column of another name."""
        return self._messages.read(self._cell(row, "conversations"), f"column {self._columns['conversations']!r}")

    def text(self, row: Row) -> list[Message]:
        """A plain text, all of which is trained."""
        return [Message("assistant", self._text(row, "text", "empty_output"), True)]

    # Parts of a conversation.

    def _history(self, cell: Any) -> list[Message]:
        """Earlier turns: pairs of question and answer, or messages."""
        where = f"column {self._columns['history']!r}"
        if isinstance(cell, str):
            cell = read_json(cell, "not_history", where)
        if isinstance(cell, list) and all(isinstance(item, dict) for item in cell):
            return self._messages.read(cell, where)
        if not isinstance(cell, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in cell):
            raise BadRow("not_history", f"{where}: expected pairs of question and answer, found {kind(cell)}")
        texts = [(as_text(question, where), as_text(answer, where)) for question, answer in cell]
        turns = [(Message("user", question or ""), Message("assistant", answer or "")) for question, answer in texts]
        return [message for pair in turns for message in pair]

    def _reasoning(self, row: Row) -> str | None:
        return self._optional_text(row, "reasoning") if "reasoning" in self.source.columns else None

    def _with_system(self, row: Row, turns: list[Message]) -> list[Message]:
        """The row's own system prompt goes before that of the source."""
        if turns and turns[0].role == "system" and not turns[0].content.strip():
            del turns[0]  # no system prompt, as some data sets write it
        own = self._optional_text(row, "system")
        if turns and turns[0].role == "system":
            if own is not None and own.strip() != turns[0].content.strip():
                where = f"column {self._columns['system']!r}"
                raise BadRow("two_system_prompts", f"{where} and the first message hold different system prompts")
            return turns
        system = own or self.source.system or None
        return turns if system is None else [Message("system", system), *turns]

    def _tools(self, row: Row) -> tuple[Row, ...]:
        column = self._columns.get("tools")
        cell = row.get(column) if column else None
        return read_tools(cell, f"column {column!r}") if cell else ()

    def _filled(self, conversation: Conversation, values: Mapping[str, str]) -> Conversation:
        """Fill {{name}} placeholders; names that the recipe does not give stay as they are."""

        def value(found: re.Match[str]) -> str:
            self._unfilled.discard(found[1])
            return values.get(found[1], found[0])

        messages = [
            replace(
                m,
                content=_PLACEHOLDER.sub(value, m.content),
                reasoning=None if m.reasoning is None else _PLACEHOLDER.sub(value, m.reasoning),
            )
            for m in conversation.messages
        ]
        return replace(conversation, messages=tuple(messages))

    # Cells.

    def _cell(self, row: Row, key: str) -> Any:
        column = self._columns[key]
        if column not in row:
            near = nearest(column, list(row)) or "YOUR_COLUMN"
            detail = f"expected column {column!r} (form {self.source.form}); found columns {names(row)}"
            raise BadRow("missing_column", f"{detail}; map it with `columns: {{{key}: {near}}}`")
        return row[column]

    def _answer(self, row: Row, key: str) -> str:
        """The answer; of a list of answers the one that it holds, or the first if the recipe says so."""
        cell = self._cell(row, key)
        if isinstance(cell, list) and cell and (len(cell) == 1 or self.source.answers == "first"):
            row = {self._columns[key]: cell[0]}
        elif isinstance(cell, list) and len(cell) > 1:
            what = f"column {self._columns[key]!r}: a list of {len(cell)} answers, and one can be trained"
            raise BadRow("not_text", f"{what}: say `answers: first`, or `answers: each` to make a row of each")
        return self._text(row, key, "empty_output")

    def _text(self, row: Row, key: str, empty: str) -> str:
        cell = self._cell(row, key)
        if type(cell) is not str:
            cell = as_text(cell, f"column {self._columns[key]!r}")
        if cell is None or not cell.strip():
            said = "null" if cell is None else "empty or blank"
            raise BadRow(empty, f"column {self._columns[key]!r} is {said}")
        return cell

    def _optional_text(self, row: Row, key: str) -> str | None:
        cell = row.get(self._columns[key]) if key in self._columns else None
        if cell is None or cell != cell:
            return None
        text = as_text(cell, f"column {self._columns[key]!r}")
        return text if text is not None and text.strip() else None


_FORMS = {
    "alpaca": RowReader.alpaca,
    "dolly": RowReader.dolly,
    "question_answer": RowReader.question_answer,
    "prompt_completion": RowReader.prompt_completion,
    "messages": RowReader.messages,
    "sharegpt": RowReader.sharegpt,
    "text": RowReader.text,
}


def _refuse_untrained(name: str, cell: Any) -> None:
    flag = read_flag(cell, f"column {name!r}")
    if flag is not None and flag is (name.lower() in MASK_FLAGS):
        raise BadRow("not_trained", f"column {name!r} ({cell!r:.40}) says that the row is not to be trained")


def _without_greeting(turns: list[Message]) -> list[Message]:
    """Answers before the first question are kept and not trained: nothing asked for them."""
    asked = next((i for i, m in enumerate(turns) if m.role == "user"), 0)
    if not any(m.role == "assistant" for m in turns[:asked]):
        return turns
    before = [replace(m, train=False) if m.role == "assistant" and m.train is None else m for m in turns[:asked]]
    return before + turns[asked:]


def nearest(column: str, found: Sequence[str]) -> str | None:
    """The name that is most like it, if one is."""
    near = difflib.get_close_matches(column, found, n=1)
    return near[0] if near else None
