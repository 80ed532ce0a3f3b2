"""YAML and JSON readers that refuse a key given twice; the usual readers silently take the last one."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"key {key.value!r} is given twice, on lines {seen[key.value]} and {line}: keep one"
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file that holds one mapping.

    Returns:
        The mapping, and the line (from 1) of each of its keys.

    Raises:
        ValueError: no such file, not YAML, not a mapping, a key that is not text, or a key twice; names the file.
    """
    loader = _Loader(_read(path))
    try:
        node = loader.get_single_node()
        mapping = loader.construct_document(node) if node is not None else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not usable as YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a mapping of options, found {type(mapping).__name__}")
    for key in mapping:
        if not isinstance(key, str):
            raise ValueError(f"{path}: expected option names, found {key!r}: YAML reads it as {type(key).__name__}")
    return mapping, {key.value: key.start_mark.line + 1 for key, _ in (node.value if node else [])}


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds one mapping.

    Raises:
        ValueError: no such file, not JSON, not a mapping, or a key twice; names the file.
    """
    try:
        mapping = json.loads(_read(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not usable as JSON: {error}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(mapping).__name__}")
    return mapping


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
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
