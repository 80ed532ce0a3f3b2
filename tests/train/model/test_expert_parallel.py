"""AutoEP's layers compute what transformers' do, and their weights come back by transformers' names; what is mended."""

from __future__ import annotations

import importlib.util
import inspect
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin
from transformers.utils import output_capturing

from train.checkpoint.size_estimates import estimate_size
from train.checks.expert_parallel import TYPES, UNBALANCED
from train.model.expert_parallel import _split_groups, accept_names_in_registry, find_layers, holds_a_part
from train.model.expert_weights import whole_state

SECTION = {"enabled": True, "autoep_size": 1, "use_grouped_mm": False}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK = {**_LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1}
OVERRIDES = {
    "qwen2_moe": {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "qwen3_moe": {"head_dim": 8, "norm_topk_prob": False, "tie_word_embeddings": True},
    "qwen3_5_moe_text": {
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "deepseek_v2": {**_DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": {**_DEEPSEEK, "n_group": 2, "topk_group": 1, "norm_topk_prob": True},
    "minimax_m3_vl_text": {
        "head_dim": 8,
        "rotary_dim": 4,
        "shared_intermediate_size": 16,
        "dense_intermediate_size": 32,
        "intermediate_size": 24,
        "index_head_dim": 8,
        "index_n_heads": 2,
    },
}


def build(kind: str) -> torch.nn.Module:
    """A random model; a bias that corrects the router's scores is not left at zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **OVERRIDES.get(kind, {})})
    name = next(name for name in ("num_experts", "num_local_experts", "n_routed_experts") if hasattr(config, name))
    setattr(config, name, 4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for module in model.modules():
        if isinstance(bias := getattr(module, "e_score_correction_bias", None), torch.Tensor):
            torch.nn.init.normal_(bias, std=0.1)
    return model.eval()


def convert(model: torch.nn.Module, size: int = 1):
    """Replace the layers as DeepSpeed does on the first of `size` processes; its descriptions of them."""
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import parse_autoep_config

    layers = find_layers(model, SECTION)
    accept_names_in_registry()
    AutoEP(model, parse_autoep_config(SECTION)).replace_moe_layers([*layers.values()], ep_size=size, ep_rank=0)
    return layers


def outputs(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Logits, the gradient of the embeddings by the loss without balancing, and the balancing loss."""
    ids = torch.randint(3, 64, (1, 40), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    found = model(input_ids=ids, labels=ids, use_cache=False)
    found.loss.backward()
    has_balance = hasattr(model.config, "router_aux_loss_coef")
    balance = model(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss if has_balance else None
    return {"logits": found.logits, "gradient": model.get_input_embeddings().weight.grad, "balance": balance}


@pytest.mark.parametrize("kind", TYPES)
def test_a_replaced_model_is_the_same_model(kind):
    model, beside = build(kind), build(kind)
    before, weights = outputs(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not holds_a_part(model)
    layers = convert(model)
    assert holds_a_part(model)
    after = outputs(model)
    different = [name for name, tensor in before.items() if not is_close(after[name], tensor)]
    assert different == (["balance"] if kind in UNBALANCED else [])
    assert is_close(outputs(beside)["balance"], before["balance"])  # a model of the same class is as before
    assert_weights_come_back(model, layers, weights)


def is_close(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def assert_weights_come_back(model, layers, weights: dict[str, torch.Tensor]) -> None:
    """To the bit, a tied head once."""
    assert model.state_dict().keys() != weights.keys()  # else nothing needs to be gathered any more
    engine = SimpleNamespace(module=model, zero_optimization_partition_weights=lambda: False)
    whole = whole_state(layers, engine)
    assert weights.keys() - whole.keys() == ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    assert whole.keys() <= weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_checkpoint_is_estimated_with_all_experts(size):
    model, args = build("qwen3_moe"), SimpleNamespace(optim="adamw_torch")
    whole = estimate_size(model, args)
    convert(model, size)
    assert model.model.layers[0].mlp.experts.w1.shape[0] == 4 // size
    assert estimate_size(model, args) == whole


def test_deepspeed_has_presets_for_no_other_types():
    """A new one is to be tested here, and added to TYPES."""
    from deepspeed.module_inject.auto_ep_presets.registry import PRESET_MODELS

    assert {kind for preset in PRESET_MODELS.values() for kind in preset.hf_model_types} == set(TYPES)


def test_a_model_without_experts_is_refused():
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{key: value for key, value in SIZES.items() if "moe" not in key})
    with pytest.raises(ValueError, match="DeepSpeed finds no layer of experts in LlamaForCausalLM"):
        find_layers(AutoModelForCausalLM.from_config(config), SECTION)


def test_a_weight_without_a_name_is_not_left_out():
    model = build("qwen3_moe")
    layers = convert(model)
    model.model.layers[0].mlp.router.register_buffer("new", torch.zeros(1))
    engine = SimpleNamespace(module=model, zero_optimization_partition_weights=lambda: False)
    with pytest.raises(RuntimeError, match=r"layers\.0\.mlp\.router\.new has no name"):
        whole_state(layers, engine)


def test_experts_get_groups_that_remember_where_they_come_from():
    names = ("dense", "expert", "bias", "expert_bias")
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in names}
    for name in ("expert", "expert_bias"):
        parameters[name].allreduce, parameters[name].group_name = False, "ep_size_2"
    decayed, other = ([parameters[n] for n in names[:2]], [parameters[n] for n in names[2:]])
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}])
    _split_groups(optimizer.param_groups)
    found = {id(p): (g["asked_group"], g.get("moe", False)) for g in optimizer.param_groups for p in g["params"]}
    assert [found[id(parameters[name])] for name in names] == [(0, False), (0, True), (1, False), (1, True)]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]


class TestStillNeeded:
    """When one of these fails the installed library has mended it: take the mend out."""

    def test_the_registry_takes_models_alone(self):
        spec = importlib.util.spec_from_file_location(output_capturing.__name__, output_capturing.__file__)
        assert spec and spec.loader
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
            fresh._CanRecordRegistry().get("name", None)

    def test_deepspeed_splits_the_groups_of_its_own_optimizers_alone(self):
        from deepspeed.runtime.engine import DeepSpeedEngine

        lines = inspect.getsource(inspect.getmodule(DeepSpeedEngine)).partition("def _configure_optimizer(")[2]
        own, _, others = lines.partition("def get_optimizer_configuration(")[0].partition("        else:\n")
        assert "configure_moe_param_groups" in own and "moe" not in others

    def test_no_library_gathers_experts_for_a_saved_model(self):
        from accelerate import Accelerator
        from deepspeed.runtime.engine import DeepSpeedEngine

        assert "expert" not in inspect.getsource(Accelerator.get_state_dict)
        refusal = inspect.getsource(DeepSpeedEngine._raise_if_autoep_zero3_consolidated_export)
        assert "raise NotImplementedError" in refusal

    def test_generation_in_step_knows_nothing_of_experts(self):
        lines = inspect.getsource(GenerationMixin).partition('generation_mode_kwargs["synced_gpus"] = (')[2]
        decided = lines.partition(")\n")[0]
        assert "is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)" in decided
