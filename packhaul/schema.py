"""`packhaul schema recipe|run`: the JSON Schema of a recipe or a run config, which editors complete and check by.

    packhaul schema recipe > recipe.json

A file names its schema in a comment: `# yaml-language-server: $schema=recipe.json`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import usage_name

KINDS = ("recipe", "run")


def main(argv: list[str] | None = None) -> int:
    """Print it; 0."""
    parser = CommandParser(
        prog=usage_name("packhaul.schema"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS, help="recipe: of configs/data; run: of configs/train")
    print(text_of(parser.parse_args(argv).kind), end="")
    return 0


def text_of(kind: str) -> str:
    """The schema as its file in configs/schema holds it."""
    return json.dumps(_schema(kind), indent=1, ensure_ascii=False) + "\n"


def _schema(kind: str) -> dict[str, Any]:
    if kind == "recipe":
        from data_prep.recipe_schema import recipe_schema

        return recipe_schema()
    from train.config.run_schema import run_schema

    return run_schema()
