"""What transformers serve, vLLM and llama.cpp's converter read of an export is there, by file and key.

vLLM and llama.cpp do not run here: docs/serving.md says what each reads, and this looks for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.support.export_runs import add_checkpoint, run_export

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
CONFIG = ("architectures", "model_type", "vocab_size", "max_position_embeddings", *SIZES)
READ = {
    "transformers serve": {
        "config.json": (*CONFIG, "dtype"),
        "generation_config.json": ("eos_token_id", "pad_token_id"),
        "tokenizer.json": ("model", "added_tokens"),
        "tokenizer_config.json": ("eos_token",),
    },
    "vLLM": {
        "config.json": (*CONFIG, "torch_dtype", "rope_theta"),  # by the names of version 4 as well
        "generation_config.json": ("eos_token_id",),
        "tokenizer.json": ("model", "added_tokens"),
        "tokenizer_config.json": ("tokenizer_class",),
    },
    "llama.cpp": {
        "config.json": (*CONFIG, "rope_theta", "rms_norm_eps"),
        "tokenizer.json": ("model", "added_tokens", "pre_tokenizer"),
        "tokenizer_config.json": ("eos_token",),
    },
}


@pytest.fixture(params=["llama", "qwen3"])
def export(request, tiny_run, tiny_model_dir, tmp_path) -> Path:
    add_checkpoint(tiny_run, 1, tiny_model_dir(request.param))
    run_export(tiny_run, tmp_path / "out")
    return tmp_path / "out"


def test_each_program_finds_what_it_reads(export):
    for program, files in READ.items():
        for name, keys in files.items():
            content = json.loads((export / name).read_text(encoding="utf-8"))
            assert not [key for key in keys if content.get(key) is None], f"{program}: {name}"


def test_weights_and_ids_belong_together(export):
    """Readers map tensors by their names, and take ids from three files."""
    config, generation = (json.loads((export / name).read_text()) for name in ("config.json", "generation_config.json"))
    (weights,) = export.glob("*.safetensors")
    with safe_open(weights, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [config["vocab_size"], config["hidden_size"]]
    for layer in range(config["num_hidden_layers"]):
        parts = {name for name in names if name.startswith(f"model.layers.{layer}.")}
        assert any("self_attn.q_proj" in name for name in parts) and any("mlp.down_proj" in name for name in parts)
    assert ("lm_head.weight" in names) != bool(config.get("tie_word_embeddings"))
    added = json.loads((export / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    tokens = {token["id"]: token["content"] for token in added}
    ends = [tokens[token_id] for token_id in generation["eos_token_id"]]
    assert json.loads((export / "tokenizer_config.json").read_text())["eos_token"] in ends
    assert max(tokens) < config["vocab_size"]


def test_the_template_is_jinja_without_tags_of_transformers(export):
    """A plain Jinja environment, as llama.cpp and vLLM's clients have, reads it and ends a turn with the end token."""
    from jinja2 import Environment

    source = (export / "chat_template.jinja").read_text(encoding="utf-8")
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    text = template.render(messages=[{"role": "user", "content": "사과?"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n사과?<|im_end|>\n<|im_start|>assistant\n"
