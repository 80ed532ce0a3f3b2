"""Every message that docs/troubleshooting.md quotes is one that the code can say: its words, with … for what varies."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.markdown import ROOT, at, none, table

DOCUMENT = ROOT / "docs" / "troubleshooting.md"
VARIES = "\0"  # in a text of the code: a placeholder
FEWEST_LETTERS = 13  # of a quoted message: a shorter one would be found anywhere


def test_quoted_messages_are_in_the_code() -> None:
    quoted = [(row.number, message) for row in table("message", DOCUMENT) for message in row.names()]
    assert len(quoted) > 50
    none(f"{at(DOCUMENT, number)}: {message}" for number, message in quoted if not is_said(message))


def test_quoted_messages_are_long_enough_to_be_found() -> None:
    for row in table("message", DOCUMENT):
        assert len(row.names()) == 1, f"{at(DOCUMENT, row.number)}: expected one message"
        letters = re.sub(r"[^a-z]", "", row.names()[0], flags=re.IGNORECASE)
        assert len(letters) >= FEWEST_LETTERS, f"{at(DOCUMENT, row.number)}: {row.names()[0]}"


def test_what_nobody_says_is_found_out() -> None:
    assert is_said("is in use by another job")
    assert not is_said("is in use by another shop")
    assert not is_said("is in use by another job … of the moon")


def is_said(message: str) -> bool:
    """Whether the message's fragments stand in one text of the code, in this order, none across a placeholder."""
    fragments = [re.escape(fragment.strip()) for fragment in message.split("…")]
    return any(re.search(".*".join(fragments), text, re.DOTALL) for text in said_texts())


@cache
def said_texts() -> list[str]:
    """Every text in the code but for docstrings."""
    files = [file for top in ("data_prep", "train", "slurm") for file in sorted((ROOT / top).rglob("*.py"))]
    return [text for file in files for text in _texts(file)]


def _texts(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VARIES for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
