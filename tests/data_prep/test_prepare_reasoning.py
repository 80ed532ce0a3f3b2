"""Reasoning in a whole preparation: counted by source, seen by inspect_shards, a part of the identity."""

from __future__ import annotations

import json

import pytest

from data_prep import inspect_shards
from data_prep.shards import read_manifest, write_manifest
from tests.support.preparation import decoded_documents, edit_recipe, run, write_recipe

EMPTY = "<think>\n\n</think>\n\n"
GREEN, DIM, RESET = "\033[1;32m", "\033[2m", "\033[0m"
PLAIN = [
    {"question": "How many?", "answer": "Seven of them."},
    {"question": "And then?", "answer": "None are left."},
]
THINKING = [
    {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>hm</think>So."}]},
    {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Now, at once."}]},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She.", "thinking": "She?"}]},
]
TURNS = [
    {"trained": 2, "with_reasoning": 0, "empty_reasoning_masked": 2, "empty_reasoning_trained": 0},
    {"trained": 3, "with_reasoning": 2, "empty_reasoning_masked": 1, "empty_reasoning_trained": 0},
]


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")


@pytest.fixture
def recipe(tmp_path, tiny_tokenizer):
    for name, rows in (("plain", PLAIN), ("thinking", THINKING)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        {"name": "plain", "path": str(tmp_path / "plain.jsonl"), "form": "question_answer"},
        {"name": "thinking", "path": str(tmp_path / "thinking.jsonl"), "form": "messages"},
    ]
    tokenizer = tiny_tokenizer.name_or_path
    return write_recipe(tmp_path, tokenizer=tokenizer, chat_template="qwen3", sources=sources, eval_fraction=0)


def test_turns_are_counted_by_source_and_masked_blocks_are_not_coloured(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "out") == 0
    counts = read_manifest(tmp_path / "out")["sources"]
    assert [source["turns"] for source in counts] == TURNS
    said = capsys.readouterr().out
    assert "of 2 trained turns: 2 empty reasoning masked\n" in said
    assert "of 3 trained turns: 2 with reasoning, 1 empty reasoning masked\n" in said
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [source["turns"] for source in report["sources"]] == TURNS
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>3</td><td>2</td><td>66.7 %</td><td>1</td><td>0</td>" in page

    assert inspect_shards.main([str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"assistant\n{EMPTY}{RESET}{GREEN}Now, at once.<|im_end|>" in shown
    assert f"assistant\n{RESET}{GREEN}<think>\nhm\n</think>\n\nSo.<|im_end|>" in shown


def test_another_policy_is_another_preparation(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "out") == 0
    edit_recipe(recipe, empty_reasoning="train")
    assert run(recipe, tmp_path / "out") == 2
    assert "empty_reasoning: 'mask', now 'train'" in capsys.readouterr().err
    assert run(recipe, tmp_path / "trained") == 0
    masked, trained = (read_manifest(tmp_path / name) for name in ("out", "trained"))
    assert trained["sources"][0]["turns"]["empty_reasoning_trained"] == 2
    assert masked["splits"]["train"]["tokens"] == trained["splits"]["train"]["tokens"]
    assert masked["splits"]["train"]["trained_tokens"] < trained["splits"]["train"]["trained_tokens"]
    edit_recipe(recipe, empty_reasoning="leave_out")
    assert run(recipe, tmp_path / "left_out") == 0
    left_out = read_manifest(tmp_path / "left_out")
    assert left_out["splits"]["train"]["trained_tokens"] == masked["splits"]["train"]["trained_tokens"]
    assert left_out["splits"]["train"]["tokens"] < masked["splits"]["train"]["tokens"]


def test_a_row_becomes_a_document_for_each_prompt_that_a_server_makes(recipe, tmp_path, tiny_tokenizer):
    talk = [turn for row in THINKING for turn in row["messages"]]
    (tmp_path / "thinking.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    assert run(edit_recipe(recipe, reasoning_history="as_served"), tmp_path / "out") == 0
    counts = read_manifest(tmp_path / "out")["sources"][1]
    assert (counts["kept"], counts["documents"], counts["changed"]) == (1, 2, {"reasoning_history_split": 1})
    assert counts["places"] == {"reasoning_history_split": 2} and counts["turns"] == TURNS[1]
    texts = decoded_documents(tmp_path / "out", tiny_tokenizer)
    (last,) = [text for text in texts if "She?" in text]
    assert "hm" not in last and "So." in last
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "0"]) == 0


def test_shards_of_before_are_readable(recipe, tmp_path, capsys):
    """Their recipe has no `empty_reasoning`, their sources no `turns`."""
    assert run(recipe, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    manifest["identity"] = "of before"
    del manifest["recipe"]["empty_reasoning"], manifest["sha256"]
    for source in manifest["sources"]:
        del source["turns"]
    write_manifest(tmp_path / "out", manifest)
    assert inspect_shards.main([str(tmp_path / "out")]) == 0
    assert "is sound" in capsys.readouterr().out
    assert run(recipe, tmp_path / "out") == 2
    assert "empty_reasoning: not there, now 'mask'" in capsys.readouterr().err
