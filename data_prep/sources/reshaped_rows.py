"""Rows that are made of a raw row before its form is looked at: from a field, by a function, one for each answer.

A raw row may become several rows. Each keeps the raw row's number and place; all but the first add multiples of SIBLING
to the number, so that each row still has a number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data_prep.conversation import SIBLING, BadRow
from data_prep.quality.filters import function_identity, resolve_function
from data_prep.recipe import ANSWER_COLUMNS, Source
from data_prep.sources.cells import kind, names
from data_prep.sources.column_meanings import changes_meaning, is_filled, remedy
from data_prep.sources.json_objects import inner_array
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.tool_calls import read_json

Row = dict[str, Any]
Reshape = Callable[[Row], "list[Row | BadRow]"]


def reshaped(source: Source, rows: Iterator[RawRow], *, is_inner: bool) -> Iterator[RawRow]:
    """The rows that the recipe makes of a source's raw rows; the same rows where it asks for nothing.

    Args:
        is_inner: the rows are those in the `field` already.

    Raises:
        ValueError: the `transform` cannot be imported.
    """
    steps = list(_steps(source, is_inner))
    return _apply(rows, steps) if steps else rows


def array_in_field(source: Source, file: BinaryIO) -> int | None:
    """Where the rows start in a file that is one object with its rows in the source's `field`; None in other files.

    Raises:
        ValueError: the object has no such key, or one before it that changes what the rows mean.
    """
    start, before = inner_array(file, source.field or "")
    for name in before if start is not None else ():
        if changes_meaning(name, source.form) and name not in source.ignore:
            raise ValueError(
                f"the key {name!r}, next to `field: {source.field}`, is not read: put it into each row, "
                f"or leave it out on purpose: `ignore: [{name}]`"
            )
    return start


def transform_identity(source: Source) -> dict[str, str]:
    """The hash of the file that holds the `transform`: rows made by other code must not be reused."""
    return {} if source.transform is None else function_identity(_function(source.transform))


def _steps(source: Source, is_inner: bool) -> Iterator[Reshape]:
    if source.field is not None and not is_inner:
        yield lambda row: _in_field(source, row)
    if source.transform is not None:
        name, function = source.transform, _function(source.transform)
        yield lambda row: _transformed(name, function, row)
    if source.answers == "each":
        yield lambda row: _each_answer(source, row)


def _apply(rows: Iterator[RawRow], steps: list[Reshape]) -> Iterator[RawRow]:
    for raw in rows:
        made: list[Row | BadRow] = [raw.value]
        for step in steps:
            made = [new for old in made for new in ([old] if isinstance(old, BadRow) else step(old))]
        for number, value in enumerate(made):
            yield RawRow(raw.number + number * SIBLING, raw.where, value)


def _in_field(source: Source, row: Row) -> list[Row | BadRow]:
    """The row, or the rows, in one of the row's columns. What lies next to it must not belong to the prompt."""
    field = source.field or ""
    if field not in row:
        return [BadRow("missing_column", f"expected `field: {field}`; found columns {names(row)}")]
    for name, cell in row.items():
        if name != field and changes_meaning(name, source.form) and name not in source.ignore and is_filled(cell):
            what = f"column {name!r}, next to `field: {field}`, holds {kind(cell)} and is not read"
            return [BadRow("unread_column", f"{what}: {remedy(name, source.form)}")]
    cell = row[field]
    if isinstance(cell, str):  # of a table
        try:
            cell = read_json(cell, "not_an_object", f"`field: {field}`")
        except BadRow as bad:
            return [bad]
    inner = cell if isinstance(cell, list) else [cell]
    return [_as_row(value, f"`field: {field}`", "not_an_object") for value in inner]


def _as_row(value: Any, where: str, reason: str) -> Row | BadRow:
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    return BadRow(reason, f"{where}: expected an object with named columns, found {kind(value)}")


def _function(name: str) -> Callable[..., Any]:
    return resolve_function(name, "transform: function")


def _transformed(name: str, function: Callable[..., Any], row: Row) -> list[Row | BadRow]:
    try:
        result = function(row)
    except Exception as error:
        return [BadRow("transform_error", f"{name} raised {type(error).__name__}: {error!s:.500}")]
    if result is None or result == []:
        return [BadRow("left_out", f"{name} made no row of it")]
    made = result if isinstance(result, list) else [result]
    return [_as_row(value, name, "transform_error") for value in made]


def _each_answer(source: Source, row: Row) -> list[Row | BadRow]:
    """A row for each of the answers, if they are several texts and not messages."""
    column = source.column(ANSWER_COLUMNS[source.form])
    cell = row.get(column)
    if not isinstance(cell, list) or any(isinstance(item, dict) for item in cell) or len(cell) < 2:
        return [row]
    return [{**row, column: answer} for answer in cell]
