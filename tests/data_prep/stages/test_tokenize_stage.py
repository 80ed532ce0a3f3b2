"""What a part leaves behind in its worker."""

from __future__ import annotations

import gc
import json
import weakref

from data_prep.recipe import Recipe
from data_prep.stages.job import open_job
from data_prep.stages.parts import PartWriter
from data_prep.stages.tokenize_stage import tokenize_part

ROWS = [
    {"question": "What is two?", "answer": "It is two."},
    {"question": "Nothing?", "answer": ""},  # dropped by its form
    {"question": "What is long?", "answer": "It is long. " * 100},  # dropped for its length
    {"question": "What is unclosed?", "answer": "<think>It is"},  # dropped by the renderer
]


def test_a_part_with_dropped_rows_is_freed_without_the_collector(tmp_path, tiny_tokenizer, monkeypatch):
    """Workers run without it: an error that kept its traceback would keep the part until the next one is done."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS * 3)))
    source = {"name": "sums", "path": str(tmp_path / "rows.jsonl"), "form": "question_answer"}
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "seq_len": 128, "too_long": "drop", "sources": [source]}
    job = open_job(Recipe.model_validate(recipe), tmp_path / "shards")
    writers = []
    write = PartWriter.write

    def noted(writer, part):
        writers.append((weakref.ref(writer), dict(writer.reasons)))
        write(writer, part)

    monkeypatch.setattr(PartWriter, "write", noted)
    gc.collect()
    gc.disable()
    try:
        tokenize_part(job.parts[0], (job.recipe, job.renderer, job.described))
        ((writer, dropped),) = writers
        assert set(dropped) == {"empty_output", "too_long", "unclosed_reasoning"}
        assert writer() is None
    finally:
        gc.enable()
