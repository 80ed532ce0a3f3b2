"""The JSON Schema of a run config, made from the same tables as `--help`, without importing the libraries."""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

from train.config.library_options import Computed, Option
from train.config.own_options import HANG_PHASES, OWN_DEFAULTS, PACKED_ROWS, REQUIRED, known_options
from train.config.refused_options import REFUSALS
from train.config.value_ranges import RANGES, Range

DIALECT = "https://json-schema.org/draft/2020-12/schema"
LIBRARIES = ("trl", "transformers")
_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "list": "array",
    "dict": "object",
    "none": "null",
}


def run_schema() -> dict[str, Any]:
    """A draft 2020-12 schema: options, types, ranges, allowed values, defaults.

    No option is required, as flags may give it. What options must not stand together is checked by load_run_config
    alone.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return {
        "$schema": DIALECT,
        "$comment": f"options of {versions}",
        "title": "packhaul run config",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(option) for name, option in known_options().items()},
    }


def _property(option: Option) -> dict[str, Any]:
    if refusal := REFUSALS.get(option.name):
        return {"enum": list(refusal.safe), "description": f"Not usable here: {refusal.reason}."}
    return {**_allowed(option), **_default(option), "description": option.help}


def _default(option: Option) -> dict[str, Any]:
    default = {**OWN_DEFAULTS, **PACKED_ROWS}.get(option.name, option.default)
    if option.name in REQUIRED or isinstance(default, Computed):
        return {}
    return {"default": default}


def _allowed(option: Option) -> dict[str, Any]:
    """What a value may be."""
    if option.choices:
        off = [False] if "no" in option.choices else []  # YAML 1.1 reads a bare `no` as false
        others = [{"type": _TYPES[kind]} for kind in sorted(option.kinds - {"str"})]
        return _any_of([{"enum": [*option.choices, *off]}, *others])
    one_text = {"str"} if "list" in option.kinds else set()  # is taken as a list of it
    forms = [{"type": _TYPES[kind], **_details(option, kind)} for kind in sorted(option.kinds | one_text)]
    also = RANGES[option.name].also if option.name in RANGES else ()
    return _any_of([*forms, *([{"enum": list(also)}] if also else [])])


def _any_of(forms: list[dict[str, Any]]) -> dict[str, Any]:
    if not forms:
        return {"not": {}}  # an object that neither YAML nor a flag can hold
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _details(option: Option, kind: str) -> dict[str, Any]:
    if kind == "list":
        return {"items": {"type": "string"}}
    if option.name == "hang_seconds" and kind == "dict":
        seconds = {"type": "number", "exclusiveMinimum": 0}
        return {"propertyNames": {"enum": list(HANG_PHASES)}, "additionalProperties": seconds}
    if kind in ("int", "float") and option.name in RANGES:
        return _bounds(RANGES[option.name])
    return {}


def _bounds(allowed: Range) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if allowed.least > -math.inf:
        found["exclusiveMinimum" if allowed.without_least else "minimum"] = allowed.least
    if allowed.most < math.inf:
        found["exclusiveMaximum" if allowed.without_most else "maximum"] = allowed.most
    return found
