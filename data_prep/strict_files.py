"""YAML and JSON readers that refuse repeated keys; the usual readers silently take the last one."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 18  # of a file; a configuration has a few thousand, and a data set given by mistake would take hours
_MAX_DIGITS = 100  # of a number; YAML reads 1:1:1 too, to the base of 60, in time that grows with the square
_MAX_DEPTH = 100  # of a YAML file; the interpreter's own limit is another in a process that has compiled a model
_MAX_VALUES = 100_000  # in a YAML file once its aliases are followed: a few lines of them can stand for billions

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_QUOTED, _AFTER_KEY = re.compile('"'), re.compile(r"\s*:\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            line = self.peek_event().start_mark.line + 1
            raise ValueError(f"nested too deeply: more than {_MAX_DEPTH} levels on line {line}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if node.tag in _NUMBERS and len(value) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(value)} characters on line {node.start_mark.line + 1}")
        if _SURROGATE.search(value):
            raise ValueError(
                f"half a character (a lone surrogate, \\uD800 to \\uDFFF) on line {node.start_mark.line + 1}"
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key, _ in pairs:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"key {key.value[:60]!r} is given twice, on lines {seen[key.value]} and {line}: keep one"
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file that holds one mapping.

    Returns:
        The mapping, and the line (from 1) of each of its keys.

    Raises:
        ValueError: no such file, not YAML, not a mapping, a key that is not text, a key twice, or far larger than a
            configuration; names the file.
    """
    text = _read(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _count(node, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {_MAX_VALUES} values, or for themselves: write them out")
        mapping = loader.construct_document(node) if node is not None else {}
    except Exception as error:  # a value that contradicts its tag raises any of a dozen types
        raise ValueError(f"{path}: not usable as YAML: {_what(error)}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a mapping of options, found {type(mapping).__name__}")
    for key in mapping:
        if not isinstance(key, str):
            raise ValueError(f"{path}: expected option names, found {key!r:.60}: YAML reads it as {type(key).__name__}")
    pairs = node.value if node else []
    return mapping, {key.value: key.start_mark.line + 1 for key, _ in pairs}


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds one mapping.

    Raises:
        ValueError: no such file, not JSON, not a mapping, or a key twice; names the file.
    """
    try:
        mapping = json.loads(_read(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not usable as JSON: {_what(error)}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(mapping).__name__}")
    return mapping


def replace_member(text: str, key: str, value: Any) -> str:
    """The text of a JSON object with another value of one of its keys; every other character stays as it is.

    A key that is not there is not added.
    """
    decoder, end = json.JSONDecoder(), text.index("{") + 1
    while (found := _QUOTED.search(text, end)) is not None:
        name, end = decoder.raw_decode(text, found.start())
        start = _AFTER_KEY.match(text, end).end()  # type: ignore[union-attr]  # JSON has it there
        _, end = decoder.raw_decode(text, start)
        if name == key:
            return text[:start] + json.dumps(value, ensure_ascii=False) + text[end:]
    return text


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values a node holds once its aliases are followed."""
    if id(node) not in counted:
        counted[id(node)] = _MAX_VALUES + 1  # found again below itself: there is no end to it
        children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        is_scalar = isinstance(node, yaml.ScalarNode)
        counted[id(node)] = 1 if is_scalar else 1 + sum(_count(child, counted) for child in children)
    return counted[id(node)]


def _what(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)[:500] if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__}: {error}"


def _read(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)  # of what may have no end, such as /dev/zero
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"{path}: expected a configuration, found more than {_MAX_BYTES} bytes: is it the data?")
        return raw.decode()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; paths are relative to the current folder, {Path.cwd()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as text: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"key {key!r} is given twice: keep one")
        mapping[key] = value
    return mapping
