"""Which form a source has, and what is refused before anything is prepared, judged by its first rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.conversation import BadRow
from data_prep.recipe import FORM_COLUMNS, OPTIONAL_COLUMNS, Source
from data_prep.sources.cells import names
from data_prep.sources.column_meanings import is_filled, is_media
from data_prep.sources.json_objects import array_keys
from data_prep.sources.row_forms import RowReader, nearest
from data_prep.sources.slices import RawRow

# Other usual names of columns, by which form `auto` recognises a form; tried in this order.
_AUTO: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("messages", {"messages": ("messages",)}),
    ("sharegpt", {"conversations": ("conversations", "conversation")}),
    ("alpaca", {"instruction": ("instruction",), "output": ("output",)}),
    ("dolly", {"instruction": ("instruction",), "response": ("response",)}),
    ("prompt_completion", {"prompt": ("prompt",), "completion": ("completion", "response")}),
    (
        "question_answer",
        {
            "question": ("question", "Question", "Q", "query", "Query", "질문"),
            "answer": ("answer", "Answer", "A", "response", "Response", "답변", "대답"),
        },
    ),
)
# Columns that `auto` takes as well where a row has them, by the form's name for them.
_AUTO_OPTIONAL = {
    "tools": ("tools", "functions"),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
}


def resolve_form(source: Source, rows: Sequence[RawRow]) -> Source:
    """The source with its form, recognised by the columns of its first rows where the recipe says `auto`.

    Raises:
        ValueError: no row is a JSON object, or no form fits the columns found.
    """
    if source.form != "auto" or not rows:
        return source
    _refuse_unreadable(source, rows)
    there = _columns(rows)
    # A column that holds nothing says nothing of the form, unless nothing else does.
    for found in (_filled_columns(rows), there):
        if resolved := _recognised(source, found):
            return resolved
    raise ValueError(
        f"source {source.name!r}, from {rows[0].where} on: form auto fits none of the columns found: {names(there)}. "
        f"{_suggestion(there, rows)}"
    )


def check_columns(source: Source, rows: Sequence[RawRow]) -> None:
    """Refuse a form or a column mapping that does not belong to this data, judged by its first rows.

    Raises:
        ValueError: no row is a JSON object, no row has one of the columns that the form requires, or an optional column
            is mapped to a name that no row has while some row has a similar one.
    """
    if not rows:
        return
    _refuse_unreadable(source, rows)
    found = _columns(rows)
    required = _required(source.form)
    for key in [*required, *source.columns]:
        column = source.column(key)
        if column not in found and (key in required or nearest(column, found)):
            raise ValueError(_explain_missing(source, key, found, rows))
        if column not in found:
            print(
                f"source {source.name}: none of its first {len(rows)} rows has column {column!r}, given for {key}; if "
                "none at all has it, the plan will be refused"
            )


def unread_names(source: Source, rows: Sequence[RawRow]) -> list[str]:
    """What holds something in some of the first rows and is not read: columns, and keys of messages and calls.

    Raises:
        ValueError: a column changes what the row means, and the recipe neither reads nor ignores it. One of images and
            the like, which nothing can read, costs its rows only, as long as there are others.
    """
    reader = RowReader(source)
    refused: list[tuple[RawRow, BadRow]] = []
    for row in rows:
        try:
            reader.conversation(row)
        except BadRow as bad:
            if bad.reason == "unread_column" or (bad.reason == "fractional_weight" and "column" in bad.detail):
                refused.append((row, bad))
    readable = sum(isinstance(row.value, dict) for row in rows)
    for row, why in refused:
        if len(refused) == readable or not _holds_media(source, row):
            raise ValueError(f"source {source.name!r}: {row.where}: {why.detail}")
    return list(reader.unread)


def _holds_media(source: Source, row: RawRow) -> bool:
    cells = row.value.items() if isinstance(row.value, dict) else ()
    return any(is_media(name) and is_filled(cell) for name, cell in cells if name not in source.ignore)


def _columns(rows: Sequence[RawRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))


def _filled_columns(rows: Sequence[RawRow]) -> list[str]:
    cells = [item for row in rows if isinstance(row.value, dict) for item in row.value.items()]
    return list(dict.fromkeys(name for name, cell in cells if is_filled(cell)))


def _recognised(source: Source, found: list[str]) -> Source | None:
    found = [name for name in found if name not in source.ignore]
    for form, wanted in _AUTO:
        columns = {key: next((c for c in usual if c in found), None) for key, usual in wanted.items()}
        if None in columns.values():
            continue
        for key in FORM_COLUMNS[form].keys() & _AUTO_OPTIONAL.keys():
            columns[key] = next((c for c in _AUTO_OPTIONAL[key] if c in found), None)
        mapped = {key: c for key, c in sorted(columns.items()) if c and c != FORM_COLUMNS[form][key]}
        return source.model_copy(update={"form": form, "columns": mapped})
    return None


def _suggestion(found: list[str], rows: Sequence[RawRow]) -> str:
    """What to write into the recipe."""
    cells = [item for row in rows if isinstance(row.value, dict) for item in row.value.items()]
    nested = next((name for name, cell in cells if _is_nested_row(cell)), None)
    if nested:
        return f"If the rows lie in {nested!r}, say `field: {nested}`"
    if found == ["text"]:
        return "To train plain text as a whole, say `form: text`"
    if {"chosen", "rejected"} <= set(found):
        return (
            "These are answers to compare (DPO), and training takes one: say `form: messages`, `columns: {messages: "
            "chosen}` where it holds the whole conversation, or `form: prompt_completion`, `columns: {completion: "
            "chosen}`"
        )
    for name, cell in cells:
        if _is_list_of_objects(cell):
            return (
                f"{name!r} holds a list of objects: if these are the rows, say `field: {name}`; if they are the turns "
                f"of a conversation, say `form: messages`, `columns: {{messages: {name}}}`"
            )
        if inner := inner_list(cell):
            return (
                f"{name!r} holds a list of objects in {inner!r}: take it out with a `transform`, which returns "
                f'{{"messages": row["{name}"]["{inner}"]}} where they are the turns of a conversation'
            )
    forms = ", ".join(form for form in FORM_COLUMNS if form != "auto")
    return f"Say which `form` it is ({forms}) and map its `columns`, or bring the rows into a form with a `transform`"


def _is_list_of_objects(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(item, dict) for item in cell)


def inner_list(cell: Any) -> str | None:
    """The key of an object that holds a list of objects; None if there is none."""
    items = cell.items() if isinstance(cell, dict) else ()
    return next((key for key, value in items if _is_list_of_objects(value)), None)


def _is_nested_row(cell: Any) -> bool:
    """Whether a cell holds a row with the columns of some form, or a list of them."""
    item = cell[0] if isinstance(cell, list) and cell else cell
    if not isinstance(item, dict):
        return False
    forms = [list(wanted.values()) for _, wanted in _AUTO]
    return any(all(any(name in item for name in usual) for usual in wanted) for wanted in forms)


def _refuse_unreadable(source: Source, rows: Sequence[RawRow]) -> None:
    if any(isinstance(row.value, dict) for row in rows):
        return
    raise ValueError(
        f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, is a JSON object; "
        f"{rows[0].value}\n  {_one_object_hint(rows[0])}expected one array of objects (JSON), or one object per line "
        "(JSONL); for a table, name the file .csv or .tsv, or state `format: csv` or `format: tsv`"
    )


def _one_object_hint(row: RawRow) -> str:
    """What to write where the file is an object over several lines, with the rows below one of its keys."""
    path = Path(row.where.rpartition(":")[0])
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        keys = array_keys(file)
    wanted = " or ".join(f"`field: {key}`" for key in keys)
    return f"the file is one object over several lines: if its rows lie in it, say {wanted}\n  " if keys else ""


def _explain_missing(source: Source, key: str, found: list[str], rows: Sequence[RawRow]) -> str:
    column = source.column(key)
    near = nearest(column, found)
    expected = [source.column(k) for k in _required(source.form)]
    fitting = [form for form in FORM_COLUMNS if form != "auto" and set(_required(form)) <= set(found)]
    return (
        f"source {source.name!r}: none of its first {len(rows)} rows, from {rows[0].where} on, has column {column!r}\n"
        f"  form {source.form} expects columns {expected}; found columns {names(found)}"
        f"{f'; nearest: {near!r}' if near else ''}\n"
        f"  map it with `columns: {{{key}: {near or 'YOUR_COLUMN'}}}`, or choose another form; forms that fit these "
        f"columns as they are: {', '.join(fitting) or 'none'}"
    )


def _required(form: str) -> list[str]:
    return [key for key in FORM_COLUMNS[form] if key not in OPTIONAL_COLUMNS]
