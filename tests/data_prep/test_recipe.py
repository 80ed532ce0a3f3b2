"""Recipes: what is shipped parses, what is wrong is refused with place and remedy."""

from __future__ import annotations

import pytest

from data_prep.recipe import _OTHERS_KEYS, load_recipe
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
        (
            "tokenizer: t\nsources: [{name: a, path: x, columns: {question: q, answer: a}}]",
            "sources.0: source 'a': `columns` needs a `form`: say `form: question_answer`",
        ),
        ("tokenizer: t\nsources: [{name: a, path: x, columns: {x: y}}]", "needs a `form`; auto maps columns itself"),
        ("tokenizer: t\n" + SOURCE % ", take: 1.5", "take"),
        ("tokenizer: t\n" + SOURCE.replace("a.json", "$NOT_SET/a.json") % "", "environment variable that is not set"),
        ("tokenizer: t\nsources: [{name: a, path: x, form: alpaca}, {name: a, path: y, form: alpaca}]", "two sources"),
        (
            "tokenizer: t\nsources: [{name: a, path: x, form: alpaca, weight: 1}, {name: b, path: y, form: alpaca}]",
            "give all of them one, or none",
        ),
        (
            "tokenizer: t\n" + SOURCE % ", type: alpaca",
            "unknown key, of another tool; here: `form` says how a row reads",
        ),
        ("tokenizer: t\n" + SOURCE % ", ds_type: json", "here: `format` says"),
        ("tokenizer: t\n" + SOURCE % ", formatting: sharegpt", "here: `form` says"),
        ("tokenizer: t\n" + SOURCE % ", field_messages: m", "here: write `columns: {messages: COLUMN}`"),
        ("tokenizer: t\n" + SOURCE % ", tags: {role_tag: from}", "`message_keys: {role: KEY, content: KEY}`"),
        ("tokenizer: t\n" + SOURCE % ", message_field_training: train", "`message_keys: {train: KEY}`"),
        ("tokenizer: t\n" + SOURCE % ", columns: {response: a}", "LLaMA-Factory's 'response' is 'output' here"),
        (
            "tokenizer: t\nsequence_len: 4\n" + SOURCE % "",
            "sequence_len: unknown key, of another tool; here: write `seq_len`",
        ),
        ("tokenizer: t\ndatasets: []\n" + SOURCE % "", "here: write `sources`, a list"),
        ("tokenizer: t\n" + SOURCE % ", message_keys: {rolle: a}", "message_keys.rolle"),
        ("tokenizer: t\n" + SOURCE % ", columns: {input: a}, ignore: [a]", "['a'] are read and in `ignore`"),
        ("tokenizer: t\nseed: 1\nseed: 2\n" + SOURCE % "", "key 'seed' is given twice, on lines 2 and 3"),
    ],
)
def test_wrong_recipes_are_refused(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value) and '(found "{' not in str(caught.value)


def test_keys_of_other_tools_are_not_ours():
    for model, theirs in _OTHERS_KEYS.items():
        assert not set(theirs) & set(model.model_fields)


@pytest.mark.parametrize("secret", ["https://me:pw12345@host/a.json", "hf_" + "aB3" * 10, "$ADDRESS/a.json"])
def test_a_secret_is_refused_and_not_shown(secret, tmp_path, monkeypatch):
    """Given as it is, or by a variable: the manifest would hold it."""
    monkeypatch.setenv("ADDRESS", "s3://key:pw12345@host")
    (tmp_path / "r.yaml").write_text("tokenizer: t\n" + SOURCE.replace("a.json", secret) % "")
    with pytest.raises(ValueError, match=r"sources: a text looks like a secret .* ~/\.netrc") as error:
        load_recipe(tmp_path / "r.yaml")
    assert "pw12345" not in str(error.value) and "hf_a" not in str(error.value)
