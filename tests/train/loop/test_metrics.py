"""Train metrics: the losses per source make up the loss, tokens are the shards', operations are the formula's."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.shards import read_manifest
from tests.support.in_process_trainer import make_trainer
from tests.support.training import document_loss, documents, make_shards
from train.loop.throughput import attended_pairs, model_flops


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6], "train": [2] * 3}
    return make_shards(tmp_path_factory.mktemp("monitoring"), tiny_tokenizer.name_or_path, answers)


@pytest.fixture(scope="module")
def trained(shards, tiny_model_dir, tmp_path_factory):
    """Two epochs of one step each (accumulation, a filler row), and what was logged."""
    options = {"gradient_accumulation_steps": 5, "num_train_epochs": 2, "learning_rate": 0.0}
    trainer = make_trainer(shards, tiny_model_dir("llama"), tmp_path_factory.mktemp("run"), **options)
    assert len(trainer.train_dataset) == 5 and trainer.train_dataset[4]["input_ids"].tolist() == [3]
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def test_losses_per_source_equal_separate_documents(trained, shards, tiny_model_dir):
    _, logged = trained
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.float32)
    sums = {0: [0.0, 0], 1: [0.0, 0], 2: [0.0, 0]}
    with torch.no_grad():
        for document in documents(shards, "train"):
            loss, tokens = document_loss(model, document)
            sums[document[2]][0] += loss.item()
            sums[document[2]][1] += tokens
    for entry in logged:
        for source, name in enumerate(("short", "long", "train")):
            assert entry[f"loss_{name}"] == pytest.approx(sums[source][0] / sums[source][1], rel=1e-6)
        whole = sum(sums[i][1] * entry[f"loss_{name}"] for i, name in enumerate(("short", "long", "train")))
        assert whole / sum(n for _, n in sums.values()) == pytest.approx(entry["loss"], rel=1e-6)
        assert 0 <= entry["token_accuracy"] <= 1 and 0 <= entry["token_accuracy_long"] <= 1


def test_an_epoch_counts_the_shards_tokens(trained, shards):
    _, logged = trained
    split = read_manifest(shards)["splits"]["train"]
    assert [entry["num_tokens"] for entry in logged] == [split["tokens"], 2 * split["tokens"]]
    for entry in logged:
        share = entry["trained_tokens_per_second_per_gpu"] / entry["tokens_per_second_per_gpu"]
        assert share == pytest.approx(split["trained_tokens"] / split["tokens"])
        assert entry["tokens_per_second_per_gpu"] * entry["step_seconds"] == pytest.approx(split["tokens"])
        assert 0 < entry["data_wait_share"] < 1 and entry["memory_peak_gib"] > 0
        assert "mfu" not in entry  # a CPU's peak is not known
        assert not {"entropy", "mean_token_accuracy"} & set(entry)
    assert logged[0]["hours_left"] > 0 == logged[1]["hours_left"]


def test_attended_pairs_by_counting():
    lengths = [1, 5, 9, 20]
    for window in (None, 1, 4, 9, 64):
        counted = sum(min(i + 1, window or i + 1) for n in lengths for i in range(n))
        assert attended_pairs(torch.tensor(lengths), window).item() == counted


def test_operations_of_a_dense_model_by_hand(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    flops = model_flops(model)
    attention, mlp = 32 * 32 + 2 * 32 * 16 + 32 * 32, 3 * 32 * 64  # hidden 32, 4 heads of 8, 2 of keys and values
    assert flops.per_token == 6 * 2 * (attention + mlp)
    assert flops.per_trained_token == 6 * 32 * model.config.vocab_size
    assert flops.per_pair == {None: 2 * 12 * 4 * 8}


def test_operations_with_windows_frozen_weights_and_adapters(tiny_model_dir):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("gemma3"))
    full = model_flops(model)
    assert full.per_pair == {16: 12 * 4 * 8, None: 12 * 4 * 8}
    adapted = model_flops(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")))
    assert adapted.per_token == full.per_token * 4 // 6 + 6 * 2 * 4 * (32 + 32)
    assert adapted.per_trained_token == full.per_trained_token * 4 // 6


def test_operations_of_a_mixture_of_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    config = MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2
    )
    attention, router, experts = 4 * 16 * 16, 16 * 8, 2 * 3 * 16 * 32
    assert model_flops(MixtralForCausalLM(config)).per_token == 6 * (attention + router + experts)
