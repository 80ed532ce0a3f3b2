"""Modes that need more than one process: offload to the CPU, and adapters under ZeRO-3, equal the same plain loop."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from tests.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.training import history, make_shards, run_config, train

STEPS, SEED, LEARNING_RATE = 5, 7, 1e-3


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}  # three rows, and a filler row for two processes with two steps
    return make_shards(tmp_path_factory.mktemp("sharded"), tiny_tokenizer.name_or_path, answers)


def run(tmp_path, launch, shards, model, **options):
    """(logged steps, output) of two processes; one epoch is one step."""
    plan = {"num_train_epochs": STEPS, "gradient_accumulation_steps": 2, "learning_rate": LEARNING_RATE, "seed": SEED}
    names = {"data": str(shards), "model_name_or_path": str(model), "output_dir": str(tmp_path / "run")}
    output = train(launch, run_config(tmp_path / "run.yaml", **{**plan, **names, **options}), tmp_path / "log")
    assert "2 process(es), DEEPSPEED" in output
    assert "packed documents are isolated" in output
    return [entry for entry in history(tmp_path / "run") if "loss" in entry]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0)


def test_offload_to_the_cpu(shards, tiny_model_dir, tmp_path):
    """DeepSpeed's own Adam on weights and states that lie in the CPU's memory."""
    got = run(tmp_path, "cpu_zero3_offload", shards, tiny_model_dir("qwen3"), gradient_checkpointing=True)
    expected = train_plainly(load(tiny_model_dir("qwen3")), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-6, norm=5e-5)
    assert_equal_weights(load(tmp_path / "run").state_dict(), expected.model.state_dict(), atol=2e-5)


def test_adapters_under_zero3(shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    lora = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
    got = run(tmp_path, "cpu_zero3", shards, base, **lora, gradient_checkpointing=True)
    set_seed(SEED)
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    expected = train_plainly(get_peft_model(load(base), LoraConfig(**settings)), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-6, norm=5e-5)
    trained = PeftModel.from_pretrained(load(base), tmp_path / "run")
    assert_equal_weights(
        {n: p for n, p in trained.named_parameters() if "lora_" in n},
        {n: p for n, p in expected.model.named_parameters() if "lora_" in n},
        atol=2e-5,
    )
