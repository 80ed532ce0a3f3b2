"""`--stage check`: what is wrong is found from a few rows, and nothing is written."""

from __future__ import annotations

import json

import pytest

from data_prep import prepare
from tests.support.preparation import edit_recipe, run


def check(recipe, output) -> int:
    return prepare.main(["--recipe", str(recipe), "--output", str(output), "--stage", "check"])


def test_each_source_is_looked_at_and_nothing_is_written(recipe_file, tmp_path, capsys):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert check(recipe_file, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "check: source alpaca: " in said and "check: source qa: " in said and "not_json" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chat_template": "nothing"}, "nothing"),
        ({"tokenizer": "no/such/tokenizer"}, "no/such/tokenizer"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_what_is_wrong_is_refused(changes, said, recipe_file, tmp_path, capsys):
    assert check(edit_recipe(recipe_file, **changes), tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_usable_row_is_refused(recipe_file, tmp_path, capsys):
    (tmp_path / "qa.jsonl").write_text(json.dumps({"question": "Who?", "answer": " "}) + "\n")
    assert check(recipe_file, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "source qa: none of the 1 rows that were looked at can be used: empty_output 1" in said
    assert f"empty_output: {tmp_path / 'qa.jsonl'}:1: " in said


def test_a_complete_output_and_one_of_another_recipe(recipe_file, tmp_path, capsys):
    assert run(recipe_file, tmp_path / "out") == 0
    assert check(recipe_file, tmp_path / "out") == 0
    assert "is complete: there would be nothing to do" in capsys.readouterr().out
    assert check(edit_recipe(recipe_file, seq_len=64), tmp_path / "out") == 2
