"""What a run shows over a resume: the same metrics, the same best checkpoint, the same early end, one baseline."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.in_process import train_here
from tests.support.training import history, make_shards
from train.loop.sample_answers import read_samples

TIMES = ("second", "seconds", "share", "gib", "left", "runtime")  # words in the names of metrics that never repeat
RESUMED = 8


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """A learning rate at which the loss soon gets worse; logs, evaluations and checkpoints in different steps."""
    folder = tmp_path_factory.mktemp("watching")
    answers = {"short": [1] * 40, "long": [4] * 10}
    shards = make_shards(folder, tiny_tokenizer.name_or_path, answers, eval_fraction=0.2, seq_len=128)
    return {
        "data": str(shards),
        "model_name_or_path": str(tiny_model_dir("llama")),
        "max_steps": 40,
        "learning_rate": 0.03,
        "gradient_accumulation_steps": 2,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_long_loss_change",
        "early_stopping_patience": 3,
        "spike_sigma": 1000.0,
        "sample_max_new_tokens": 4,
    }


def repeatable(entries):
    """Without times; the last entry sums up the last attempt alone."""
    return [{k: v for k, v in entry.items() if not any(word in k for word in TIMES)} for entry in entries[:-1]]


def test_a_resumed_run_shows_and_decides_the_same(options, tmp_path):
    train_here(tmp_path / "whole", **options)
    whole, killed = tmp_path / "whole/run", tmp_path / "killed/run"
    state = json.loads((whole / "trainer_state.json").read_text())
    losses = {e["step"]: e["eval_long_loss"] for e in history(whole) if "eval_long_loss" in e}
    best = min((s for s in losses if s), key=losses.get)
    assert RESUMED < state["global_step"] == best + 2 * 3 < 40  # three evaluations without a better one
    assert state["best_model_checkpoint"].endswith(f"checkpoint-{best}")
    shutil.copytree(whole, killed)
    for folder in killed.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > RESUMED:
            shutil.rmtree(folder)
    for name in ("complete.json", "trainer_state.json"):
        (killed / name).unlink()
    train_here(tmp_path / "killed", **options)
    assert repeatable(history(killed)) == repeatable(history(whole))
    assert read_samples(killed / "samples.jsonl") == read_samples(whole / "samples.jsonl")
    baseline = [json.loads((run / "run.json").read_text())["baseline"] for run in (killed, whole)]
    assert baseline[0] == baseline[1] == {k: v for k, v in history(whole)[0].items() if k in baseline[0]}
    assert set(baseline[0]) == {"eval_loss", "eval_short_loss", "eval_long_loss"}
