"""Messages and help name a command as users type it: `packhaul NAME`, not its module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from packhaul.command import COMMANDS
from tests.conftest import ROOT

MODULES = {command.module.removesuffix(".__main__") for command in COMMANDS.values()} - {"packhaul.training"}
NAMED = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(MODULES)))})(?![\w.]*\w)")
ENTRIES = {ROOT / f"{command.module.replace('.', '/')}.py" for command in COMMANDS.values()}
CODE = [file for top in ("data_prep", "train", "packhaul") for file in sorted((ROOT / top).rglob("*.py"))]


def docstrings(module: ast.Module, is_entry: bool) -> Iterator[ast.AST]:
    """Those that only developers read: --help shows the module's docstring of an entry."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module) and is_entry:
            continue
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and isinstance(node.body[0], ast.Expr):
            yield node.body[0].value


def problems(code: str, is_entry: bool = False) -> list[str]:
    """Line and text of each string that names a command's module, other than that name alone."""
    module = ast.parse(code)
    passed_over = set(docstrings(module, is_entry))
    texts = [node for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [
        f"{text.lineno}: {text.value}"
        for text in texts
        if text not in passed_over and " " in text.value and NAMED.search(text.value)
    ]


def test_texts_name_commands_as_they_are_typed() -> None:
    found = {str(file.relative_to(ROOT)): problems(file.read_text(encoding="utf-8"), file in ENTRIES) for file in CODE}
    assert {file: texts for file, texts in found.items() if texts} == {}


def test_the_rule_finds_modules_in_texts_alone() -> None:
    function = 'def f(x):\n    """As train.score."""\n    return g("train.export") + f"run train.export {x}"'
    code = f'"""Runs train.export."""\n{function}'
    assert [line[:2] for line in problems(code)] == ["4:"]
    assert [line[:2] for line in problems(code, is_entry=True)] == ["1:", "4:"]
    assert problems('x = "see train.checkpoint.saving of it"') == []
