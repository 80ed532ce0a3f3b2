"""Exports have the names that programs with transformers 4 look for, and transformers 5 reads the same from them."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from tests.support.export_runs import add_checkpoint, run_export
from train.serving.export_tokenizer import copy_tokenizer
from train.serving.older_readers import with_old_config_names, with_old_tokenizer_names

DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 1024}
GEMMA = {"full_attention": {"rope_theta": 1e6, **LINEAR}, "sliding_attention": {"rope_theta": 2e4, **DEFAULT}}


@pytest.mark.parametrize(
    ("model_type", "rotary", "old"),
    [
        ("qwen3", {"rope_theta": 1e6, **DEFAULT}, {"rope_theta": 1e6}),
        ("llama", {"rope_theta": 5e5, **LLAMA3}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            "phi3",
            {"rope_theta": 2e4, "partial_rotary_factor": 0.75, **DEFAULT},
            {"rope_theta": 2e4, "partial_rotary_factor": 0.75},
        ),
        ("gemma3_text", GEMMA, {"rope_theta": 1e6, "rope_scaling": LINEAR, "rope_local_base_freq": 2e4}),
        ("gemma3_text", {"other": {"rope_theta": 1e6, **DEFAULT}}, {}),  # no old names for it
    ],
)
def test_rotary_embeddings_by_their_old_names(model_type, rotary, old, tmp_path):
    config = {"model_type": model_type, "rope_parameters": rotary, "dtype": "bfloat16"}
    named = with_old_config_names(config)
    assert named == {**config, **old, "torch_dtype": "bfloat16"}
    assert with_old_config_names({"text_config": config}) == {"text_config": named}
    (tmp_path / "config.json").write_text(json.dumps(named))
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.rope_parameters.items() >= rotary.items() and str(read.dtype) == "torch.bfloat16"


def test_a_tokenizer_by_its_old_names():
    config = {
        "extra_special_tokens": ["<a>"],
        "tokenizer_class": "TokenizersBackend",
        "is_local": True,
        "pad_token": "<p>",
    }
    old = {"additional_special_tokens": ["<a>"], "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<p>"}
    assert with_old_tokenizer_names(config) == old == with_old_tokenizer_names(old)
    named = {"model_specific_special_tokens": {"boi_token": "<b>"}, "tokenizer_class": "GemmaTokenizer"}
    old = {"extra_special_tokens": {"boi_token": "<b>"}, "tokenizer_class": "GemmaTokenizer"}
    assert with_old_tokenizer_names(named) == old


def test_an_export_has_them(tiny_run, tiny_model_dir, tiny_tokenizer, tmp_path):
    add_checkpoint(tiny_run, 0, tiny_model_dir("qwen3", rope_parameters={"rope_theta": 1e6, **DEFAULT}))
    run_export(tiny_run, tmp_path / "out")
    config, tokenizer = (
        json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("config", "tokenizer_config")
    )
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    assert tokenizer["additional_special_tokens"] == ["<|im_start|>"]
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.all_special_ids == tiny_tokenizer.all_special_ids


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_real_tokenizers_are_read_the_same_by_them(name, shared_data, tmp_path):
    (tmp_path / "out").mkdir()
    source = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    source.chat_template = source.chat_template or "{% for m in messages %}{{ m.content }}{% endfor %}"
    source.save_pretrained(tmp_path / "shards")
    copy_tokenizer(tmp_path / "shards", tmp_path / "out")  # compares special tokens and texts
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("out", "shards"))
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
