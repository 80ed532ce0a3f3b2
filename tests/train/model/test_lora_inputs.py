"""LoRA under autocast without peft's copies of inputs: the same bits, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from transformers import AutoModelForCausalLM

from tests.support.references import LORA, NF4
from tests.support.training import make_shards
from train.model import lora_inputs
from train.model.lora_inputs import leave_as_they_are

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def adapted(folder, **options):
    """Weights in bf16, as of a model that is not trained; adapters in fp32, not zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter.data.float()) * 0.1
    return model.train()


def step(model):
    """Logits and gradients of one step under autocast."""
    ids = torch.randint(4, 260, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def copies(model):
    """How many LoRA layers would copy their input."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return sum(layer.cast_input_dtype_enabled for layer in layers)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 0),
        ({"lora_dropout": 0.25}, 14),  # on a CPU
        ({"use_rslora": True}, 0),
        ({"use_dora": True}, 14),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 1),  # that of the embedding is never read
    ],
    ids=["plain", "dropout", "rslora", "dora", "embedding"],
)
def test_the_same_bits(options, left, tiny_model_dir):
    folder = tiny_model_dir("llama")
    with_copies, without = adapted(folder, **options), adapted(folder, **options)
    leave_as_they_are(without, CPU)
    assert copies(without) == left
    (expected, expected_grads), (got, grads) = step(with_copies), step(without)
    assert torch.equal(got, expected)
    assert set(grads) == set(expected_grads) and len(grads) > 2
    assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)


def test_nothing_is_copied(tiny_model_dir):
    """The adapters' first matrices get the layers' own input."""
    model, seen = adapted(tiny_model_dir("llama")), []
    leave_as_they_are(model, CPU)
    for module in model.modules():
        if isinstance(module, Linear):
            module.lora_A["default"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    step(model)
    assert len(seen) == 14 and set(seen) == {torch.bfloat16}


def test_dropout_on_a_gpu(tiny_model_dir):
    """Its kernel multiplies in fp32: no copy is needed."""
    model = adapted(tiny_model_dir("llama"), lora_dropout=0.25)
    leave_as_they_are(model, GPU)
    assert copies(model) == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("lora")
    return make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 12}, eval_fraction=0.3)


def train(folder, shards, model, **options):
    from tests.support.in_process import train_here

    more = {"max_steps": 2, "bf16": True, "dtype": "bfloat16", "eval_strategy": "steps", "eval_steps": 1, **options}
    return train_here(folder, data=str(shards), model_name_or_path=str(model), sample_max_new_tokens=4, **more)


def losses(history):
    return [(entry["loss"], entry["grad_norm"]) for entry in history]


def test_in_training_with_samples(shards, tiny_model_dir, tmp_path, monkeypatch):
    """Evaluation and generation run the same layers; with quantised weights as well."""
    base = tiny_model_dir("llama")
    without = train(tmp_path / "without", shards, base, **LORA)
    assert (tmp_path / "without" / "run" / "samples.jsonl").exists()
    calls = []
    monkeypatch.setattr(lora_inputs, "leave_as_they_are", lambda model, device: calls.append(copies(model)))
    assert losses(without) == losses(train(tmp_path / "with", shards, base, **LORA)) and calls == [14]


def test_in_training_of_quantised_weights(shards, tiny_model_dir, tmp_path):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 128}
    train(tmp_path, shards, tiny_model_dir("llama", **sizes), **LORA, **NF4)
    assert (tmp_path / "run" / "samples.jsonl").exists()
