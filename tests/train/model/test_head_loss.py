"""The proof of the loss head: it passes what TRL's fused head computes, and refuses what has more."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tests.support.small_models import small_config
from train.model import head_loss


def small(kind: str, dtype=torch.float32):
    model = AutoModelForCausalLM.from_config(small_config(kind), dtype=dtype)
    add_fused_lm_head(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite", "gpt2", "gemma3", "gemma4_text"])
def test_passes(kind, dtype):
    """With a soft cap, a scale, tied embeddings, and of a model with a vision part."""
    model = small(kind, dtype)
    assert head_loss.difference(model) < 0.02
    head_loss.check(model)


@pytest.mark.parametrize("kind", ["modernbert-decoder", "recurrent_gemma"])
def test_refuses_a_head_with_more(kind):
    """A layer before the output embeddings, and a cap that TRL does not know."""
    with pytest.raises(ValueError, match="head does more than multiply by the output embeddings"):
        head_loss.check(small(kind))


def test_an_adapted_model():
    from peft import LoraConfig, get_peft_model

    model = small("modernbert-decoder")
    with pytest.raises(ValueError, match="head does more"):
        head_loss.check(get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")))
    head_loss.check(get_peft_model(small("llama"), LoraConfig(r=2, target_modules="all-linear")))


def test_nothing_is_left_behind():
    """Neither the stand-in for the backbone nor a gradient."""
    model = small("llama")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        head_loss.check(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(model.base_model)
    assert all(weight.grad is None for weight in model.parameters())


def test_weights_that_are_elsewhere_are_not_compared():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("llama"))
    add_fused_lm_head(model)
    assert head_loss.difference(model) is None
