"""Near duplicates, decontamination, filters and masking through the whole preparation; the report beside the shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import prepare
from data_prep.shards import read_manifest, read_rows, shard_files
from tests.conftest import CORPUS

QUESTION = "Which of these fruits is red, and why does the colour matter to the birds that eat it in the late summer?"


@pytest.fixture
def rows():
    """Rows 0 and 1 nearly agree, 2 repeats an evaluation question, 3 holds an address, 4 is Korean, 5 is very short."""
    rows = [
        {"question": f"{CORPUS[i % 3]} Number {i}, please.", "answer": f"{CORPUS[(i + 1) % 4]} {i}"} for i in range(30)
    ]
    long = " ".join(f"word{i}" for i in range(80))
    rows[0] = {"question": "Tell me of the words.", "answer": long}
    rows[1] = {"question": "Tell me of the words.", "answer": long + " more"}
    rows[2] = {"question": "Please read: " + QUESTION, "answer": "The apple."}
    rows[3] = {"question": "How do I reach you?", "answer": "Write to someone@example.com or call 010-1234-5678."}
    rows[4] = {"question": CORPUS[4], "answer": CORPUS[5]}
    rows[6] = {"question": "Far too long.", "answer": "someone@example.com " * 300}
    rows[5] = {"question": "Is it?", "answer": "No"}
    return rows


def prepared(folder: Path, tokenizer, rows, **options):
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    source = {"name": "qa", "path": str(folder / "rows.json"), "form": "question_answer"}
    recipe = {"tokenizer": tokenizer.name_or_path, "chat_template": "chatml", "seq_len": 512, "eval_fraction": 0.2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "sources": [source], "rows_per_slice": 10, **options}))
    code = prepare.main(["--recipe", str(path), "--output", str(folder / "out"), "--num-workers", "1"])
    assert code == 0
    manifest = read_manifest(folder / "out")
    text = {
        split: "".join(
            tokenizer.decode(r["input_ids"]) for p in shard_files(folder / "out", manifest, split) for r in read_rows(p)
        )
        for split in ("train", "eval")
    }
    dropped = [json.loads(line) for line in (folder / "out/dropped/qa.jsonl").read_text().splitlines()]
    return manifest["sources"][0], text, dropped


def test_near_duplicates_are_dropped_and_listed(tmp_path, tiny_tokenizer, rows):
    items = [f"item{i}" for i in range(50)]  # of two slices, one by words and one by characters
    rows[12] = {"question": "Say it again.", "answer": " ".join(items)}
    rows[25] = {"question": "Say it again.", "answer": " ".join(items[:46])}
    counts, text, dropped = prepared(tmp_path, tiny_tokenizer, rows, near_duplicates={"threshold": 0.8})
    assert next(d["row"] for d in dropped if d["reason"] == "near_duplicate") == 1
    assert "repeats row 0 of qa" in next(d["detail"] for d in dropped if d["row"] == 1)
    assert "repeats row 12 of qa" in next(d["detail"] for d in dropped if d["row"] == 25)
    assert counts["dropped"]["near_duplicate"] >= 1 and "word79 more" not in text["train"] + text["eval"]


def test_near_duplicates_that_are_kept_stay_on_one_side(tmp_path, tiny_tokenizer, rows):
    many = [{**rows[0], "answer": rows[0]["answer"] + f" end{i}"} for i in range(20)] + rows[2:]
    _, text, _ = prepared(
        tmp_path, tiny_tokenizer, many, near_duplicates={"threshold": 0.8, "drop": False}, eval_fraction=0.5
    )
    sides = [sum(f"word79 end{i}<" in text[split] for i in range(20)) for split in ("train", "eval")]
    assert sorted(sides) == [0, 20]


def documents_of(folder: Path, split: str) -> list[tuple[int, ...]]:
    rows = [r for p in shard_files(folder, read_manifest(folder), split) for r in read_rows(p)]
    return [tuple(d) for r in rows for d in np.split(r["input_ids"], np.cumsum(r["seq_lengths"])[:-1])]


VARIANTS = {
    "flagged": ({}, lambda turns: [turns[0], turns[1] | {"weight": 1}]),
    "reasoning": ({"reasoning": "strip"}, lambda turns: [turns[0], turns[1] | {"reasoning_content": "Hm."}]),
    "truncated": (
        {"too_long": "truncate", "seq_len": 24},
        lambda turns: [turns[0], {**turns[1], "content": turns[1]["content"] + " And so on."}],
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_trains_the_same_is_one_document_however_it_was_written(variant, tmp_path, tiny_tokenizer):
    options, change = VARIANTS[variant]
    answer = "The word after the word, and the word before the word, and so on for as long as the row will be."
    talks = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}. {answer}"}] for i in range(50)
    ]
    sources = []
    for name, rows in (("a", talks), ("b", [change(talk) for talk in talks])):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"messages": row} for row in rows]))
        sources.append({"name": name, "path": str(tmp_path / f"{name}.json"), "form": "messages"})
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "chat_template": "chatml", "seq_len": 256, "eval_fraction": 0.2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **options, "sources": sources}))
    command = ["--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--num-workers", "1"]
    assert prepare.main(command) == 0
    found = [documents_of(tmp_path / "out", split) for split in ("train", "eval")]
    assert [len(some) for some in found] == [40, 10] and len({*found[0], *found[1]}) == 50
    assert [s["dropped"] for s in read_manifest(tmp_path / "out")["sources"]] == [{}, {"duplicate": 50}]


def test_rows_that_overlap_with_an_evaluation_file_are_dropped(tmp_path, tiny_tokenizer, rows):
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    counts, text, dropped = prepared(
        tmp_path, tiny_tokenizer, rows, decontaminate={"files": str(tmp_path / "benchmark.jsonl")}
    )
    (row,) = [d for d in dropped if d["reason"] == "contaminated"]
    assert row["row"] == 2 and "benchmark.jsonl:1" in row["detail"]
    assert "birds" not in text["train"] + text["eval"] and counts["dropped"]["contaminated"] == 1


def test_filters_and_masks(tmp_path, tiny_tokenizer, rows):
    filters = {"min_answer_characters": 5, "languages": ["en"], "must_not_match": ["Number 7,"]}
    counts, text, dropped = prepared(tmp_path, tiny_tokenizer, rows, filters=filters, pii=["email", "phone"])
    reasons = {d["row"]: d["reason"] for d in dropped}
    assert reasons[4] == "filtered_language" and reasons[5] == "filtered_length" and reasons[7] == "filtered_regex"
    whole = text["train"] + text["eval"]
    assert "Write to [EMAIL] or call [PHONE]." in whole and "example.com" not in whole
    assert counts["changed"]["masked"] == 1


def test_the_report_lies_beside_the_shards(tmp_path, tiny_tokenizer, rows):
    counts, _, _ = prepared(tmp_path, tiny_tokenizer, rows)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert "<html" in page and "http" not in page.replace("http-equiv", "")
    assert numbers["overall"]["train"]["length"]["rows"] == counts["train_uses"]
