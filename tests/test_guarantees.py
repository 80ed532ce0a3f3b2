"""docs/guarantees.md names a test for each promise, and each of them exists."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "guarantees.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| promise |" not in line]
NAMED = [(row, name) for row in ROWS for name in re.findall(r"`(tests/[^`]+)`", row)]


def test_each_promise_has_a_test():
    assert len(ROWS) > 30
    assert [row for row in ROWS if not re.search(r"\| `tests/[^`]+`", row)] == []


@pytest.mark.parametrize("name", sorted({name for _, name in NAMED}))
def test_it_exists(name):
    """The file, and in it the class and the function that pytest would collect."""
    path, *inside = name.split("::")
    found = ast.parse((ROOT / path).read_text())
    for part in inside:
        members = [node for node in found.body if getattr(node, "name", None) == part]
        assert len(members) == 1, f"{path} has no {part}"
        [found] = members
        assert not any(
            "skip" in ast.unparse(mark) for mark in found.decorator_list if "skipif" not in ast.unparse(mark)
        )
