"""Held-out losses: where the base model ends better it is said, and an export has the loss that training has logged."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from tests.support.export_runs import run_export
from tests.support.in_process import train_here
from tests.support.training import document_loss, documents, history, make_shards
from train.loop.evaluation import better_base


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 30, "long": [5] * 6}
    return make_shards(tmp_path_factory.mktemp("shards"), tiny_tokenizer.name_or_path, answers, eval_fraction=0.3)


@pytest.fixture
def trained(shards, tiny_model_dir, tmp_path):
    """Factory: a run of four steps, evaluated before and after them; its evaluations."""

    def train(**options):
        often = {"eval_strategy": "steps", "eval_steps": 4, "max_steps": 4, "sample_prompts": 0}
        model = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("qwen3"))}
        train_here(tmp_path, **model, **often, **options)
        return [entry for entry in history(tmp_path / "run") if "eval_loss" in entry]

    return train


def test_a_base_that_ends_better_is_reported_for_each_source(trained, capsys):
    first, last = trained(learning_rate=1.0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "has a lower held-out loss" in line]
    for source, metric in (("all sources together", "eval_loss"), ("short", "eval_short_loss")):
        assert last[metric] > first[metric] + 0.1
        assert f"{source}: {first[metric]:.4f} before, {last[metric]:.4f} after step 4" in line


def test_the_export_has_the_loss_that_training_has_logged(trained, shards, tmp_path, capsys):
    """LoRA on the embeddings of a tied model, against an independent reference: unpacked, own cross-entropy."""
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "embed_tokens"]}
    first, last = trained(**lora, learning_rate=0.1)
    assert "lower held-out loss" not in capsys.readouterr().err
    run_export(tmp_path / "run", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    parts = [document_loss(model, document) for document in documents(shards, "eval")]
    loss = sum(part.item() for part, _ in parts) / sum(tokens for _, tokens in parts)
    assert loss == pytest.approx(last["eval_loss"], rel=1e-5) != pytest.approx(first["eval_loss"], rel=1e-3)
    proof = json.loads((tmp_path / "out" / "export.json").read_text())["proof"]
    assert proof["adapter_effect"] > 0.01 > 1e-5 > proof["difference"]


LOG = [
    {"step": 0, "eval_loss": 2.0, "eval_a_loss": 2.0, "eval_b_loss": 2.0},
    {"step": 2, "eval_loss": 1.5, "eval_a_loss": 1.0, "eval_b_loss": 2.5},
    {"step": 4, "loss": 1.0},
    {"step": 4, "eval_loss": 2.2, "eval_a_loss": 2.4, "eval_b_loss": 2.0005},
    {"step": 4, "train_loss": 1.0},
]
BASE = {name: value for name, value in LOG[0].items() if name != "step"}


@pytest.mark.parametrize(
    ("step", "worse"),
    [
        (None, ["all sources together: 2.0000 before, 2.2000 after step 4", "a: 2.0000 before, 2.4000 after step 4"]),
        (2, ["b: 2.0000 before, 2.5000 after step 2"]),  # the best model is loaded at the end
        (3, []),  # it was not evaluated
    ],
)
def test_the_evaluation_of_the_model_that_the_run_ends_with_is_compared(step, worse):
    assert better_base(LOG, BASE, step) == worse


def test_without_a_baseline_or_an_evaluation_nothing_is_claimed():
    assert better_base(LOG, {}, None) == better_base(LOG[2:3], BASE, None) == better_base(LOG[:1], BASE, None) == []
