"""train.checks.model_files: each way in which a model's files do not suit the shards or the run is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.preflight_files import WORDS, write_model, write_shards, write_tokenizer
from tests.support.preflight_runs import CPU, problems
from train.config.run_config import load_run_config
from train.preflight import examine


class TestModel:
    def with_model(self, flags, folder: Path, *more: str) -> str:
        return problems([*flags[:2], *flags[4:], "--model_name_or_path", str(folder), *more])

    def test_no_folder(self, flags, tmp_path):
        assert "expected a model folder, found none at" in self.with_model(flags, tmp_path / "nowhere")

    def test_a_hub_model_that_is_not_here(self, flags, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        found = problems([*flags[:2], *flags[4:], "--model_name_or_path", "nobody/nothing"])
        assert "nobody/nothing is no folder here, and not in the hub cache while HF_HUB_OFFLINE is set" in found
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        config = load_run_config([*flags[:2], *flags[4:], "--model_name_or_path", "nobody/nothing"])
        report = examine(config, accelerate_config=None, world_size=1)
        assert not report.problems
        assert any("nobody/nothing is not on this machine" in note for note in report.notes)

    def test_an_adapter_or_an_empty_folder(self, flags, model):
        (model / "model.safetensors").unlink()
        assert "expected weights" in problems(flags)
        (model / "config.json").rename(model / "adapter_config.json")
        assert "holds an adapter, not a model" in problems(flags)
        (model / "adapter_config.json").unlink()
        assert "expected config.json" in problems(flags)

    def test_pickled_weights(self, flags, model):
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        assert "are pickled (*.bin), and loading them can run any code" in problems(flags)
        assert problems(flags, "--allow_pickle") == ""

    def test_label_smoothing_would_drop_the_balancing_loss(self, flags, model):
        write_model(model, router_aux_loss_coef=0.001)
        assert problems(flags) == ""
        smoothing = ["--label_smoothing_factor", "0.1"]
        assert "(router_aux_loss_coef 0.001) would silently be left out" in problems(flags, *smoothing)
        assert problems(flags, *smoothing, "--router_aux_loss_coef", "0") == ""

    def test_padding_would_be_in_the_balancing_loss(self, flags, model):
        write_model(model, router_aux_loss_coef=0.001)
        assert "would count padding" in problems(flags, "--pad_to_multiple_of", "16")
        assert problems(flags, "--pad_to_multiple_of", "16", "--router_aux_loss_coef", "0") == ""
        assert problems(flags, "--pad_to_multiple_of", "none") == ""

    def test_layers_that_cannot_be_packed(self, flags, model):
        write_model(model, model_type="llama4_text", layer_types=["chunked_attention", "full_attention"])
        assert "model_type llama4_text has chunked_attention" in problems(flags)

    def test_documents_longer_than_the_context(self, flags, model, tmp_path):
        write_model(model, max_position_embeddings=7)
        assert "max_position_embeddings is 7, the longest document" in problems(flags)
        # Positions start again with each document: rows may be longer than the context.
        write_model(model, max_position_embeddings=8)
        assert problems(flags) == ""

    def test_a_language_model_inside_a_multimodal_one(self, flags, model):
        settings = {"vocab_size": 8, "max_position_embeddings": 7}
        (model / "config.json").write_text(json.dumps({"text_config": settings}))
        assert "max_position_embeddings is 7" in problems(flags)

    def test_token_ids_without_an_embedding(self, flags, model):
        write_model(model, vocab_size=5)
        assert "vocab_size is 5, the shards hold token id 5: they were made with another tokenizer" in problems(flags)

    def test_unused_token_ids_need_no_embedding(self, flags, tmp_path):
        shards = write_shards(tmp_path / "few", largest_id=4)
        write_model(tmp_path / "model", vocab_size=5)
        assert problems([*flags[2:], "--data", str(shards)]) == ""

    @pytest.mark.parametrize(
        ("vocabulary", "words"),
        [
            (
                {**WORDS, "one": 3, "two": 2},
                "2 of 6 tokens in common have other ids; 'one' is id 2 in the shards and 3",
            ),
            ({"a": 0, "b": 1, "c": 2, "d": 3, "four": 5}, "only 1 of the shards' 6 tokens are tokens of the model"),
        ],
    )
    def test_another_tokenizer(self, flags, model, vocabulary, words):
        write_tokenizer(model, vocabulary)
        found = problems(flags)
        assert "the shards were made with another tokenizer than the model's" in found
        assert words in found

    def test_a_tokenizer_of_the_same_vocabulary(self, flags, model, shards):
        write_tokenizer(model, {**WORDS, "five": 6})
        assert problems(flags) == ""
        base = {token: i for token, i in WORDS.items() if token != "<end>"}
        write_tokenizer(shards / "tokenizer", base, added={"<end>": 1, "<turn>": 7})  # the instruct model's
        assert problems(flags) == ""

    def test_a_model_without_a_tokenizer_passes(self, flags, model):
        (model / "tokenizer.json").unlink()
        assert problems(flags) == ""

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    @pytest.mark.parametrize("text", ["[1]", "{"])
    def test_files_that_cannot_be_read(self, flags, model, name, text):
        (model / name).write_text(text)
        assert f"{model / name}: " in problems(flags)

    def test_a_unigram_vocabulary(self, flags, model):
        content = {"model": {"type": "Unigram", "vocab": [[token, 0.0] for token in reversed(WORDS)]}}
        (model / "tokenizer.json").write_text(json.dumps(content))
        assert "6 of 6 tokens in common have other ids" in problems(flags)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--attn_implementation", "flash_attention_2"], "flash_attention_2 needs a GPU, but use_cpu is true"),
            (["--attn_implementation", "flex"], "attn_implementation: 'flex' is not known to keep"),
            (["--use_liger_kernel"], "use_liger_kernel: needs the package liger_kernel"),
            (["--report_to", "mlflow", "wandb"], "report_to mlflow: needs the package mlflow"),
            (["--optim", "galore_adamw"], "optim galore_adamw: needs the package galore_torch"),
        ],
    )
    def test_what_is_not_there(self, flags, more, words, monkeypatch):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name: None if name in ("liger_kernel", "mlflow", "galore_torch") else name,
        )
        assert words in problems(flags, *more)

    def test_flash_attention_is_not_installed(self, flags, monkeypatch):
        monkeypatch.setattr("train.model.attention.has_distribution", lambda name: False)
        gpu = [flag for flag in flags if flag not in CPU]
        found = problems(gpu, "--attn_implementation", "flash_attention_2")
        assert "flash_attention_2: flash-attn is not installed" in found
        monkeypatch.setattr("train.model.attention.has_distribution", lambda name: name == "flash-attn")
        assert problems(gpu, "--attn_implementation", "flash_attention_2") == ""

    def test_an_attention_kernel_from_the_hub_needs_its_package(self, flags, monkeypatch):
        gpu = [flag for flag in flags if flag not in CPU]
        found = problems(gpu, "--attn_implementation", "kernels-community/flash-attn2")
        assert "kernels-community/flash-attn2: 'kernels>=" in found and "is not installed" in found
        monkeypatch.setattr("train.model.hub_kernels._package_missing", lambda: None)
        for asked in ("kernels-community/flash-attn2", "flash_attention_2"):
            found = problems(gpu, "--attn_implementation", asked)
            assert "the kernel kernels-community/flash-attn2 v4 is not in the hub cache" in found

    def test_remote_code_is_noted(self, flags):
        report = examine(load_run_config([*flags, "--trust_remote_code"]), accelerate_config=None, world_size=1)
        assert any("trust_remote_code is on" in note for note in report.notes)

    def test_bf16_weights_without_deepspeed_are_noted(self, flags, launch_file):
        config = load_run_config([*flags, "--dtype", "bfloat16"])
        alone = examine(config, accelerate_config=None, world_size=1)
        assert any("small updates to bfloat16 weights are rounded away" in note for note in alone.notes)
        assert not any("rounded" in n for n in examine(config, accelerate_config=launch_file(), world_size=2).notes)

    @pytest.mark.parametrize(
        ("more", "kind", "words"),
        [
            ([], "NO", "use bf16_copies: true on one GPU, or ZeRO"),
            (["--use_peft", "--lora_target_modules", "q_proj"], "NO", "use dtype: bfloat16"),
            (["--dtype", "bfloat16"], "NO", ""),
            (["--bf16", "false"], "NO", ""),
            (["--use_cpu", "--bf16"], "NO", ""),
            ([], "DEEPSPEED", ""),
            ([], "FSDP", ""),
        ],
    )
    def test_experts_in_fp32_are_noted(self, more, kind, words, flags, model, launch_file):
        write_model(model, num_experts=4)
        config = load_run_config([*(flag for flag in flags if flag not in CPU), *more])
        file = launch_file(distributed_type=kind)
        notes = [n for n in examine(config, accelerate_config=file, world_size=None).notes if "experts' weights" in n]
        assert len(notes) == bool(words) and words in "".join(notes)
        write_model(model)
        assert "experts" not in "".join(examine(config, accelerate_config=file, world_size=None).notes)
