"""The options of trl and transformers, read from their installed source without importing them.

Names, types, defaults and help are those of the installed version. Importing the libraries takes seconds; `--help` and
the message about a misspelt option need not wait for that.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In the order of inheritance: a later declaration of an option replaces the default and help of an earlier one.
_SFT_CLASSES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)
_MODEL_CLASSES = (("trl", "trainer/model_config.py", "ModelConfig"),)
_PLAIN = frozenset({"int", "float", "bool", "str", "list", "dict"})
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option as its class declares it."""

    name: str
    declared_in: str  # the class that introduces it
    kinds: frozenset[str]  # what a value may be: some of int, float, bool, str, list, dict, none
    choices: tuple[str, ...] = ()  # the texts allowed; empty: any
    default: Any = None  # `Computed` where the source computes it
    help: str = ""

    @property
    def type_text(self) -> str:
        """The type as `--help` shows it, such as "float" or "steps|epoch"."""
        if self.choices:
            return "|".join(self.choices) if len(self.choices) <= 5 else "str"
        return "|".join(sorted(self.kinds - {"none"})) or "object"


@dataclass(frozen=True)
class Computed:
    """A default that is not a literal in the source."""

    source: str

    def __repr__(self) -> str:
        return f"computed: {self.source}"


@functools.cache
def sft_options() -> dict[str, Option]:
    """Every option of trl's SFTConfig, transformers' TrainingArguments included."""
    return _merge(_SFT_CLASSES)


@functools.cache
def model_options() -> dict[str, Option]:
    """Every option of trl's ModelConfig."""
    return _merge(_MODEL_CLASSES)


def _merge(classes: tuple[tuple[str, str, str], ...]) -> dict[str, Option]:
    merged: dict[str, Option] = {}
    for package, relative, name in classes:
        file = package_folder(package) / relative
        for option in _declared(file, name):
            first = merged.get(option.name, option).declared_in
            merged[option.name] = Option(**{**option.__dict__, "declared_in": first})
    return merged


def package_folder(package: str) -> Path:
    """Where a package is installed, found without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package} is not installed in this environment: install the project's requirements")
    return Path(spec.submodule_search_locations[0])


def installed_version(package: str) -> tuple[int, ...]:
    """Major and minor version, found without importing the package."""
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


@functools.cache
def parse_source(file: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def _declared(file: Path, class_name: str) -> Iterator[Option]:
    for statement in _class(file, class_name).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield _option(file, class_name, statement.target.id, statement.annotation, statement.value)


def _class(file: Path, name: str) -> ast.ClassDef:
    for statement in parse_source(file).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return statement
    raise ValueError(f"{file}: expected class {name}, found none: this version of the library is not supported")


def _option(file: Path, class_name: str, name: str, annotation: ast.expr, value: ast.expr | None) -> Option:
    kinds, choices = _kinds(annotation, file)
    settings = {k.arg: k.value for k in value.keywords} if isinstance(value, ast.Call) else {"default": value}
    metadata = settings.get("metadata")
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    notes = {_literal(key): _literal(text) for key, text in pairs if key is not None}
    listed = notes.get("choices", ())
    return Option(
        name=name,
        declared_in=class_name,
        kinds=kinds,
        choices=tuple(listed) if isinstance(listed, list) else choices,
        default=[] if "default_factory" in settings else _literal(settings.get("default")),
        help=" ".join(str(notes.get("help", "")).replace("%%", "%").split()),
    )


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Computed(ast.unparse(node))


def _kinds(node: ast.expr, file: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """What an annotation allows, and the texts that an enumeration in it allows."""
    if isinstance(node, ast.BinOp):
        (left, some), (right, more) = _kinds(node.left, file), _kinds(node.right, file)
        return left | right, some + more
    if isinstance(node, ast.Constant):
        return frozenset({"none"} if node.value is None else {type(node.value).__name__}), ()
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        return _kinds(node.slice if outer == "Literal" else node.value, file)
    name = ast.unparse(node)
    return (frozenset({name}), ()) if name in _PLAIN else _enumeration(name, file)


def _enumeration(name: str, file: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    for source in _sources_of(name, file):
        for statement in parse_source(source).body:
            if isinstance(statement, ast.ClassDef) and statement.name == name:
                values = [_literal(s.value) for s in statement.body if isinstance(s, ast.Assign)]
                return frozenset({"str"}) if values else frozenset(), tuple(map(str, values))
    return frozenset(), ()  # an object that neither YAML nor a flag can hold


def _sources_of(name: str, file: Path) -> Iterator[Path]:
    """The file itself and its sibling that it imports the name from."""
    yield file
    for statement in parse_source(file).body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module:
            source = file.parent / f"{statement.module.replace('.', '/')}.py"
            if name in [alias.name for alias in statement.names] and source.exists():
                yield source


def convert(option: Option, value: Any) -> Any:
    """A YAML value as the option's class takes it; "1e-5", which YAML takes for text, becomes a number.

    Raises:
        ValueError: not of the option's type, or none of its choices.
    """
    if isinstance(value, str):
        return parse(option, value)
    if value is False and (off := [choice for choice in option.choices if choice.lower() == "no"]):
        return off[0]  # YAML reads a bare `no` as false
    kind = "none" if value is None else type(value).__name__
    allowed = option.kinds | ({"int"} if "float" in option.kinds else set())
    if kind not in allowed:
        raise ValueError(_expectation(option, value))
    if kind == "float" and not math.isfinite(value):
        raise ValueError(_expectation(option, value))
    if kind == "list" and not all(isinstance(item, str) for item in value):
        raise ValueError(f"expected a list of texts, found {value!r}: put quotes around the others")
    return value


def parse(option: Option, text: str) -> Any:
    """The text of a flag, or a text in YAML, as the option's class takes it.

    Raises:
        ValueError: it does not spell a value of the option's type, or is none of its choices.
    """
    kinds, word = option.kinds, text.strip().lower()
    if "none" in kinds and word in ("null", "none") and option.default != word:
        return None
    if "bool" in kinds and word in _WORDS and word not in option.choices:
        return _WORDS[word]
    if kinds & {"int", "float"} and _spells(int, word):
        return int(word)
    if "float" in kinds and _spells(float, word):
        return float(word)
    if ("dict" in kinds and word.startswith("{")) or ("list" in kinds and word.startswith("[")):
        return convert(option, _json(text))
    if "list" in kinds and re.fullmatch(r"[\w.-]+(,\s*[\w.-]+)+", text):
        raise ValueError(f"expected a list, found the text {text!r}: write [a, b] in the file, or --{option.name} a b")
    if "str" in kinds and (not option.choices or text in option.choices):
        return text
    if "list" in kinds and "str" not in kinds:
        return [text]
    raise ValueError(_expectation(option, text))


def _spells(number: type, word: str) -> bool:
    try:
        return math.isfinite(number(word))
    except ValueError:
        return False


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, found {text!r} ({error})") from None


def _expectation(option: Option, value: Any) -> str:
    found = "nothing" if value is None else repr(value)
    hint = ": put quotes around it" if "str" in option.kinds and isinstance(value, (int, float)) else ""
    wanted = f"one of {', '.join(option.choices)}" if option.choices else option.type_text.replace("bool", "true|false")
    return f"expected {wanted}, found {found}{hint}"
