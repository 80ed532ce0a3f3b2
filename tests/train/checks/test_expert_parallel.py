"""train.checks.expert_parallel: what expert parallelism cannot do is refused before the model is loaded."""

from __future__ import annotations

import json

import pytest

from tests.support.preflight_files import write_model
from tests.support.preflight_runs import problems

EP = {"enabled": True, "autoep_size": 2, "use_grouped_mm": False}
STAGE_3 = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
MIXTURE = {"model_type": "qwen3_moe", "num_experts": 8, "router_aux_loss_coef": 0.001}


@pytest.fixture
def flags(flags, tmp_path):
    """Those of a run on a mixture of experts."""
    write_model(tmp_path / "model", **MIXTURE)
    return flags


@pytest.fixture
def launch(deepspeed_file, launch_file):
    """Write the launch's files, with changes of the section and of ZeRO's."""

    def write(zero=None, processes=4, **changes):
        deepspeed_file(zero_optimization=zero or {"stage": 2}, expert_parallel={**EP, **changes})
        return launch_file(num_processes=processes)

    return write


@pytest.mark.parametrize("zero", [{"stage": 1}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}, STAGE_3])
def test_a_sound_launch_passes(flags, launch, zero):
    assert problems(flags, launch=launch(zero)) == ""
    assert problems(flags, launch=launch(zero, processes=6, use_grouped_mm=True, load_balance_coeff=None)) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"autoep_size": "2"}, "autoep_size: expected a whole number of 1 or more, found '2'"),
        ({"autoep_size": 0}, "autoep_size: expected a whole number of 1 or more, found 0"),
        ({"processes": 3}, "autoep_size 2 does not divide the 3 process(es)"),
        ({"processes": 6, "autoep_size": 3}, "does not divide the model's 8 experts: write one of 1, 2, 4, 8"),
        ({"load_balance_coeff": 0.01}, "DeepSpeed refuses load_balance_coeff"),
        ({"ep_size": 4, "top_k": 1}, "found ep_size, top_k: DeepSpeed ignores names that it does not know"),
        ({"zero": {"stage": 0}}, "expected zero_optimization.stage 1, 2 or 3, found 0"),
        ({"zero": {**STAGE_3, "offload_optimizer": {"device": "nvme"}}}, "offload_optimizer nvme is not compared"),
        ({"zero": {**STAGE_3, "offload_param": {"device": "nvme"}}}, "offload_param nvme is not compared"),
        ({"zero": {**STAGE_3, "zero_quantized_weights": True}}, "zero_quantized_weights is not compared"),
        ({"zero": {**STAGE_3, "zero_quantized_gradients": True}}, "trains no experts with zero_quantized_gradients"),
        ({"zero": {**STAGE_3, "zero_hpz_partition_size": 8}}, "trains no experts with zero_hpz_partition_size"),
        ({"zero": {"stage": 3}}, "expected stage3_gather_16bit_weights_on_model_save: true"),
    ],
)
def test_launches_that_are_refused(flags, launch, changes, words):
    assert words in problems(flags, launch=launch(**changes))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--use_peft=true", "adapters are refused with it"),
        ("--torch_compile=true", "torch_compile is not compared"),
        ("--use_liger_kernel=true", "use_liger_kernel is not compared"),
        ("--fp16=true", "fp16 is not compared"),
        ("--sequence_parallel=2", "sequence_parallel is not compared"),
    ],
)
def test_options_that_are_refused(flags, launch, option, words):
    assert words in problems(flags, option, launch=launch())
    assert words not in problems(flags, option, launch=launch(enabled=False))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "llama"}, "expected a mixture of experts of type mixtral, "),
        ({"model_type": "gpt_oss", "num_local_experts": 8}, "found gpt_oss: use a launch file without it"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 7}, "does not divide the model's 7 experts"),
        ({"model_type": "qwen3_moe", "num_local_experts": 7}, "does not divide the model's 7 experts"),
        ({"text_config": {"model_type": "qwen3_5_moe_text", "num_experts": 6}, "router_aux_loss_coef": 0.0}, ""),
        (
            {"model_type": "qwen3_5_moe_text", "num_experts": 8},
            "(router_aux_loss_coef 0.001) of qwen3_5_moe_text would silently be another one",
        ),
    ],
)
def test_models(flags, launch, settings, words, tmp_path):
    write_model(tmp_path / "model", **settings)
    found = problems(flags, launch=launch())
    assert words in found and bool(words) == bool(found)


def test_a_damaged_file_is_left_to_the_check_of_models(flags, launch, tmp_path):
    """As a model of the hub that is not here yet, it is looked at when it is loaded."""
    (tmp_path / "model" / "config.json").write_text(json.dumps([]))
    assert "expected a mixture" not in problems(flags, launch=launch())


@pytest.mark.parametrize("key", ["distributed_config", "tp_plan"])
def test_experts_sharded_by_transformers_are_refused(flags, key, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"model_init_kwargs: {{{key}: {{enable_expert_parallel: true}}}}\n")
    with pytest.raises(ValueError, match=f"'{key}' is refused: transformers cannot resume a model that it shards"):
        problems(["--config", str(file), *flags])
