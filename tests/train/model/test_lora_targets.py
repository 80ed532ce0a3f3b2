"""LoRA's targets, compared with the names of a model without weights."""

from __future__ import annotations

import shutil

import pytest
from peft import LoraConfig, get_peft_model
from trl import ModelConfig

from tests.support.saving_runs import run_here, single_config
from tests.support.training import make_shards
from train.config.run_config import load_run_config
from train.model.lora_targets import check_targets, missing, skeleton
from train.preflight import main

EXPERTS = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    made = {}

    def make(architecture):
        if architecture not in made:
            made[architecture] = skeleton(ModelConfig(model_name_or_path=str(tiny_model_dir(architecture))))
        return made[architecture]

    return make


def found(model, **adapters):
    return list(missing(LoraConfig(task_type="CAUSAL_LM", **adapters), model))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    "adapters",
    [
        {"target_modules": ["q_proj", "v_proj", "self_attn.o_proj", "model.layers.1.mlp.down_proj", "embed_tokens"]},
        {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": None},
        {"target_modules": None, "target_parameters": ["self_attn.q_proj.weight"]},
    ],
)
def test_names_that_are_there(architecture, adapters, model):
    assert found(model(architecture), **adapters) == []


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({"target_modules": ["q_proj", "v_porj"]}, "lora_target_modules: 'v_porj' is nowhere in the model; did you"),
        ({"target_modules": ["q_proj", "query_key_value"]}, "'query_key_value' is nowhere in the model; "),
        ({"target_modules": ["proj"]}, "'proj' is nowhere"),  # peft matches from a dot on
        ({"target_modules": ["all-linear", "q_proj"]}, "'all-linear' is nowhere"),
        ({"target_modules": ["mlp"]}, "is a LlamaMLP, not a layer that LoRA adapts: name its layers: gate_proj, up_"),
        ({"modules_to_save": ["lm_haed"], "target_modules": ["q_proj"]}, "lora_modules_to_save: 'lm_haed' is nowhere"),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["q_proj.wieght"]},
            "lora_target_parameters: 'q_proj.wieght' is nowhere in the model; did you mean q_proj.weight",
        ),
    ],
)
def test_names_that_are_not(adapters, said, model):
    (line,) = found(model("llama"), **adapters)
    assert said in line


def test_experts_by_the_names_of_their_parts(model):
    """Which transformers keeps in one parameter; peft turns the names into it."""
    assert found(model("qwen3_moe"), target_modules=["q_proj", *EXPERTS]) == []
    adapted = get_peft_model(
        skeleton_of_experts := model("qwen3_moe"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=EXPERTS)
    )
    assert any("experts" in name for name, weight in adapted.named_parameters() if weight.requires_grad)
    adapted.unload()
    assert len(found(skeleton_of_experts, target_modules=["up_prj"])) == 1


def test_an_architecture_without_a_default_of_pefts(model):
    (line,) = found(model("qwen3_moe"), target_modules=None)
    assert "peft has no default for qwen3_moe: write all-linear" in line


def test_a_run_is_refused_before_weights_are_read(tiny_model_dir, tiny_tokenizer, tmp_path, capsys):
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1] * 4})
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir("llama"), folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # none of its weights
    names = {"data": str(shards), "model_name_or_path": str(folder), "output_dir": str(tmp_path / "run")}
    config = single_config(tmp_path / "run.yaml", **names, use_peft=True, lora_target_modules=["q_proj", "v_porj"])
    assert run_here(config) == 2
    assert "did you mean v_proj" in capsys.readouterr().err
    assert main(["--config", str(config)]) == 2  # preflight finds the same
    assert "did you mean v_proj" in capsys.readouterr().err


def test_without_adapters_nothing_is_compared():
    check_targets(load_run_config(["--data", "shards", "--output_dir", "run", "--model_name_or_path", "nowhere"]))
