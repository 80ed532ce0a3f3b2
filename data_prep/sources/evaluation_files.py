"""The evaluation files of a recipe's `decontaminate`: their texts, the index made of them, and what identifies them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.conversation import BadRow, nested_strings
from data_prep.quality.decontamination import Decontaminate, EvaluationIndex
from data_prep.recipe import Source
from data_prep.sources.input_files import source_files
from data_prep.sources.slices import read_slice, slice_source, source_identity

_LINES = frozenset({".txt", ".text"})  # one text per line
_ROWS_PER_SLICE = 10_000


@lru_cache(maxsize=2)
def evaluation_index(options: Decontaminate) -> EvaluationIndex:
    """The index of these options' files, built once per process."""
    return EvaluationIndex(options, evaluation_texts(options))


def evaluation_identity(options: Decontaminate) -> list[dict[str, Any]]:
    """What the evaluation files are, JSON-able: rows checked against other files must not be reused."""
    return source_identity(_source(list(options.files)))


def evaluation_texts(options: Decontaminate) -> dict[str, str]:
    """Each different text of the evaluation rows, and where it is found first, such as "gsm8k.jsonl:17".

    Raises:
        ValueError: a file or a column that is not there, or a row that cannot be read.
    """
    places: dict[str, str] = {}
    seen: set[str] = set()
    for where, row in _evaluation_rows(options):
        if isinstance(row, BadRow):
            raise ValueError(f"decontaminate: {where}: {row}: an evaluation file has to be read in full; repair it")
        if isinstance(row, dict) and options.columns is not None:
            seen |= row.keys()
            row = [row.get(column) for column in options.columns]
        for text in nested_strings(row, keys=False):
            places.setdefault(text, where)
    missing = sorted(set(options.columns or ()) - seen)
    if missing and seen:
        raise ValueError(f"decontaminate: no row of {list(options.files)} has a column {missing}; found {sorted(seen)}")
    return places


def _source(paths: list[str]) -> Source:
    return Source(name="evaluation", path=paths, form="messages")  # the form is that of conversations: not used here


def _evaluation_rows(options: Decontaminate) -> Iterator[tuple[str, Any]]:
    """(where, row) of all rows and lines."""
    try:
        files = source_files(_source(list(options.files)))
        texts = [f for f in files if isinstance(f, Path) and f.suffix.lower() in _LINES]
        for path in texts:
            yield from _lines(path)
        others = [str(f) for f in files if f not in texts]
        if others:
            source = _source(others)
            for slice_ in slice_source(source, _ROWS_PER_SLICE):
                yield from ((row.where, row.value) for row in read_slice(source, slice_))
    except ValueError as error:
        raise ValueError(f"decontaminate: {error}") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    yield from ((f"{path}:{number}", line) for number, line in enumerate(lines, 1))
