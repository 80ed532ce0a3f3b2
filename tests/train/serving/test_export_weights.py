"""train.serving.export_weights: copied, merged and rebuilt weights equal what was trained, and bad ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from data_prep.shards import manifest_sha256
from tests.support.export_runs import add_checkpoint, run_export
from tests.support.training import make_shards, run_config
from tests.support.worlds import Worlds
from train.checkpoint.folders import publish
from train.serving.adapters import tensor_shapes
from train.serving.export_tokenizer import PROBES, strip_generation_marks
from train.serving.export_weights import _check_token_rows

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_the_export_loads_plainly_and_equals_the_checkpoint(
    architecture, tiny_run, tiny_shards, tiny_model_dir, tiny_tokenizer, tmp_path
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    checkpoint = tiny_run / "checkpoint-1"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(architecture), dtype=torch.bfloat16)
    model.config.use_cache = False  # as gradient checkpointing leaves it
    model.generation_config.eos_token_id = [7, 8]  # ordinary words here
    model.generation_config.repetition_penalty = 1.1
    model.save_pretrained(checkpoint)
    publish(checkpoint, step=1, world_size=1, extra={})
    output = tmp_path / "deep" / "out"
    run_export(checkpoint, output)

    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert loaded.dtype == torch.bfloat16 and loaded.config.use_cache is True
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert "generation %}" not in tokenizer.chat_template
    for messages in PROBES:
        expected = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    generation = GenerationConfig.from_pretrained(output)
    assert (generation.eos_token_id, generation.pad_token_id, generation.bos_token_id) == ([3], 0, 1)
    assert generation.repetition_penalty == 1.1
    assert not list(output.glob("*.bin")) and not (output / "optimizer.pt").exists()


def test_a_model_that_does_not_load_cleanly_is_refused(tiny_run, tiny_model_dir, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    def refused(weights: dict) -> str:
        shutil.rmtree(tiny_run / "checkpoint-1", ignore_errors=True)
        folder = add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        publish(folder, step=1, world_size=1, extra={})
        with pytest.raises(SystemExit) as error:
            run_export(tiny_run, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    good = load_file(tiny_model_dir("llama") / "model.safetensors")
    assert "missing_keys" in refused({k: v for k, v in good.items() if k != "lm_head.weight"})
    assert "unexpected_keys" in refused({**good, "model.surplus": torch.zeros(1)})
    assert "does not load" in refused({**good, "model.norm.weight": torch.ones(16)})
    nan = {**good, "lm_head.weight": good["lm_head.weight"].clone()}
    nan["lm_head.weight"][0, 0] = float("nan")
    assert "lm_head.weight holds NaN" in refused(nan)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_run, tiny_model_dir, tmp_path):
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama", vocab_size=500))
    with pytest.raises(SystemExit, match=r"the shards hold the token id 5\d\d, the model rows for 500"):
        run_export(tiny_run, tmp_path / "out")
    shutil.rmtree(json.loads((tiny_run / "run.json").read_text())["data"])
    with pytest.raises(SystemExit, match="the tokenizer has 592 tokens, the model rows for 500"):
        run_export(tiny_run, tmp_path / "out")


def test_tensor_shapes_reads_headers(tiny_model_dir):
    shapes = tensor_shapes([tiny_model_dir("llama") / "model.safetensors"])
    assert shapes["lm_head.weight"] == ([592, 32], "F32")


def make_adapter(base_dir: Path, **options):
    """A LoRA model over `base_dir` with random, non-zero adapters."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def lora_run(tiny_run, tiny_model_dir, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("llama"), base)
    model = make_adapter(base)
    model.save_pretrained(tiny_run / "checkpoint-1")
    publish(tiny_run / "checkpoint-1", step=1, world_size=1, extra={})
    return tiny_run, model, base


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(4, 40)[None]).logits


def test_a_lora_adapter_is_merged_into_its_base(lora_run, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tiny_run, model, base = lora_run
    run_export(tiny_run, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == "LlamaForCausalLM" and not (tmp_path / "out" / "adapter_config.json").exists()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(AutoModelForCausalLM.from_pretrained(base)) - logits(model)).abs().max() > 0.01


def test_a_lora_adapter_can_be_kept_and_its_base_can_be_elsewhere(lora_run, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tiny_run, model, base = lora_run
    moved = base.rename(tmp_path / "moved-base")
    with pytest.raises(SystemExit, match="say where it is now with --base_model"):
        run_export(tiny_run, tmp_path / "out")
    run_export(tiny_run, tmp_path / "out", "--keep_adapter", "--base_model", str(moved))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_an_adapter_file_that_lacks_weights_is_refused(lora_run, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_run, _, _ = lora_run
    path = tiny_run / "checkpoint-1" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, path)
    publish(path.parent, step=1, world_size=1, extra={})
    for option in ([], ["--keep_adapter"]):
        with pytest.raises(SystemExit, match="lacks 4 adapter weights"):
            run_export(tiny_run, tmp_path / "out", *option)
    path.unlink()
    publish(path.parent, step=1, world_size=1, extra={})
    with pytest.raises(SystemExit, match="expected adapter_model"):
        run_export(tiny_run, tmp_path / "out")


# --- ZeRO-3 ---------------------------------------------------------------------------------------------------------


def train_under_zero3(worlds: Worlds, folder: Path, model_dir: Path, *options: str) -> Path:
    """Two steps on two processes, with the shipped configs but that weights are not gathered; the run directory."""
    import yaml

    deepspeed_config = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    (folder / "zero3.json").write_text(json.dumps(deepspeed_config))
    launch_config = yaml.safe_load((ROOT / "configs/accelerate/cpu_zero3.yaml").read_text())
    launch_config["deepspeed_config"]["deepspeed_config_file"] = str(folder / "zero3.json")
    (folder / "cpu_zero3.yaml").write_text(yaml.safe_dump(launch_config))
    words = [model_dir, folder / "run", *options]
    codes, said = worlds.run_module(str(folder / "cpu_zero3"), "tests.support.zero_run", words, folder / "log")
    assert codes == [0, 0], said[-3000:]
    return folder / "run"


def assert_weights_equal(exported: Path, reference: Path) -> None:
    import torch
    from safetensors.torch import load_file

    found, expected = load_file(exported / "model.safetensors"), load_file(reference)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_zero3_partitions_are_rebuilt_in_the_models_dtype(worlds, tiny_model_dir, tmp_path):
    """stage3_gather_16bit_weights_on_model_save false saves no weights, only partitions; here tied and in bf16."""
    run = train_under_zero3(worlds, tmp_path, tiny_model_dir("qwen3"), "--bf16")
    for number, source in enumerate((run, run / "checkpoint-2")):
        assert not list(source.glob("*model*.safetensors"))
        run_export(source, tmp_path / f"out{number}")
        assert_weights_equal(tmp_path / f"out{number}", run / "reference.safetensors")
    record = json.loads((tmp_path / "out1" / "export.json").read_text())
    assert record["weights"] == "rebuilt from ZeRO partitions"
    os.truncate(next((run / "checkpoint-2").glob("global_step2/*rank_1*optim_states.pt")), 100)
    with pytest.raises(SystemExit, match=r"rank_1_mp_rank_00_optim_states\.pt has 100 bytes"):
        run_export(run / "checkpoint-2", tmp_path / "damaged")


def test_a_run_of_train_sft_under_zero3_exports_gathered_and_rebuilt_alike(
    worlds, tiny_model_dir, tiny_tokenizer, tmp_path
):
    """The project's own path: shards, train.sft on two processes, final model and checkpoint."""
    from transformers import AutoTokenizer

    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"a": [1] * 40})
    run = tmp_path / "run"
    options = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama")), "output_dir": str(run)}
    config = run_config(tmp_path / "run.yaml", **options, max_steps=2, save_strategy="steps", save_steps=2)
    worlds.train("cpu_zero3", config, tmp_path / "log")
    checkpoint = run / "checkpoint-2"
    run_export(run, tmp_path / "final")
    run_export(checkpoint, tmp_path / "gathered")
    before = checkpoint / "model.safetensors"
    before.rename(tmp_path / "gathered.safetensors")
    publish(checkpoint, step=2, world_size=2, extra={})
    run_export(checkpoint, tmp_path / "rebuilt")
    for output, how in (("final", "copied"), ("gathered", "copied"), ("rebuilt", "rebuilt from ZeRO partitions")):
        assert_weights_equal(tmp_path / output, tmp_path / "gathered.safetensors")
        record = json.loads((tmp_path / output / "export.json").read_text())
        assert (record["weights"], record["step"]) == (how, 2)
        assert record["manifest_sha256"] == manifest_sha256(shards)
    exported = AutoTokenizer.from_pretrained(tmp_path / "final").chat_template
    assert exported == strip_generation_marks(AutoTokenizer.from_pretrained(shards / "tokenizer").chat_template)


def test_a_lora_adapter_trained_under_zero3_is_whole_and_merged(worlds, tiny_model_dir, tmp_path):
    """Adapters are gathered even where stage3_gather_16bit_weights_on_model_save is false."""
    import torch
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = tiny_model_dir("llama")
    run = train_under_zero3(worlds, tmp_path, base, "--lora")
    trained = PeftModel(AutoModelForCausalLM.from_pretrained(base), PeftConfig.from_pretrained(run))
    trained.load_state_dict(load_file(run / "reference.safetensors"))
    assert any(p.abs().max() > 0 for n, p in trained.named_parameters() if "lora_B" in n)
    run_export(run / "checkpoint-2", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained.eval()), rtol=1e-5, atol=1e-5)


def test_a_special_token_that_no_chat_uses_may_lie_beyond_the_model(tiny_tokenizer):
    """As in the text-only Gemma 3, whose tokenizer has a token for images."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    assert len(tokenizer) == rows + 1
    _check_token_rows(tokenizer, rows)
    tokenizer.chat_template += "{{ '<image>' }}"
    with pytest.raises(ValueError, match="do not belong together"):
        _check_token_rows(tokenizer, rows)
