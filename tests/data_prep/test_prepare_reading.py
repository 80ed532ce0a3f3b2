"""What a recipe promises of its rows holds for each of them, wherever it stands in a source: whole preparations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from data_prep.quality.filters import resolve_function
from data_prep.recipe import load_recipe
from data_prep.shards import read_manifest, read_rows, shard_files
from data_prep.stages.job import open_job
from tests.support.preparation import decoded_documents, run, write_recipe

TALK = {"question": "q", "answer": "a"}
LATE = 150  # rows before what comes late: more than form `auto` looks at
TRANSFORM = """
def rows(row):
    if row["question"] == "out":
        return None
    return [row, {**row, "answer": row["answer"] + " again"}, {**row, "answer": " "}]
"""


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some(number: int, **more) -> list[dict]:
    return [{"question": f"q{i}", "answer": f"a{i}", **more} for i in range(number)]


def recipe_of(folder: Path, tokenizer, *sources: dict, **options) -> Path:
    return write_recipe(folder, tokenizer=tokenizer.name_or_path, eval_fraction=0, sources=list(sources), **options)


def test_what_only_later_rows_hold(tmp_path, tiny_tokenizer, capsys):
    late = [
        {**TALK, "system": "Be a pirate."},
        {**TALK, "history": [["1", "2"]]},
        {**TALK, "system_prompt": "Be brief."},
        {**TALK, "context": "Once."},
        {**TALK, "rejected": "x"},
        {**TALK, "label": False},
        {**TALK, "images": ["x.png"]},
        {**TALK, "weight": 0},
        {**TALK, "weight": 0.5},
        {**TALK, "id": 7, "meta": {"x": 1}, "seen": True},
    ]
    lines(tmp_path / "a1.jsonl", some(LATE))
    lines(tmp_path / "a2.jsonl", late)
    recipe = recipe_of(tmp_path, tiny_tokenizer, {"name": "s", "path": str(tmp_path / "a?.jsonl")})
    assert run(recipe, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest["sources"][0]["dropped"] == {"fractional_weight": 1, "not_trained": 1, "unread_column": 5}
    texts = decoded_documents(tmp_path / "out", tiny_tokenizer)
    system, history = "<|im_start|>system\nBe a pirate.<|im_end|>\n", "<|im_start|>user\n1<|im_end|>\n"
    assert sum(text.startswith(system) for text in texts) == sum(text.startswith(history) for text in texts) == 1
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped/s.jsonl").read_text().splitlines()]
    assert [row["row"] for row in dropped] == list(range(LATE + 2, LATE + 9))
    assert "`columns: {system: system_prompt}`" in dropped[0]["detail"]
    said = "source s: not read: ['id', 'meta', 'seen']; map it with `columns`, or name it in `ignore`"
    assert said in manifest["notes"] and said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "messages", "message_keys": {"train": "lerned"}}, "`message_keys` gives 'lerned' for train"),
        ({"form": "messages", "placeholders": {"nmae": "Haul"}}, "`placeholders` gives 'nmae' a value"),
    ],
)
def test_a_name_that_no_row_has_is_refused(tmp_path, tiny_tokenizer, capsys, options, said):
    talk = [{"role": "user", "content": "Hi {{name}}"}, {"role": "assistant", "content": "Hello", "learned": 0}]
    path = lines(tmp_path / "x.jsonl", [{"messages": talk}] * 3)
    recipe = recipe_of(tmp_path, tiny_tokenizer, {"name": "s", "path": str(path), **options}, train_on="all")
    assert run(recipe, tmp_path / "out") == 2
    assert f"source 's': {said}, but not one of its rows has that" in capsys.readouterr().err


@pytest.fixture
def transform(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "my_transform.py"
    path.write_text(TRANSFORM)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield path
    forget()


def forget() -> None:
    """What an earlier import of the user's module left."""
    resolve_function.cache_clear()
    sys.modules.pop("my_transform", None)


def test_a_transform_through_a_whole_preparation(tmp_path, tiny_tokenizer, transform, capsys):
    rows = [{"question": "q1", "answer": "a1"}, {"question": "out", "answer": "x"}, {"question": "q1", "answer": "a1"}]
    source = {"name": "s", "path": str(lines(tmp_path / "x.jsonl", rows)), "transform": "my_transform:rows"}
    recipe = recipe_of(tmp_path, tiny_tokenizer, source)
    assert run(recipe, tmp_path / "out") == 0
    [counts] = read_manifest(tmp_path / "out")["sources"]
    assert (counts["rows"], counts["kept"], counts["dropped"]) == (
        7,
        2,
        {"duplicate": 2, "empty_output": 2, "left_out": 1},
    )
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped/s.jsonl").read_text().splitlines()]
    reasons = [(row["row"], row["reason"]) for row in dropped]
    assert reasons == [(0, "empty_output"), (1, "left_out"), (2, "empty_output"), *[(2, "duplicate")] * 2]
    assert [row["detail"] for row in dropped[3:]] == ["repeats row 0 of s"] * 2
    job = open_job(load_recipe(recipe), tmp_path / "other")
    transform.write_text(TRANSFORM.replace("again", "anew"))
    forget()
    changed = open_job(load_recipe(recipe), tmp_path / "other")
    assert job.parts[0].folder != changed.parts[0].folder, "no part of the other code's is used"
    assert run(recipe, tmp_path / "out") == 2, "other code, other rows"
    assert "was made from other evaluation files, filter functions or transforms" in capsys.readouterr().err


def test_rows_left_out_on_purpose_are_no_bad_rows(tmp_path, tiny_tokenizer, transform, capsys):
    transform.write_text("def rows(row):\n    return row if row['question'] != 'out' else None\n")
    rows = [TALK, {**TALK, "question": "out"}, {**TALK, "weight": 0}]
    source = {"name": "s", "path": str(lines(tmp_path / "x.jsonl", rows)), "transform": "my_transform:rows"}
    assert run(recipe_of(tmp_path, tiny_tokenizer, source, bad_rows="refuse"), tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out")["sources"][0]["dropped"] == {"left_out": 1, "not_trained": 1}
    lines(tmp_path / "x.jsonl", [*rows, {**TALK, "answer": ""}])
    assert run(recipe_of(tmp_path, tiny_tokenizer, source, bad_rows="refuse"), tmp_path / "other") == 2
    assert "empty_output" in capsys.readouterr().err


def test_plain_texts_through_a_whole_preparation(tmp_path, tiny_tokenizer):
    path = lines(tmp_path / "x.jsonl", [{"text": f"The sky is blue {i}.", "source": "x"} for i in range(9)])
    talk = lines(tmp_path / "y.jsonl", some(3))
    sources = [{"name": "t", "path": str(path), "form": "text"}, {"name": "q", "path": str(talk)}]
    recipe = recipe_of(tmp_path, tiny_tokenizer, *sources, near_duplicates={}, pii=["email"])
    assert run(recipe, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest["end_token_ids"] == [tiny_tokenizer.eos_token_id]
    text, talk = manifest["sources"]
    assert text["tokens"] == text["trained_tokens"] > 0 and talk["trained_tokens"] < talk["tokens"]
    texts = decoded_documents(tmp_path / "out", tiny_tokenizer)
    assert "The sky is blue 3.<|im_end|>" in texts
    for file in shard_files(tmp_path / "out", manifest, "train"):
        for row in read_rows(file):
            assert len(row["labels"]) == sum(row["seq_lengths"])
