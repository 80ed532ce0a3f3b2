"""An export is proven to be the model that was trained; a wrong one is caught and not written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from data_prep.shards import read_manifest
from tests.support.export_runs import add_checkpoint, run_export
from tests.support.preflight_files import write_shards
from train.checkpoint.folders import publish
from train.run.model_identity import model_digests
from train.serving import adapters, export_proof, export_weights, loaded_models
from train.serving.export_proof import (
    DOCUMENT_TOKENS,
    MOST_TOKENS,
    TOLERANCES,
    HeldOut,
    Prover,
    choose_documents,
)

LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
KINDS = {
    "lora": LINEAR,
    "dora": {**LINEAR, "use_dora": True},
    "rslora": {**LINEAR, "use_rslora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora_embeddings": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "saved_embeddings": {**LINEAR, "modules_to_save": ["embed_tokens"]},
    "saved_head": {**LINEAR, "modules_to_save": ["lm_head"]},
    "saved_both": {**LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings_saved_head": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    "parameters": {**LINEAR, "target_parameters": ["up_proj.weight"]},
    "embedding_parameters": {**LINEAR, "target_parameters": ["embed_tokens.weight"]},
}


@pytest.fixture
def adapter_run(tiny_run, tiny_model_dir, tmp_path):
    """Factory: a run whose checkpoint holds an adapter that changes much, and the model as it was trained."""

    def make(architecture: str, kind: str, load=None, **extra):
        base = tmp_path / "base"
        shutil.copytree(tiny_model_dir(architecture), base)
        model = AutoModelForCausalLM.from_pretrained(base, **(load or {}))
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # as training does
        model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **KINDS[kind]))
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tiny_run / "checkpoint-1")
        marker = {"base_model": model_digests(str(base)), "model": str(base), **extra}
        publish(tiny_run / "checkpoint-1", step=1, world_size=1, extra=marker)
        return model.eval()

    return make


def proof_in(folder) -> dict:
    return json.loads((folder / "export.json").read_text())["proof"]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(4, 40)[None]).logits


UNTIED = [("llama", kind) for kind in ("dora", "embeddings", "saved_both")]


@pytest.mark.parametrize(("architecture", "kind"), [*(("qwen3", kind) for kind in KINDS), *UNTIED])
def test_a_merged_adapter_is_the_model_that_was_trained(architecture, kind, adapter_run, tiny_run, tmp_path, capsys):
    """The reference here is the adapted model itself, before it was ever saved."""
    model = adapter_run(architecture, kind)
    run_export(tiny_run, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(exported), logits(model), rtol=1e-4, atol=1e-4)
    proof = proof_in(tmp_path / "out")
    assert proof["difference"] < 1e-5 < 0.01 < proof["adapter_effect"]
    assert proof["trained_loss"] == pytest.approx(proof["exported_loss"], abs=1e-5)
    said = capsys.readouterr().out
    assert f"loss {proof['trained_loss']:.6f} as trained, {proof['exported_loss']:.6f} as exported" in said
    tied = architecture == "qwen3" and kind in ("lora", "dora", "rslora", "parameters")
    assert exported.config.tie_word_embeddings is tied


def test_a_kept_adapter_is_proven_too(adapter_run, tiny_run, tmp_path):
    model = adapter_run("qwen3", "embeddings_saved_head")
    run_export(tiny_run, tmp_path / "out", "--keep_adapter")
    assert proof_in(tmp_path / "out")["difference"] < 1e-5
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_a_whole_model_is_proven(tiny_run, tiny_model_dir, tmp_path):
    add_checkpoint(tiny_run, 0, tiny_model_dir("qwen3"))
    run_export(tiny_run, tmp_path / "out")
    proof = proof_in(tmp_path / "out")
    assert (proof["run"], proof["split"], proof["documents"]) == (True, "eval", 9)
    assert proof["difference"] == 0 and proof["adapter_effect"] is None and proof["dtype"] == "float32"


@pytest.mark.parametrize("how", ["merge_of_tied_weights", "lost_layer", "lost_adapter", "swapped_rows"])
def test_a_corrupted_merge_is_caught(how, adapter_run, tiny_run, tmp_path, monkeypatch):
    def lose(model, part: str):
        for name, parameter in model.named_parameters():
            if "lora_B" in name and part in name:
                parameter.data.zero_()

    def swap(merged):
        head = merged.get_output_embeddings().weight.data
        head[[5, 300]] = head[[300, 5]]
        return merged

    merge = adapters.merge
    changed = {
        "merge_of_tied_weights": lambda model: model.merge_and_unload(),
        "lost_layer": lambda model: lose(model, "layers.1.mlp") or merge(model),
        "lost_adapter": lambda model: model.unload(),
        "swapped_rows": lambda model: swap(merge(model)),
    }
    adapter_run("qwen3", "embeddings" if how == "merge_of_tied_weights" else "lora")
    monkeypatch.setattr(adapters, "merge", changed[how])
    with pytest.raises(SystemExit, match="the export is not the model that was trained, and was not written"):
        run_export(tiny_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run_export(tiny_run, tmp_path / "out", "--tolerance", "100")
    assert proof_in(tmp_path / "out")["tolerance"] == 100


def test_a_copy_that_is_not_the_checkpoint_is_caught(tiny_run, tiny_model_dir, tmp_path, monkeypatch):
    """Such as a configuration that was changed on the way."""
    copy = export_weights._copy_configs

    def change(source, folder):
        copy(source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))

    monkeypatch.setattr(export_weights, "_copy_configs", change)
    add_checkpoint(tiny_run, 0, tiny_model_dir("llama"))
    with pytest.raises(SystemExit, match="the export is not the model that was trained"):
        run_export(tiny_run, tmp_path / "out")


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_goes_into_what_the_quantised_weights_stand_for(bits, adapter_run, tiny_run, tmp_path):
    quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantised = quantised if bits == 4 else {"load_in_8bit": True}
    marker = {"adapters": {"use_peft": True, f"load_in_{bits}bit": True}}
    marker["quantisation"] = {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    model = adapter_run("llama", "lora", {"quantization_config": BitsAndBytesConfig(**quantised)}, **marker)
    run_export(tiny_run, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(exported.config, "quantization_config")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(plain, tiny_run / "checkpoint-1")
    right = (logits(exported) - logits(model)).abs().max()
    assert right < 0.5 * (logits(plain) - logits(model)).abs().max()
    proof = proof_in(tmp_path / "out")
    assert proof["dtype"] == ("float32" if bits == 4 else "int8")
    run_export(tiny_run, tmp_path / "kept", "--keep_adapter")
    assert proof_in(tmp_path / "kept")["difference"] < 1e-5


def test_without_the_shards_the_proof_is_said_not_to_have_run(tiny_run, tiny_shards, tiny_model_dir, tmp_path, capsys):
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    moved = tiny_shards.rename(tmp_path / "moved")
    run_export(tiny_run, tmp_path / "unproven")
    assert "WARNING: NOT PROVEN to be the model that was trained: shard directory" in capsys.readouterr().out
    proof = proof_in(tmp_path / "unproven")
    assert proof["run"] is False and "no such directory" in proof["why"] and str(tmp_path) not in proof["why"]
    run_export(tiny_run, tmp_path / "proven", "--data", str(moved))
    assert proof_in(tmp_path / "proven")["run"] is True


def test_a_changed_byte_in_a_checkpoint_is_found(tiny_run, tiny_model_dir, tmp_path):
    path = add_checkpoint(tiny_run, 1, tiny_model_dir("llama")) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"model.safetensors is not what was written"):
        run_export(tiny_run / "checkpoint-1", tmp_path / "out")


def test_another_base_model_is_refused_for_an_adapter(adapter_run, tiny_run, tmp_path, tiny_model_dir):
    adapter_run("llama", "lora")
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", num_hidden_layers=3)).save_pretrained(other)
    with pytest.raises(SystemExit, match="other is not the base model that the adapter was trained on: it has other w"):
        run_export(tiny_run, tmp_path / "out", "--base_model", str(other))
    (tmp_path / "base").rename(tmp_path / "moved")
    run_export(tiny_run, tmp_path / "out", "--base_model", str(tmp_path / "moved"))


def test_a_kept_adapter_is_not_asked_over_another_base_model(adapter_run, tiny_run, tmp_path):
    adapter_run("llama", "lora")
    run_export(tiny_run, tmp_path / "out", "--keep_adapter")
    assert loaded_models.load(str(tmp_path / "out")).model
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.lm_head.weight.data += 1
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="base is not the base model that the adapter was trained on"):
        loaded_models.load(str(tmp_path / "out"))


def test_an_adapter_is_asked_over_its_base_model_which_is_found_by_itself(adapter_run, tiny_run, tmp_path):
    """Of a run, and in a folder of peft's own without a tokenizer; over 4 bits where that is asked for."""
    model = adapter_run("llama", "lora")
    shutil.copytree(tiny_run / "checkpoint-1", tmp_path / "bare", ignore=shutil.ignore_patterns("complete.json"))
    for path in (tiny_run, tiny_run / "checkpoint-1", tmp_path / "bare"):
        loaded = loaded_models.load(str(path))
        assert torch.equal(logits(loaded.model), logits(model)), path
        assert loaded.tokenizer.chat_template
    loading = loaded_models.Loading(load_in_4bit=True)
    for path in (tiny_run, tmp_path / "bare"):
        quantised = loaded_models.load(str(path), loading).model
        assert any(type(module).__name__ == "Linear4bit" for module in quantised.modules()), path
        assert torch.isfinite(logits(quantised)).all() and not torch.equal(logits(quantised), logits(model))


def test_another_base_model_is_reported_for_a_whole_model(tiny_run, tiny_model_dir, tmp_path, capsys):
    folder = add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    publish(folder, step=1, world_size=1, extra={"base_model": {"weights": "f" * 32}})
    shutil.copytree(tiny_model_dir("llama"), tmp_path / "base")  # where run.json says
    run_export(tiny_run, tmp_path / "out")
    assert "is not the model that the run began from: it has other weights" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "export.json").read_text())["base_model"] == {"weights": "f" * 32}


# The documents and the limits.


def test_documents_are_held_out_ones_of_each_source_and_few_tokens(tmp_path):
    shards = write_shards(tmp_path, rows=3, eval_rows=0, document=400, seq_len=800)
    held_out = choose_documents(shards, read_manifest(shards))
    assert held_out.split == "train" and len(held_out.documents) == MOST_TOKENS // DOCUMENT_TOKENS
    assert {len(ids) for ids, _ in held_out.documents} == {DOCUMENT_TOKENS}
    shards = write_shards(tmp_path / "eval", eval_rows=1)
    assert choose_documents(shards, read_manifest(shards)).split == "eval"
    shutil.rmtree(shards / "eval")
    with pytest.raises(ValueError, match=r"the eval split of .* cannot be read"):
        choose_documents(shards, read_manifest(shards))


def test_a_long_document_is_cut_around_its_first_trained_token():
    import numpy as np

    labels = np.full(1000, -100)
    labels[900:] = 7
    row = {"input_ids": np.arange(1000), "labels": labels, "seq_lengths": np.array([1000]), "sources": np.array([2])}
    ((source, (ids, cut)),) = export_proof._documents(iter([row]))
    assert source == 2 and len(ids) == DOCUMENT_TOKENS and ids[-1] == 999 and cut.count(7) == 100


@pytest.mark.parametrize(("dtype", "limit"), TOLERANCES.items())
def test_differences_above_rounding_are_refused(dtype, limit):
    def prove(difference: float):
        prover = Prover(HeldOut([([1], [1])], "eval"))
        prover.trained = torch.full((4,), -1.0, dtype=torch.float64)
        prover.exported = prover.trained + difference * torch.tensor([1.0, -1.0, 1.0, -1.0])  # the same mean
        prover.dtypes = {"float32", dtype}
        return prover.proof()

    assert prove(0.9 * limit).dtype == dtype
    for difference in (1.1 * limit, float("nan")):
        with pytest.raises(ValueError, match="is not the model that was trained"):
            prove(difference)


def test_an_adapter_that_does_almost_nothing_is_reported(adapter_run, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export_proof.TOLERANCES, "float32", 10.0)
    adapter_run("llama", "lora")
    run_export(tiny_run, tmp_path / "out")
    assert "this cannot tell the export from the base model" in capsys.readouterr().out
