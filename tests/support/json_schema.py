"""A small checker of JSON values against the parts of JSON Schema that our schemas use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_NOTES = {"$schema", "$comment", "$defs", "title", "description", "default"}
_CHECKED = {"type", "enum", "const", "anyOf", "not", "$ref", "properties", "additionalProperties", "propertyNames"}
_CHECKED |= {"required", "items", "minItems", "minLength", "maxLength", "pattern"}
_BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}


def problems(value: Any, schema: Any, root: dict[str, Any], where: str = "") -> Iterator[str]:
    """What is wrong with a value; a keyword that this does not know is an AssertionError."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{where}: not allowed"
        return
    assert schema.keys() <= _NOTES | _CHECKED | _BOUNDS.keys(), schema.keys()
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        yield from problems(value, root["$defs"][name], root, where)
    if "anyOf" in schema and all([*problems(value, form, root, where)] for form in schema["anyOf"]):
        yield f"{where}: {value!r} is none of {schema['anyOf']}"
    if "not" in schema and not [*problems(value, schema["not"], root, where)]:
        yield f"{where}: not allowed"
    if "type" in schema and not _is_a(value, schema["type"]):
        yield f"{where}: expected {schema['type']}, found {value!r}"
        return
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        yield f"{where}: expected one of {schema['enum']}, found {value!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: expected {schema['const']}, found {value!r}"
    yield from _scalar_problems(value, schema, where)
    if isinstance(value, list):
        yield from _list_problems(value, schema, root, where)
    if isinstance(value, dict):
        yield from _object_problems(value, schema, root, where)


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _scalar_problems(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        bounds = {key: schema[key] for key in _BOUNDS if key in schema}
        yield from (f"{where}: {key} {bound}" for key, bound in bounds.items() if not _BOUNDS[key](value, bound))
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)) or len(value) < schema.get("minLength", 0):
            yield f"{where}: length {len(value)}"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"


def _list_problems(value: list[Any], schema: dict[str, Any], root: dict[str, Any], where: str) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{where}: expected at least {schema['minItems']}"
    for number, item in enumerate(value):
        yield from problems(item, schema.get("items", True), root, f"{where}[{number}]")


def _object_problems(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], where: str) -> Iterator[str]:
    yield from (f"{where}.{name}: missing" for name in schema.get("required", ()) if name not in value)
    known = schema.get("properties", {})
    for name, item in value.items():
        yield from problems(name, schema.get("propertyNames", True), root, f"{where}.{name}")
        yield from problems(item, known.get(name, schema.get("additionalProperties", True)), root, f"{where}.{name}")
