"""What the Markdown documents name exists: links, files, modules, options, metrics, recipe keys, variables.

A table says by the head of its first column what it lists: `option`, `metric`, `launch file`, `variable`, `recipe key`,
`source key`, `` `filters` key`` and so on.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep import recipe
from packhaul.command import COMMANDS
from tests.support.markdown import (
    DOCUMENTS,
    FOLDERS,
    NAMES,
    RECIPE_TABLES,
    ROOT,
    Block,
    Row,
    all_code,
    anchors,
    at,
    module_file,
    none,
    read,
    run_config,
    table,
    text_of,
)

EVERY_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)

# Keys that documents show as `key: value` and that are neither options nor keys of a recipe.
OTHER_KEYS = {
    "fsdp_state_dict_type": "accelerate's YAML",
    "fsdp_version": "accelerate's YAML",
    "stage3_gather_16bit_weights_on_model_save": "DeepSpeed's JSON",
    "train": "a flag on a turn",
    "weight": "a flag on a turn",
}


# Links.


@EVERY_DOCUMENT
def test_links_and_anchors_resolve(path: Path) -> None:
    problems = []
    for line in read(path)[0]:
        for target in re.findall(r"\]\(([^)\s]+)\)", line.text):
            if not re.match(r"https?://|mailto:", target) and not _resolves(path, target):
                problems.append(f"{at(path, line.number)}: {target}")
    none(problems)


def _resolves(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    return file.exists() and (not anchor or (file.suffix == ".md" and anchor in anchors(file)))


# Files and modules.


@EVERY_DOCUMENT
def test_files_exist(path: Path) -> None:
    problems = []
    for number, word in _code_words(path):
        if _is_repository_path(word) and not _exists(word.partition("::")[0]):  # a test's name: test_guarantees.py
            problems.append(f"{at(path, number)}: {word}")
    none(problems)


@EVERY_DOCUMENT
def test_modules_exist(path: Path) -> None:
    found = [
        (n, word) for n, word in _code_words(path) if re.fullmatch(r"(data_prep|train|packhaul|tests)(\.\w+)+", word)
    ]
    found = [(n, word) for n, word in found if not _is_repository_path(word)]  # such as train.sbatch
    found = [(n, word) for n, word in found if not word.endswith(".NAME")]  # stands for any
    none(f"{at(path, number)}: {word}" for number, word in found if not module_file(word))


def _code_words(path: Path) -> Iterator[tuple[int, str]]:
    """Words in backticks and in fenced blocks of commands."""
    lines, blocks = read(path)
    for line in lines:
        for span in line.spans():
            yield from ((line.number, word.strip("\"',;:")) for word in span.split())
    for block in blocks:
        for offset, text in enumerate(block.text.split("\n")):
            if block.language in ("bash", "yaml"):
                words = text.partition("#")[0].split()
                yield from ((block.number + offset, word.strip("\"',;:")) for word in words)


def _is_repository_path(word: str) -> bool:
    """Whether a word can only be a path in this repository, and not a placeholder such as configs/train/NAME.yaml."""
    if "/" in word:
        return word.split("/")[0] in FOLDERS and not re.search(r"[$(*]|\b(NAME|X|FILE)\b", word)
    return re.fullmatch(r"[\w.-]+\.(py|sbatch|sh|md)", word) is not None


def _exists(word: str) -> bool:
    if "/" in word:
        return (ROOT / word).exists()
    return (ROOT / word).exists() or any(any(ROOT.glob(f"{folder}/**/{word}")) for folder in FOLDERS)


@pytest.mark.parametrize("package", ["data_prep", "train", "packhaul"])
def test_the_map_is_the_tree(package: str) -> None:
    """The first cells of CONTRIBUTING's table name all that is in the package, and nothing else."""
    named = {name.rstrip("/") for row in table(f"`{package}/`") for name in row.names()}
    none(sorted(name for name in named if not (ROOT / package / name).exists()))
    there = {path.name for path in (ROOT / package).iterdir()} - {"__pycache__", "__init__.py"}
    assert named
    assert there == {name.split("/")[0] for name in named}


# Options, metrics, recipe keys, variables.


@EVERY_DOCUMENT
def test_options_exist(path: Path) -> None:
    known = run_config().known_options()
    found = [(row.number, name) for row in table("option", path) for name in row.names()]
    none(f"{at(path, number)}: {name}" for number, name in found if name not in known)


def test_our_own_options_are_documented_with_their_defaults() -> None:
    options = run_config().own_options()
    documented = {name: row for row in table("option") for name in row.names()}
    assert not sorted(set(options) - set(documented))
    for name, option in options.items():
        assert _same_default(documented[name], option.default), f"{name}: the default is {option.default!r}"


@pytest.mark.parametrize("kind", RECIPE_TABLES)
def test_recipe_keys_are_documented_with_their_defaults(kind: str) -> None:
    """Each key once, with its default, and no other."""
    fields, documented = RECIPE_TABLES[kind].model_fields, {}
    for row in table(kind):
        for name in row.names():
            assert name not in documented, f"{name} is listed twice"
            documented[name] = row
    assert sorted(documented) == sorted(fields)
    for name, field in fields.items():
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        assert _same_default(documented[name], default), f"{kind} {name}: the default is {default!r}"


def _same_default(row: Row, default: Any) -> bool:
    """Whether the second cell shows the default: `required` for one that must be given, nothing for none."""
    shown = row.cells[1].strip("`")
    if shown in ("", "required"):
        return default == "" if shown else default is None
    return yaml.safe_load(shown) == (list(default) if isinstance(default, tuple) else default)


@EVERY_DOCUMENT
def test_keys_with_a_value_exist(path: Path) -> None:
    """`name: value` in backticks names an option of a run or a key of a recipe."""
    known = {*run_config().known_options(), *OTHER_KEYS}
    known |= {name for model in RECIPE_TABLES.values() for name in model.model_fields}
    problems = []
    for line in read(path)[0]:
        for span in line.spans():
            key = re.match(r"([a-z_]\w*): \S", span)
            if key and key[1] not in known:
                problems.append(f"{at(path, line.number)}: {span}")
    none(problems)


@EVERY_DOCUMENT
def test_metrics_exist(path: Path) -> None:
    found = [(row.number, name) for row in table("metric", path) for name in row.names()]
    none(f"{at(path, number)}: {name}" for number, name in found if name not in metric_names())


@cache
def metric_names() -> set[str]:
    """Every key that the code puts into a mapping, with a source's name as SOURCE, and what transformers logs."""
    import importlib.util

    spec = importlib.util.find_spec("transformers")
    assert spec and spec.submodule_search_locations
    library = Path(spec.submodule_search_locations[0]) / "trainer.py"
    parts = ("", "eval", "SOURCE", "_SOURCE", "eval_loss", "eval_SOURCE_loss")
    names = {"epoch"}  # put there by Trainer.log
    for file in (library, *sorted((ROOT / "train").rglob("*.py"))):
        for key in _written_keys(ast.parse(file.read_text(encoding="utf-8"))):
            names |= _expand(key, parts)
    return names


def _written_keys(tree: ast.Module) -> Iterator[ast.expr]:
    """Keys of dictionaries and comprehensions, and of metrics["loss"] = x and metrics["loss"].append(x)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)
        elif isinstance(node, ast.DictComp):
            yield node.key
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield node.slice
        elif isinstance(node, ast.Attribute) and node.attr == "append" and isinstance(node.value, ast.Subscript):
            yield node.value.slice


def _expand(key: ast.expr, parts: tuple[str, ...]) -> set[str]:
    """The names that a key can have: its braces filled with each of the parts."""
    if isinstance(key, ast.Constant):
        return {key.value} if isinstance(key.value, str) else set()
    names = {""}
    for piece in key.values if isinstance(key, ast.JoinedStr) else ():
        filled = (piece.value,) if isinstance(piece, ast.Constant) else parts
        names = {name + text for name in names for text in filled}
    return names


def test_every_command_is_documented_with_its_module() -> None:
    documented = {name: row.cells[1] for row in table("command") for name in row.names()}
    assert documented.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        module = command.module.removesuffix(".__main__")
        assert module.startswith("packhaul.") or f"`{module}`" in documented[name], name


def test_the_page_for_agents_is_short_and_names_every_command() -> None:
    text = text_of("AGENTS.md")
    assert len(text.splitlines()) <= 60
    none(name for name in COMMANDS if not re.search(rf"packhaul {name}\b|`{name}`", text))


@EVERY_DOCUMENT
def test_launch_files_exist(path: Path) -> None:
    there = {file.stem for file in (ROOT / "configs/accelerate").glob("*.yaml")}
    found = [(row.number, name) for row in table("launch file", path) for name in row.names()]
    none(f"{at(path, number)}: {name}" for number, name in found if name not in there)


def test_every_launch_file_is_documented() -> None:
    documented = {name for row in table("launch file") for name in row.names()}
    assert {file.stem for file in (ROOT / "configs/accelerate").glob("*.yaml")} <= documented


def test_the_markers_are_those_of_the_tests() -> None:
    settings = tomllib.loads(text_of("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    declared = {line.partition(":")[0] for line in settings.get("markers", [])}
    assert {name for row in table("marker") for name in row.names()} == declared


def test_every_variable_of_a_site_is_documented_with_its_default() -> None:
    exported = dict(re.findall(r'^export (PACKHAUL_\w+)="\$\{\w+:?-(.*?)\}"', text_of("slurm/env.sh"), re.MULTILINE))
    assert len(exported) > 20
    documented = {name: row.cells[1].strip("`") for row in table("variable") for name in row.names()}
    assert documented == exported


@EVERY_DOCUMENT
def test_variables_exist(path: Path) -> None:
    known = set(re.findall(r"PACKHAUL_\w+", "\n".join(all_code())))
    named = set(re.findall(r"PACKHAUL_\w+", path.read_text(encoding="utf-8")))
    assert not sorted(named - known)


# The configurations that the README shows.


def _configurations() -> list[Block]:
    return [block for block in read(ROOT / "README.md")[1] if block.language == "yaml"]


def test_the_recipe_of_the_readme_loads(tmp_path: Path) -> None:
    found = [block for block in _configurations() if "\nsources:" in block.text]
    assert len(found) == 1
    file = tmp_path / "recipe.yaml"
    file.write_text(found[0].text, encoding="utf-8")
    assert recipe.load_recipe(file).sources


def test_the_run_config_of_the_readme_loads(tmp_path: Path) -> None:
    found = [block for block in _configurations() if "\noutput_dir:" in block.text]
    assert len(found) == 1
    file = tmp_path / "run.yaml"
    file.write_text(found[0].text, encoding="utf-8")
    assert run_config().load_run_config(["--config", str(file)]).sft["output_dir"]
