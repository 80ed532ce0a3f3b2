"""The form of the code: a line does one thing, modules are short and begin with what they are."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, SLOW

MOST_LINES = 320
LONGEST_FIRST_LINE = 120
CODE = [file for top in ("data_prep", "train", "packhaul", "slurm") for file in sorted((ROOT / top).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def judged(file: Path) -> list[ast.AST]:
    """The nodes that a rule is about."""
    return [node for node in ast.walk(tree(file)) if isinstance(node, (ast.Expr, ast.BinOp, ast.IfExp))]


def found(files: list[Path], is_bad: Callable[[ast.AST], bool]) -> list[str]:
    """file:line of all that is bad."""
    nodes = [(file, node) for file in files for node in judged(file)]
    return [f"{file.relative_to(ROOT)}:{node.lineno}" for file, node in nodes if is_bad(node)]


def does_nothing_with_its_value(node: ast.AST) -> bool:
    """`f() if c else g()`, `c and f()`, `[f(x) for x in xs]` or `f(), g()`, alone in a line."""
    kinds = (ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.List, ast.Tuple)
    return isinstance(node, ast.Expr) and isinstance(node.value, kinds)


def is_truth(node: ast.expr) -> bool:
    """A comparison or another expression of True and False."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "bool"
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def is_sequence(node: ast.expr) -> bool:
    """A list, a tuple or a text, as written."""
    text = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    return text or isinstance(node, (ast.List, ast.Tuple, ast.JoinedStr, ast.ListComp))


def repeats_by_truth(node: ast.AST) -> bool:
    """`["x"] * (a == b)`."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    pairs = ((node.left, node.right), (node.right, node.left))
    return any(is_sequence(sequence) and is_truth(truth) for sequence, truth in pairs)


def is_nested_condition(node: ast.AST) -> bool:
    """`a if x else b if y else c`."""
    return isinstance(node, ast.IfExp) and any(
        isinstance(part, ast.IfExp) for part in (node.test, node.body, node.orelse)
    )


RULES = (does_nothing_with_its_value, repeats_by_truth, is_nested_condition)


@pytest.mark.parametrize("is_bad", RULES, ids=lambda rule: rule.__name__)
def test_a_line_does_one_thing(is_bad):
    assert found(CODE + TESTS, is_bad) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("f() if c else g()", does_nothing_with_its_value),
        ("c and f()", does_nothing_with_its_value),
        ("[f(x) for x in xs]", does_nothing_with_its_value),
        ("f(), g()", does_nothing_with_its_value),
        ("marks = ['x'] * (a == b)", repeats_by_truth),
        ("marks = (not a) * 'x'", repeats_by_truth),
        ("marks = [f'{a}'] * bool(a)", repeats_by_truth),
        ("x = a if b else c if d else e", is_nested_condition),
        ("x = (a if b else c) if d else e", is_nested_condition),
    ],
)
def test_each_rule_finds_what_it_is_about(source, rule):
    nodes = list(ast.walk(ast.parse(source)))
    assert [other for other in RULES if any(map(other, nodes))] == [rule]


def test_what_is_meant_passes():
    source = (
        "x = f() if c else g()\nf()\n...\n'text'\nrow = [0] * n\ncounted = lengths * (lengths > 1)\nyield_ = [a, b]"
    )
    assert not any(rule(node) for rule in RULES for node in ast.walk(ast.parse(source)))


def test_modules_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in CODE + TESTS}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def first_line_problems(file: Path) -> Iterator[str]:
    docstring = ast.get_docstring(tree(file))
    if not docstring:
        yield f"{file.relative_to(ROOT)}:1: no docstring"
        return
    line = docstring.split("\n")[0]
    if len(line) > LONGEST_FIRST_LINE or not line.endswith((".", ":")):
        yield f"{file.relative_to(ROOT)}:1: expected one line that ends with a period or colon, found {line!r}"


def test_each_module_begins_with_a_line_that_says_what_it_is():
    assert [problem for file in CODE + TESTS for problem in first_line_problems(file)] == []


def of_test_files(module: ast.Module) -> list[str]:
    """The files of tests that a module imports: their tests would run in it as well, and neither could be moved."""
    imports = [node for node in ast.walk(module) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [f"{getattr(node, 'module', None) or ''}.{alias.name}" for node in imports for alias in node.names]
    return [name for name in names if any(part.startswith("test_") for part in name.split("."))]


def test_files_of_tests_import_what_they_share_from_support():
    found = {str(file.relative_to(ROOT)): of_test_files(tree(file)) for file in TESTS}
    assert {name: files for name, files in found.items() if files} == {}


def test_imports_of_test_files_are_found():
    source = "from tests.a.test_b import c\nfrom tests.support import e\nfrom tests import test_f\nimport tests.test_g"
    assert of_test_files(ast.parse(source)) == ["tests.a.test_b.c", "tests.test_f", ".tests.test_g"]


def test_slow_files_are_there():
    assert [name for name in SLOW if not (ROOT / "tests" / f"{name}.py").is_file()] == []
