"""What may import what: folders only what stands below them, no circles, and `train` only the contract of `data_prep`.

Imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

CONTRACT = {
    "data_prep.shards",
    "data_prep.strict_files",
    "data_prep.secret_texts",
    "data_prep.lock_holders",
    "data_prep.program_name",
    "data_prep.command_parser",
    "data_prep.provenance",
    "data_prep.packed_rows",
    "data_prep.trainable_template",
}  # all that `train` may import of `data_prep`
BELOW = None  # whatever stands below
# Of each package, from top to bottom: files and folders, and what they may import besides themselves.
DATA_PREP: list[tuple[str, str | None]] = [
    ("prepare inspect_shards diff_shards", BELOW),
    ("recipe_schema", "recipe"),
    ("trainable_template", "rendering tokenization"),
    ("stages", BELOW),
    ("report", "mixture quality shards atomic_files"),
    ("sources", "recipe quality conversation"),
    ("mixture", "recipe quality shards conversation"),
    ("recipe", "quality strict_files secret_texts other_tools_keys"),
    ("rendering", "tokenization conversation shards"),
    ("quality", "conversation"),
    ("tokenization", "shards strict_files"),
    ("packed_rows", "shards"),
    ("compared_documents", "provenance"),
    ("provenance", "conversation atomic_files"),
    ("shards", "atomic_files arrow_columns"),
    (
        "conversation strict_files secret_texts atomic_files arrow_columns other_tools_keys lock_holders program_name "
        "command_parser",
        "",
    ),
]
TRAIN: list[tuple[str, str | None]] = [
    ("sft", BELOW),
    ("preflight launch export generate evaluate add_tokens check_nodes trace report score checkpoint.__main__", BELOW),
    ("memory", "checks loop model checkpoint config run run_report data_prep.shards data_prep.trainable_template"),
    (
        "checks",
        "config model.attention model.sequence_limits run.model_identity data_prep.shards data_prep.strict_files",
    ),
    ("tracing", "loop checkpoint run data_prep.shards data_prep.provenance data_prep.packed_rows"),
    ("loop", "model checkpoint config run run_report serving data_prep.shards"),
    ("run_report", "checkpoint run scoring data_prep.shards data_prep.packed_rows"),
    ("scoring", "run data_prep.packed_rows data_prep.shards"),
    ("model", "config run data_prep.shards"),
    ("serving", "checkpoint config run data_prep.shards data_prep.strict_files"),
    ("node_check", "run data_prep.shards"),
    ("checkpoint", "config run"),
    ("config", "data_prep.strict_files data_prep.secret_texts data_prep.program_name"),
    ("run", "data_prep.shards data_prep.lock_holders data_prep.program_name data_prep.secret_texts"),
]
TABLES = {"data_prep": DATA_PREP, "train": TRAIN}


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name -> file. A folder's own name stands for its __init__.py."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = {package: modules_of(package) for package in TABLES}
ALL = MODULES["data_prep"] | MODULES["train"]
COMMAND = modules_of("packhaul")  # stands above both and may import anything


def imports(name: str) -> Iterator[str]:
    """Our modules that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(ALL[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [module if module in ALL else str(node.module) for module in modules]
        else:
            continue
        yield from (module for module in found if module in ALL)


def layer(name: str) -> str:
    """The file at the top of its package, or the folder, that a module belongs to; a __main__.py is an entry."""
    parts = name.split(".")[1:]
    return ".".join(parts) if parts[-1:] == ["__main__"] else "".join(parts[:1])


def allowed(table: list[tuple[str, str | None]], of: str) -> set[str]:
    """What a layer may import besides itself."""
    (row,) = (number for number, (names, _) in enumerate(table) if of in names.split())
    own = table[row][1]
    if own is not None:
        return set(own.split())
    return {name for names, _ in table[row + 1 :] for name in names.split()} | CONTRACT


def is_allowed(name: str, other: str, package: str) -> bool:
    """Whether the table of its package lets a module import another one."""
    mine = {layer(name), *allowed(TABLES[package], layer(name))}
    inside = other.removeprefix(f"{package}.")  # what belongs to the other package keeps its whole name
    return inside in mine or (inside != other and layer(other) in mine)


@pytest.mark.parametrize("package", TABLES)
def test_a_folder_imports_only_what_its_row_names(package):
    pairs = [(name, other) for name in MODULES[package] for other in imports(name)]
    assert not [f"{name} imports {other}" for name, other in pairs if not is_allowed(name, other, package)]


def test_train_imports_the_contract_alone_and_data_prep_never_imports_train():
    crossing = {(name, other) for name in ALL for other in imports(name) if name.split(".")[0] != other.split(".")[0]}
    assert {name for name, _ in crossing} <= MODULES["train"].keys()
    assert {other for _, other in crossing} == CONTRACT


def test_nothing_imports_the_command():
    assert COMMAND
    pattern = re.compile(r"^\s*(from|import) packhaul\b", re.MULTILINE)
    assert not [name for name, path in ALL.items() if pattern.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("package", TABLES)
def test_no_circle_between_modules_or_folders(package):
    modules = {name: set(imports(name)) & MODULES[package].keys() for name in MODULES[package]}
    folders = defaultdict(set)
    for name, others in modules.items():
        folders[layer(name)] |= {layer(other) for other in others} - {layer(name)}
    TopologicalSorter(modules).prepare()  # a CycleError names the circle
    TopologicalSorter(folders).prepare()


def test_folders_say_what_they_hold_and_do_nothing():
    for package in (*TABLES, "packhaul"):
        for file in (ROOT / package).rglob("__init__.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree) and len(tree.body) == 1, file
