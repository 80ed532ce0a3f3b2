"""Rewrites of kept rows are counted by source: on the console, in the manifest and in the report."""

from __future__ import annotations

import json

import pytest
import yaml

from data_prep.shards import read_manifest
from tests.conftest import build_tiny_tokenizer
from tests.support.preparation import edit_recipe, run, write_recipe

ROWS = [
    {"question": "How does a turn end?", "answer": "With <|im_end|>, or </s>, or <|im_end|> alone."},
    {"question": "And <|im_start|>?", "answer": "It begins one.</s>"},
    {"question": "Mail?", "answer": "a@example.com and b@example.com.</s> <|im_end|>"},
    {"question": "Python?", "answer": "\n    return x"},
    {"question": "Plain?", "answer": "    indented"},
]
CHANGED = {"answer_start_trimmed": 1, "end_tokens_stripped": 2, "escaped": 2, "masked": 1}
PLACES = {"answer_start_trimmed": 1, "end_tokens_stripped": 3, "escaped": 3, "masked": 2}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = build_tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer.add_tokens(["\n\n"])  # a leading line break would be one token with the template's
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = {"name": "qa", "path": str(tmp_path / "rows.jsonl"), "form": "question_answer"}
    options = {"eval_fraction": 0, "pii": ["email"], "rows_per_slice": 2}
    return write_recipe(tmp_path, tokenizer=str(tmp_path / "tokenizer"), sources=[source], **options)


def test_rows_and_places_are_counted(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "out") == 0
    (counts,) = read_manifest(tmp_path / "out")["sources"]
    assert (counts["changed"], counts["places"], counts["kept"]) == (CHANGED, PLACES, 5)
    assert counts["lost_tokens"]["answer_start_trimmed"] == 1 and counts["lost_tokens"]["end_tokens_stripped"] >= 3
    said = "end_tokens_stripped 2 (3 places), escaped 2 (3 places), masked 1 (2 places)"
    assert f"kept, but changed: answer_start_trimmed 1 (1 places), {said}\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/report.json").read_text())
    (source,) = report["sources"]
    assert (source["changed"], source["places"]) == (CHANGED, PLACES)
    assert "40% of its rows were changed: escaped" in str(report["notes"])
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>end tokens stripped (kept)</td><td>2</td><td>40.0 %</td><td>3</td>" in page


@pytest.mark.parametrize(("policy", "dropped", "escaped"), [("reject", {"end_token_in_answer": 2}, 1), ("keep", {}, 3)])
def test_rows_that_end_in_an_end_token_can_be_dropped_or_kept(recipe, tmp_path, policy, dropped, escaped):
    assert run(edit_recipe(recipe, end_tokens_in_answers=policy), tmp_path / "out") == 0
    (counts,) = read_manifest(tmp_path / "out")["sources"]
    assert counts["dropped"] == dropped
    assert "end_tokens_stripped" not in counts["changed"] and counts["changed"]["escaped"] == escaped


def test_places_are_those_of_the_source(recipe, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"question": "One?", "answer": "Only one.</s>"}) + "\n")
    (first,) = yaml.safe_load(recipe.read_text())["sources"]
    both = [first, {"name": "other", "path": str(tmp_path / "other.jsonl"), "form": "question_answer"}]
    assert run(edit_recipe(recipe, sources=both), tmp_path / "out") == 0
    assert [c["places"] for c in read_manifest(tmp_path / "out")["sources"]] == [PLACES, {"end_tokens_stripped": 1}]


def test_dropped_rows_are_masked_too(recipe, tmp_path):
    row = {"question": "I am a@example.com", "answer": " ", "more": [{"mail": "b@example.com"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[4]) + "\n" + json.dumps(row) + "\nc@example.com, no JSON\n")
    (source,) = yaml.safe_load(recipe.read_text())["sources"]
    assert run(edit_recipe(recipe, sources=[source | {"ignore": ["more"]}]), tmp_path / "out") == 0
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped/qa.jsonl").read_text().splitlines()]
    assert dropped[0]["value"] == row | {"question": "I am [EMAIL]", "more": [{"mail": "[EMAIL]"}]}
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(dropped) == 2 and not [file for file in files if b"example.com" in file.read_bytes()]


def test_refusals_show_no_personal_data_that_is_masked(recipe, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[4]) + "\nc@example.com, no JSON\n")
    assert run(edit_recipe(recipe, bad_rows="refuse"), tmp_path / "out") == 2
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROWS[4], "answer": " "}) + "\nc@example.com, no JSON\n")
    assert run(edit_recipe(recipe, bad_rows="skip"), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("[EMAIL], no JSON") == 2 and "example.com" not in said
