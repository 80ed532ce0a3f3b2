"""A recipe of two small sources."""

from __future__ import annotations

import json

import pytest

from tests.conftest import CORPUS
from tests.support.preparation import NUM_ROWS, write_recipe


@pytest.fixture
def recipe_file(tmp_path, tiny_tokenizer):
    """Two sources of several slices each: duplicates, an empty answer, a line that is not JSON, a long row."""
    rows = [
        {"instruction": f"{CORPUS[i % 8]} {i}", "input": "", "output": CORPUS[(i * 3) % 8]} for i in range(NUM_ROWS)
    ]
    rows[7] = rows[5]
    rows[9] = {**rows[9], "output": " "}
    (tmp_path / "alpaca.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = [
        json.dumps({"question": f"{i}? {CORPUS[i % 8]}", "answer": f"{i}. {CORPUS[i % 5]}"}) for i in range(NUM_ROWS)
    ]
    lines[3] = '{"question": "broken'
    lines[4] = json.dumps({"question": "long", "answer": CORPUS[3] * 40})
    (tmp_path / "qa.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_recipe(
        tmp_path,
        tokenizer=tiny_tokenizer.name_or_path,
        sources=[
            {"name": "alpaca", "path": str(tmp_path / "alpaca.json"), "form": "alpaca"},
            {"name": "qa", "path": str(tmp_path / "qa.jsonl"), "form": "question_answer"},
        ],
    )
