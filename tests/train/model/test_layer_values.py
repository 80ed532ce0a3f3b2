"""Sizes layer by layer: one for all, or other ones in some layers as in Gemma 4."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from train.loop.throughput import model_flops
from train.model.layer_values import head_sizes, of_layers


@pytest.fixture
def gemma4():
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 0}
    types = ["sliding_attention", "full_attention"] * 2
    return AutoConfig.for_model("gemma4_text", **sizes, **more, layer_types=types)


def test_one_for_all():
    config = AutoConfig.for_model("llama", num_hidden_layers=3, hidden_size=64, num_attention_heads=4, head_dim=None)
    assert head_sizes(config) == [16] * 3
    assert of_layers(config, "no_such_value") == [None] * 3


def test_other_ones_in_some_layers(gemma4):
    with pytest.raises(RuntimeError):  # what transformers does
        _ = gemma4.head_dim
    assert head_sizes(gemma4) == [256, 512, 256, 512]


def test_a_model_without_attention():
    config = AutoConfig.for_model("mamba", num_hidden_layers=2, hidden_size=64)
    assert head_sizes(config) == [0, 0]


def test_flops_count_each_layers_own_heads(gemma4):
    found = model_flops(AutoModelForCausalLM.from_config(gemma4))
    assert found.per_pair == {gemma4.sliding_window: 2 * 12 * 4 * 256, None: 2 * 12 * 4 * 512}
