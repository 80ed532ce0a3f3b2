"""A run directory as far as its page reads it, and the page's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

HISTORY = [
    {"step": 0, "eval_loss": 3.0, "eval_ko_loss": 3.5, "eval_의학_loss": 2.5},
    {"step": 10, "loss": 2.0, "loss_ko": 2.5, "loss_의학": 1.5, "grad_norm": 1.0, "learning_rate": 1e-5, "mfu": 0.43},
    {"step": 20, "loss": 1.0, "loss_ko": 1.5, "loss_의학": 0.5, "grad_norm": float("inf"), "num_tokens": 12345},
    {"step": 20, "eval_loss": 1.25, "eval_loss_change": -1.75, "eval_ko_loss": 3.75, "eval_ko_loss_change": 0.25},
]
RECORD = {"data": "shards/mix", "model_name_or_path": "base", "manifest_sha256": "a" * 64, "world_size": 8}
RECORD |= {"git_commit": "b" * 40, "baseline": {"eval_loss": 3.0, "eval_ko_loss": 3.5}}


def make_run(folder: Path, **options) -> Path:
    """As much of a run directory as the page reads."""
    folder.mkdir()
    record = {**RECORD, "options": {"run_name": folder.name, "learning_rate": 1e-5, **options}}
    (folder / "run.json").write_text(json.dumps(record))
    state = {"log_history": HISTORY, "global_step": 20, "max_steps": 40}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    sample = {"source": "ko", "prompt": "질문\u2028<script>alert(1)</script>", "reference": "모범 답"}
    lines = [{**sample, "step": step, "answer": f"답 {step}"} for step in (0, 20)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / "bad_steps").mkdir()
    bad = {"step": 7, "reason": "the loss is NaN", "loss": "nan", "grad_norm": 1.0, "rows": [{"shard": "s", "row": 3}]}
    documents = [{"source": "ko", "loss": loss, "tokens": 9, "trained_tokens": 5} for loss in (0.5, "nan", 9.5)]
    bad["rows"][0]["documents"] = documents
    (folder / "bad_steps" / "step-7.json").write_text(json.dumps(bad))
    return folder


def shown(page: str) -> str:
    """Its words."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))
