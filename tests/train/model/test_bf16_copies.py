"""bf16 copies take the places of fp32 weights, and hand their gradients on; the numbers: tests/system/test_modes.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from train.model.bf16_copies import Bf16Copies, make


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.float32)


IDS = torch.arange(4, 20)[None]


def test_in_place_everything_is_bf16(model):
    copies = Bf16Copies(model)
    weights = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    with copies.in_place():
        output = model(input_ids=IDS, output_hidden_states=True)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert {x.dtype for x in (*output.hidden_states, output.logits)} == {torch.bfloat16}
    for name, weight in model.named_parameters():
        assert weight is weights[name][0] and torch.equal(weight, weights[name][1]), name


def test_gradients_are_added_up_in_fp32(model):
    """Many small gradients beside a large one: a sum in bf16 would not see them."""
    copies, weight = Bf16Copies(model), model.model.norm.weight
    steps = [1.0, *[2.0**-9] * 64]
    for size in steps:
        with copies.in_place():
            (model.model.norm.weight * size).sum().backward()
            assert model.model.norm.weight.grad is None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad, torch.full_like(weight, sum(steps)), rtol=1e-6, atol=0)


def test_a_tied_weight_has_one_copy(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("gemma3"), dtype=torch.float32)
    with Bf16Copies(model).in_place():
        assert model.lm_head.weight is model.model.embed_tokens.weight
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.grad is not None


def test_copies_are_made_anew_when_told(model):
    copies, weight = Bf16Copies(model), model.model.norm.weight
    for outdated, expected in ((False, 1.0), (True, 2.0)):
        with copies.in_place():
            pass
        with torch.no_grad():
            weight.fill_(2.0)
        if outdated:
            copies.outdate()
        with copies.in_place():
            assert model.model.norm.weight[0] == expected


def test_weights_come_back_after_an_error(model):
    weight = model.model.norm.weight
    with pytest.raises(ZeroDivisionError), Bf16Copies(model).in_place():
        1 / 0  # noqa: B018
    assert model.model.norm.weight is weight


@pytest.mark.parametrize("kept", ["norm", "mlp.up_proj", "input_layernorm.weight"])
def test_what_transformers_keeps_in_fp32_stays(kept, tiny_model_dir, monkeypatch):
    """As it loads the model in bf16."""
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {kept})
    loaded, model = (
        LlamaForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=d) for d in ("bfloat16", "float32")
    )
    with Bf16Copies(model).in_place():
        found = {name: weight.dtype for name, weight in model.named_parameters()}
    assert found == {name: weight.dtype for name, weight in loaded.named_parameters()}
    assert set(found.values()) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("precision", "kind", "dtype", "expected"),
    [
        ("no", "NO", torch.float32, "expected bf16: true, found mixed precision 'no'"),
        ("bf16", "DEEPSPEED", torch.float32, "one process without DeepSpeed or FSDP, found DEEPSPEED"),
        ("bf16", "NO", torch.bfloat16, "expected weights in fp32, found none"),
    ],
)
def test_refused_at_the_start(precision, kind, dtype, expected, model):
    accelerator = SimpleNamespace(mixed_precision=precision, distributed_type=SimpleNamespace(value=kind))
    with pytest.raises(ValueError, match=expected):
        make(SimpleNamespace(accelerator=accelerator, model=model.to(dtype)))
