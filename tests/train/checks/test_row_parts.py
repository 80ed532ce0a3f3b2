"""Rows in parts, before the start: the arithmetic of a long row, and each refusal with its reason."""

from __future__ import annotations

import pytest

from tests.support.preflight_files import write_model, write_shards
from tests.support.preflight_runs import problems
from train.config.run_config import load_run_config
from train.model.loading import prepare_model_arguments
from train.preflight import examine

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
LONG = ["--sequence_parallel", "8"]


@pytest.fixture
def long_rows(tmp_path, flags, model):
    """The flags of a run on rows of 131,072 tokens."""
    write_model(model, **LLAMA)
    shards = write_shards(tmp_path / "long", seq_len=131_072, document=65_536, rows=4, eval_rows=1)
    return [*flags[2:], "--data", str(shards), "--per_device_train_batch_size", "1"]


def report(flags, world_size=16):
    return examine(load_run_config([*flags, *LONG]), accelerate_config=None, world_size=world_size)


def test_a_row_of_131072_tokens_over_eight_ranks(long_rows):
    """Queries and outputs of 32 heads, keys and values of 8, of width 128, in fp32; 7 of 8 parts are sent."""
    found = report(long_rows)
    assert found.problems == []
    lines = "\n".join(found.summary)
    sent = 2 * (32 + 8) * 128 * 16_384 * 4 * 7 / 8 / 2**20
    assert f"up to 131,072 tokens over 8 ranks: 16,384 each; a rank sends {sent:,.1f} MiB in each layer" in lines
    assert "2 rows a step = 1 x 1 accumulated x 2 groups of 8 processes: about 262,144 tokens" in lines


def test_groups_that_reach_over_machines_are_named(long_rows, launch_file):
    deepspeed = {"deepspeed_multinode_launcher": "standard"}
    config = load_run_config([*long_rows, *LONG])
    for machines, noted in ((2, False), (4, True)):
        file = launch_file(deepspeed=deepspeed, num_machines=machines, num_processes=16)
        found = examine(config, accelerate_config=file, world_size=None)
        assert found.problems == []
        assert any("groups of 8 ranks reach over machines of 4" in note for note in found.notes) is noted


@pytest.mark.parametrize("world_size", [1, 4, 12])
def test_ranks_that_do_not_divide_the_world_are_refused(world_size, long_rows):
    words = f"sequence_parallel: expected a number that divides the launch's {world_size} process(es), found 8"
    assert words in problems(long_rows, *LONG, world_size=world_size)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor: with sequence_parallel"),
        (["--torch_compile", "true"], "torch_compile: with sequence_parallel"),
        (["--attn_implementation", "sdpa"], "'sdpa' with sequence_parallel: only varlen exchanges parts"),
        (["--sequence_parallel", "0"], "sequence_parallel: expected 1 or more, found 0"),
    ],
)
def test_options_that_need_whole_rows_are_refused(more, words, flags):
    with pytest.raises(ValueError) as error:
        load_run_config([*flags, *(more if "--sequence_parallel" in more else [*LONG, *more])])
    assert words in str(error.value)


def test_options_that_do_not(flags):
    more = ["--attn_implementation", "varlen", "--loss_type", "dft", "--neftune_noise_alpha", "5"]
    assert load_run_config([*flags, *LONG, *more]).own.sequence_parallel == 8


def test_a_model_that_cannot_have_parts_is_refused(long_rows, model):
    write_model(model, **{**LLAMA, "num_attention_heads": 12, "num_key_value_heads": 4})
    assert "can share 12 heads with 4 of keys and values (one of [2, 3, 4, 6, 12]), found 8" in problems(
        long_rows, *LONG, world_size=8
    )


def test_the_experts_balancing_loss_is_refused(long_rows, model):
    write_model(model, **LLAMA, router_aux_loss_coef=0.001)
    words = "(router_aux_loss_coef 0.001) would be that of each part of a row"
    assert words in problems(long_rows, *LONG, world_size=8)
    assert problems(long_rows, *LONG, "--router_aux_loss_coef", "0", world_size=8) == ""


@pytest.mark.parametrize(
    ("architecture", "ranks", "words"),
    [
        ("gemma2", 2, "caps its scores"),
        ("gpt_oss", 2, "sequence_parallel needs varlen attention: the model's attention has more"),
        ("lfm2", 2, "has conv: such layers need a whole row"),
        ("llama", 3, "ranks that can share 4 heads"),
    ],
)
def test_a_model_that_preflight_could_not_see_is_refused_before_its_weights(
    architecture, ranks, words, tiny_model_dir, tmp_path
):
    from trl import ModelConfig, SFTConfig

    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    model = ModelConfig(model_name_or_path=str(tiny_model_dir(architecture)))
    with pytest.raises(ValueError, match=words):
        prepare_model_arguments(model, args, None, 256, row_ranks=ranks)


def test_varlen_is_taken_whatever_else_is_there(tiny_model_dir, tmp_path):
    from trl import ModelConfig, SFTConfig

    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    model = ModelConfig(model_name_or_path=str(tiny_model_dir("llama")))
    said = prepare_model_arguments(model, args, None, 256, row_ranks=2)
    assert said == "varlen (each rank has the whole row and 1/2 of its heads)"
    assert args.model_init_kwargs["attn_implementation"] == "varlen"


def test_layers_with_a_state_are_found_in_the_model_itself(tiny_model_dir):
    """As config.json may not tell of them."""
    from transformers import AutoModelForCausalLM

    from train.loop.setup import _install_documentwise

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("lfm2"))
    with pytest.raises(ValueError, match="sequence_parallel: 1 Lfm2ShortConv carry a state"):
        _install_documentwise(model, 2)


def test_a_config_that_is_no_json_is_reported_and_the_numbers_are_shown(long_rows, model):
    (model / "config.json").write_text("{")
    found = report(long_rows)
    assert any("not readable as JSON" in problem for problem in found.problems)
    assert any(line.endswith("over 8 ranks: 16,384 each") for line in found.summary)
