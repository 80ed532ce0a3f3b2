"""The JSON Schema of a recipe, made from its pydantic model; a key's description is the comment behind it there."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from typing import Any

from pydantic import BaseModel

from data_prep import recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """A draft 2020-12 schema: keys, types, ranges, allowed values, defaults. What keys must not stand together, such as
    `path` and `dataset`, is checked by load_recipe alone."""
    schema = recipe.Recipe.model_json_schema()
    models = {name: value for name, value in vars(recipe).items() if _is_model(value)}
    for name, part in {"Recipe": schema, **schema["$defs"]}.items():
        _describe(part, models[name])
    return {"$schema": DIALECT, "title": "packhaul recipe", **{k: v for k, v in schema.items() if k != "title"}}


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _describe(part: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the comments, and take out titles, which only repeat the names."""
    comments = field_comments(model)
    for name, field in part["properties"].items():
        field.pop("title", None)
        if name in comments:
            field["description"] = comments[name]


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """The comment behind each field of a class, read from its source."""
    source = textwrap.dedent(inspect.getsource(model))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {ast.unparse(node.target): comments[node.end_lineno] for node in fields if node.end_lineno in comments}
