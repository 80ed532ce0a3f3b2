"""Recipes: what is shipped parses, what is wrong is refused with place and remedy."""

from __future__ import annotations

import pytest

from data_prep.recipe import load_recipe
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "configs/data").glob("*.yaml"))
SOURCE = "sources: [{name: a, path: a.json, form: alpaca%s}]"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_recipes_parse(path, monkeypatch):
    for variable in ("PACKHAUL_DATA", "PACKHAUL_QUICKSTART"):
        monkeypatch.setenv(variable, "/data")
    recipe = load_recipe(path)
    assert recipe.sources and "$" not in str(recipe.sources)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "expected a mapping of options, found list"),
        ("a: [", "not usable as YAML"),
        ("tokenizer: t", "sources: Field required"),
        ("tokenizr: t\n" + SOURCE % "", "tokenizr: unknown key; did you mean 'tokenizer'?"),
        ("tokenizer: t\n" + SOURCE % ", wieght: 1", "sources.0.wieght: unknown key; did you mean 'weight'?"),
        ("tokenizer: t\n" + SOURCE % ", dataset: hub/x", "give either `path` (local files) or `dataset` (a hub id)"),
        ("tokenizer: t\n" + SOURCE % ", columns: {question: q}", "form alpaca has no column 'question'"),
        ("tokenizer: t\n" + SOURCE % ", take: 1.5", "take"),
        ("tokenizer: t\n" + SOURCE.replace("a.json", "$NOT_SET/a.json") % "", "environment variable that is not set"),
        ("tokenizer: t\nsources: [{name: a, path: x, form: alpaca}, {name: a, path: y, form: alpaca}]", "two sources"),
        (
            "tokenizer: t\nsources: [{name: a, path: x, form: alpaca, weight: 1}, {name: b, path: y, form: alpaca}]",
            "give all of them one, or none",
        ),
        ("tokenizer: t\nseed: 1\nseed: 2\n" + SOURCE % "", "key 'seed' is given twice, on lines 2 and 3"),
    ],
)
def test_wrong_recipes_are_refused(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value)
