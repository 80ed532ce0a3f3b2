"""What LoRA changes, by part, against the gradients that its adapters get; and what peft would pass over."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.training import make_shards, run_config
from train.model.lora_reach import check, measure, part_of_each
from train.preflight import main

SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MODELS = {
    "llama": HEADS,
    "qwen3_moe": {**HEADS, **FEW, "num_experts": 4},
    "gpt_oss": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, **FEW, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4}
    | {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "qwen3_next": {**HEADS, **FEW, "num_experts": 4, "shared_expert_intermediate_size": 16}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoehybrid": {**HEADS, "num_local_experts": 4, "layer_types": ["mamba", "attention"]}
    | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
}
EXPERTS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
NAMES = ["gate_proj", "up_proj", "down_proj"]


def make(kind: str, device: str = "meta", **more):
    config = AutoConfig.for_model(kind, **SIZE, **MODELS[kind], **more)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config)


def lora(modules=None, parameters=None, **more) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=modules, target_parameters=parameters, **more)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("llama", {"attention", "dense", "embeddings"}),
        ("qwen3_moe", {"attention", "experts", "router", "embeddings"}),
        ("gpt_oss", {"attention", "experts", "router", "embeddings"}),
        ("deepseek_v3", {"attention", "dense", "experts", "router", "embeddings"}),
        ("qwen3_next", {"attention", "layers with a state", "dense", "experts", "router", "embeddings"}),
        ("granitemoehybrid", {"attention", "layers with a state", "dense", "experts", "router", "embeddings"}),
    ],
)
def test_parts(kind, parts):
    model = make(kind)
    found = part_of_each(model)
    matrices = {name for name, weight in model.named_parameters() if weight.dim() >= 2}
    assert {found[name] for name in matrices} == parts
    assert {name for name in matrices if found[name] == "experts"} == {n for n in matrices if ".experts." in n}
    routers = {name.split(".")[-2] for name in matrices if found[name] == "router"}
    assert routers <= {"gate", "router"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "adapters",
    [
        {"modules": "all-linear"},
        {"modules": ["q_proj", "o_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules": ["q_proj"], "parameters": EXPERTS},
        {"modules": ["q_proj", *NAMES]},
        {"modules": "all-linear", "use_rslora": True},
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3"])
def test_what_is_said_to_change_is_what_training_changes(kind, adapters, tied):
    """Against weights merged after each adapter was made to do something."""
    if kind == "deepseek_v3" and isinstance(adapters["modules"], list):
        adapters = {**adapters, "modules": [*(set(adapters["modules"]) - {"q_proj"}), "q_b_proj"]}
    if kind == "llama":
        adapters = {**adapters, "parameters": None}
    found = measure(lora(**adapters), make(kind, tie_word_embeddings=tied))
    model = make(kind, "cpu", tie_word_embeddings=tied)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.dim() >= 2}
    adapted = get_peft_model(model, lora(**adapters))
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight.add_(0.1)
    parts = part_of_each(make(kind, tie_word_embeddings=tied))
    merged = dict(adapted.merge_and_unload().named_parameters(remove_duplicate=False))
    changed = {name for name, weight in before.items() if not torch.equal(weight, merged[name])}
    assert found.trained == sum(weight.numel() for weight in trained)
    for part in set(parts.values()):
        assert found.total[part] == sum(w.numel() for name, w in before.items() if parts[name] == part)
        assert found.adapted[part] == sum(
            w.numel() for name, w in before.items() if parts[name] == part and name in changed
        )


@pytest.mark.parametrize(
    ("kind", "adapters", "said"),
    [
        ("qwen3_moe", {"modules": ["gate_up_proj", "down_proj"]}, "leaves mlp.experts.gate_up_proj as it is"),
        ("qwen3_next", {"modules": ["q_proj", *NAMES]}, "leaves shared_expert.down_proj.weight, shared_expert.gate_p"),
        ("deepseek_v3", {"modules": NAMES}, "lora_target_parameters: [mlp.down_proj.weight, mlp.gate_proj.weight"),
        (
            "qwen3_moe",
            {"modules": "all-linear", "lora_dropout": 0.05},
            "lora_dropout: 0.05: write 0, as the experts lie",
        ),
        ("qwen3_moe", {"modules": "all-linear", "use_dora": True}, "use_dora: true: write false, as the experts lie"),
        ("qwen3_moe", {"modules": ["gate_proj", "down_proj"]}, "without also targeting up_proj"),
    ],
)
def test_what_peft_passes_over_or_stops_at_later_is_refused(kind, adapters, said):
    with pytest.raises(ValueError) as refused:
        check(lora(**adapters), make(kind))
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_next", "deepseek_v3", "granitemoehybrid"])
def test_what_is_to_be_written_reaches_all(kind):
    """The notes' and refusals' own words, taken at their word."""
    found = check(lora("all-linear"), make(kind))
    named = [*found.experts, *found.left_out]
    again = check(lora("all-linear", named), make(kind))
    assert again.adapted["experts"] == again.total["experts"] and again.adapted["dense"] == again.total["dense"]
    assert not again.left_out
    layers = ["q_proj", "o_proj"] if kind != "deepseek_v3" else ["q_b_proj", "o_proj"]
    assert check(lora(layers, named), make(kind)).adapted["router"] == 0


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_next", "deepseek_v3"])
def test_the_layers_to_be_named_instead_are_taken(kind):
    """With the dropout that experts do not take."""
    with pytest.raises(ValueError) as refused:
        check(lora("all-linear", lora_dropout=0.05), make(kind))
    named = str(refused.value).rpartition("lora_target_modules: [")[2].rstrip("]").split(", ")
    found = check(lora(named, lora_dropout=0.05), make(kind))
    assert found.adapted["attention"] == found.total["attention"] > found.adapted["experts"] == 0


def test_what_people_do_not_expect_is_noted():
    assert "routers" in " ".join(check(lora("all-linear"), make("qwen3_moe")).notes())
    assert "all-linear leaves layers as they are" in " ".join(check(lora("all-linear"), make("deepseek_v3")).notes())
    assert "leaves all experts as they are" in " ".join(check(lora("all-linear"), make("gpt_oss")).notes())
    assert not list(check(lora("all-linear"), make("llama")).notes())


def test_preflight_prints_the_reach_and_refuses_early(tiny_model_dir, tiny_tokenizer, tmp_path, capsys):
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1] * 4})
    names = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("qwen3_moe")), "use_peft": True}
    names |= {"output_dir": str(tmp_path / "run"), "lora_target_modules": "all-linear"}
    config = run_config(tmp_path / "run.yaml", **names)
    assert main(["--config", str(config)]) == 2  # TRL's default of lora_dropout is 0.05
    assert "lora_dropout: 0.05: write 0" in capsys.readouterr().err
    config = run_config(tmp_path / "run.yaml", **names, lora_dropout=0.0)
    assert main(["--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert (
        "LoRA         trains " in said and "experts 24.6K of 24.6K" in said and "note: LoRA adapts the routers" in said
    )
