"""train.config.run_config: file and flags together, and the refusal of what would train wrongly."""

from __future__ import annotations

import os

import pytest

from tests.support.run_flags import REQUIRED, load, refused
from train.config.own_options import PACKED_ROWS
from train.config.refused_options import REFUSALS, RENAMED, refused_values
from train.config.run_config import build_model_config, build_sft_config, load_run_config

# Every old name, and what its advice must name. It stands here so that a name that is taken away is missed.
OLD_NAMES = {
    "max_seq_length": "seq_len", "seq_len": "the data recipe", "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy", "warmup_ratio": "warmup_steps", "group_by_length": "leave it out",
    "no_cuda": "use_cpu", "overwrite_output_dir": "output_dir", "logging_dir": "TENSORBOARD_LOGGING_DIR",
    "dataset_name": "packhaul prepare", "model_name": "model_name_or_path",
}  # fmt: skip


class TestFileAndFlags:
    def test_flag_wins(self, yaml_file):
        path = yaml_file("learning_rate: 1e-5\nseed: 1\n")
        config = load_run_config(["--config", path, "--learning_rate=2e-5", "--output-dir", "elsewhere"])
        assert config.sft == {"learning_rate": 2e-5, "seed": 1, "output_dir": "elsewhere"}

    def test_lists_and_bare_switches(self):
        config = load("--use_peft", "--lora_target_modules", "q_proj", "v_proj", "--bf16", "--seed", "3")
        assert config.model["lora_target_modules"] == ["q_proj", "v_proj"]
        assert config.model["use_peft"] is True
        assert (config.sft["bf16"], config.sft["seed"]) == (True, 3)

    def test_unknown_option_names_the_nearest_and_the_line(self, yaml_file):
        path = yaml_file("learning_rat: 1\n")
        with pytest.raises(ValueError) as error:
            load_run_config(["--config", path])
        assert f"{path} line 4: learning_rat: unknown option" in str(error.value)
        assert "did you mean 'learning_rate'?" in str(error.value)

    @pytest.mark.parametrize(("name", "way"), OLD_NAMES.items())
    def test_an_old_name_says_the_new_way(self, name, way):
        message = refused(f"--{name}", "1")
        assert f"unknown option {name!r}: {RENAMED[name]}" in message and way in message

    def test_no_old_name_is_untested(self):
        assert set(RENAMED) == set(OLD_NAMES)

    def test_a_key_twice_is_refused(self, yaml_file):
        path = yaml_file("seed: 1\nbf16: true\nseed: 2\n")
        with pytest.raises(ValueError, match="key 'seed' is given twice, on lines 4 and 6"):
            load_run_config(["--config", path])

    def test_a_flag_twice_is_refused(self):
        assert "flag --seed: given twice" in refused("--seed", "1", "--seed", "2")

    def test_a_nested_key_twice_is_refused(self, yaml_file):
        with pytest.raises(ValueError, match="'a' is given twice"):
            load_run_config(["--config", yaml_file("lr_scheduler_kwargs: {a: 1, a: 2}\n")])

    @pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text", "1: 2"])
    def test_a_file_that_is_no_mapping_is_refused(self, tmp_path, text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"run\.yaml"):
            load_run_config(["--config", str(path)])

    def test_no_such_file(self):
        with pytest.raises(ValueError, match=r"nowhere\.yaml: no such file"):
            load_run_config(["--config", "nowhere.yaml"])

    def test_two_files(self):
        assert "--config: expected one file, found ['a.yaml', 'b.yaml']" in refused("--config", "a.yaml", "b.yaml")

    def test_what_is_required(self):
        with pytest.raises(ValueError) as error:
            load_run_config([])
        for name in ("data", "output_dir", "model_name_or_path"):
            assert f"{name}: missing" in str(error.value)

    def test_all_problems_at_once(self):
        message = refused("--packing", "--learning_rat", "1", "--seed", "x", "--expected_world_size", "0")
        assert [word in message for word in ("packing", "learning_rat", "seed", "expected_world_size")] == [True] * 4

    def test_words_before_any_flag(self):
        with pytest.raises(ValueError, match=r"'run\.yaml': expected a flag"):
            load_run_config(["run.yaml", *REQUIRED])

    def test_a_value_is_missing(self):
        assert "flag --seed: expected one value of type int, found 0" in refused("--seed")
        assert "flag --seed: expected one value of type int, found 2" in refused("--seed", "1", "2")


# A value that must be refused, for each rule; the type is the option's. The list is not read from the rules: one that
# is deleted there is missed here.
BAD = {
    "packing": "true", "eval_packing": "true", "packing_strategy": "wrapped", "padding_free": "false",
    "max_length": "2048", "truncation_mode": "keep_end", "dataset_kwargs": '{"skip_prepare_dataset": false}',
    "dataset_text_field": "body", "dataset_num_proc": "4", "shuffle_dataset": "true", "completion_only_loss": "true",
    "assistant_only_loss": "true", "chat_template_path": "x.jinja", "eos_token": "<end>", "pad_token": "<pad>",
    "remove_unused_columns": "true", "train_sampling_strategy": "group_by_length", "length_column_name": "n",
    "use_cache": "true", "average_tokens_across_devices": "false", "auto_find_batch_size": "true",
    "lora_task_type": "SEQ_CLS", "enable_jit_checkpoint": "true", "ignore_data_skip": "true",
    "save_only_model": "true", "save_on_each_node": "true", "dataloader_drop_last": "true",
    "dataloader_in_order": "false", "resume_from_checkpoint": "run/checkpoint-1", "deepspeed": "x.json",
    "fsdp": "full_shard", "fsdp_config": "x.json", "local_rank": "0", "hub_token": "hf_x", "do_train": "true",
    "do_eval": "true", "do_predict": "true",
}  # fmt: skip

SAFE = [("eval_packing", None), ("eval_packing", False), ("train_sampling_strategy", "random")]
SAFE += [("train_sampling_strategy", "sequential"), ("max_length", None), ("padding_free", True), ("local_rank", -1)]


class TestRefusals:
    def test_the_rules_are_those_that_are_tested(self):
        assert set(REFUSALS) == {*BAD, "parallelism_config"}

    def test_an_object_that_no_file_can_hold_is_refused_by_its_type_and_by_its_rule(self):
        assert "flag --parallelism_config: expected object" in refused("--parallelism_config", "x")
        [(name, reason)] = refused_values({"parallelism_config": object(), "seed": 1})
        assert name == "parallelism_config" and REFUSALS[name].reason in reason

    @pytest.mark.parametrize(("name", "value"), SAFE)
    def test_a_safe_value_may_stand(self, name, value):
        assert not list(refused_values({name: value}))

    def test_a_value_that_equals_a_safe_one_but_is_of_another_type_is_refused(self):
        assert [name for name, _ in refused_values({"packing": 0, "padding_free": 1})] == ["packing", "padding_free"]

    @pytest.mark.parametrize("name", BAD)
    def test_refused_with_the_reason(self, name):
        message = refused(f"--{name}", BAD[name])
        assert f"flag --{name}: " in message
        assert REFUSALS[name].reason in message

    @pytest.mark.parametrize("name", PACKED_ROWS)
    def test_the_value_that_packed_rows_need_is_accepted(self, yaml_file, name):
        import yaml

        text = yaml.safe_dump({name: PACKED_ROWS[name]})
        assert load_run_config(["--config", yaml_file(text)]).sft[name] == PACKED_ROWS[name]

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--bf16", "--fp16"], "fp16: True together with bf16"),
            (["--bf16", "false", "--bf16_full_eval"], "bf16_full_eval: True while bf16 is off"),
            (["--fp16_full_eval"], "fp16_full_eval: True while fp16 is off"),
            (["--lora_r", "8"], "lora_r: does nothing without use_peft"),
            (["--use_dora"], "use_dora: does nothing without use_peft"),
            (["--use_rslora"], "use_rslora: does nothing without use_peft"),
            (["--load_in_4bit"], "load_in_4bit: quantised weights cannot be trained"),
            (["--load_in_8bit"], "load_in_4bit: quantised weights cannot be trained"),
            (["--use_peft", "--load_in_4bit", "--load_in_8bit"], "load_in_8bit: True together with load_in_4bit"),
            (["--bnb_4bit_quant_type", "fp4"], "bnb_4bit_quant_type: does nothing without load_in_4bit"),
            (["--use_bnb_nested_quant"], "use_bnb_nested_quant: does nothing without load_in_4bit"),
            (["--bnb_4bit_quant_storage", "uint8"], "bnb_4bit_quant_storage: does nothing without load_in_4bit"),
            (["--use_peft", "--lora_target_modules", "q_proj", "lm_head"], "'lm_head' is refused"),
            (["--use_peft", "--lora_target_modules", "model.lm_head"], "'lm_head' is refused"),
            (["--model_init_kwargs", '{"dtype": "float16"}'], "'dtype' would be overwritten"),
            (["--model_init_kwargs", '{"torch_dtype": "float16"}'], "give dtype as its own option"),
            (["--model_init_kwargs", '{"revision": "main"}'], "give model_revision as its own option"),
            (["--model_init_kwargs", '{"trust_remote_code": true}'], "give trust_remote_code as its own option"),
            (["--model_init_kwargs", '{"attn_implementation": "eager"}'], "give attn_implementation as its own option"),
            (["--model_init_kwargs", '{"quantization_config": {}}'], "give load_in_4bit or load_in_8bit as its own"),
            (["--accelerator_config", '{"split_batches": true}'], "split_batches: True is refused"),
            (["--accelerator_config", '{"dispatch_batches": true}'], "dispatch_batches: True is refused"),
            (["--accelerator_config", '{"use_seedable_sampler": false}'], "use_seedable_sampler: False is refused"),
            (["--accelerator_config", "x.json"], "accelerator_config: expected a mapping"),
            (["--liger_kernel_config", '{"fused_linear_cross_entropy": true}'], "fused_linear_cross_entropy"),
            (["--gradient_checkpointing", "true", "--activation_checkpointing", "false"], "contradicts"),
            (
                ["--gradient_checkpointing_kwargs", '{"a": 1}', "--activation_checkpointing_kwargs", '{"a": 2}'],
                "gradient_checkpointing_kwargs: {'a': 1} contradicts activation_checkpointing_kwargs",
            ),
            (["--activation_offloading", "--use_cpu"], "activations are in the CPU's memory already"),
            (["--label_smoothing_factor", "0.1", "--loss_type", "dft"], "does nothing with loss_type: dft"),
            (["--pad_to_multiple_of", "0"], "pad_to_multiple_of: expected 1 or more, found 0"),
            (["--optim", "adalomo"], "accumulation and clipping do nothing"),
            (["--optim", "lomo"], "accumulation and clipping do nothing"),
            (["--optim", "schedule_free_sgd"], "weights must be swapped around each evaluation and save"),
            (["--optim", "galore_adamw_layerwise"], "accumulation and clipping do nothing"),
        ],
    )
    def test_refused_combinations(self, flags, words):
        assert words in refused(*flags)

    @pytest.mark.parametrize("mode", ["max-autotune", "max-autotune-no-cudagraphs"])
    def test_autotuning_with_tf32_of_the_new_way(self, mode, monkeypatch):
        flags = ["--torch_compile_mode", mode]
        load(*flags)  # torch 2.13
        monkeypatch.setattr("train.config.refused_options.installed_version", lambda package: (2, 11))
        assert "which torch 2.11 refuses after the new one was used" in refused(*flags)
        assert "tf32: false" in refused(*flags, "--tf32", "true", "--fp16", "--bf16", "false")
        for safe in (["--tf32", "false"], ["--fp16", "--bf16", "false"], ["--use_cpu"]):
            load(*flags, *safe)
        load("--torch_compile_mode", "reduce-overhead")

    def test_settings_of_a_switch_that_is_off_may_stand(self):
        config = load("--use_peft", "false", "--lora_r", "8", "--load_in_4bit", "false", "--bnb_4bit_quant_type", "fp4")
        assert config.model["lora_r"] == 8


class TestBuild:
    def test_sft_config(self, monkeypatch):
        for name in [n for n in os.environ if n.startswith("ACCELERATE_")]:
            monkeypatch.delenv(name)
        flags = ["--use_cpu", "--bf16", "false", "--seed", "7", "--learning_rate", "3e-4", "--warmup_steps", "0.1"]
        args = build_sft_config(load(*flags))
        for name, value in PACKED_ROWS.items():
            assert getattr(args, name) == value, name
        assert (args.seed, args.data_seed, args.learning_rate, args.warmup_steps) == (7, 7, 3e-4, 0.1)
        assert args.logging_nan_inf_filter is False
        assert build_sft_config(load(*flags, "--data_seed", "8")).data_seed == 8

    def test_model_config(self):
        config = load("--use_peft", "--lora_target_modules", "all-linear", "--dtype", "bfloat16")
        model = build_model_config(config)
        assert (model.model_name_or_path, model.lora_target_modules, model.dtype) == ("model", "all-linear", "bfloat16")

    def test_defaults_are_the_libraries_with_what_packed_rows_need(self):
        config = load()
        assert config.value("learning_rate") == 2e-5
        assert config.value("max_length") is None
        assert config.value("lora_r") == 16
        assert config.precision == "bf16"
        assert load("--fp16").precision == "fp16"


def test_one_target_of_adapters_is_a_name_and_not_a_pattern():
    assert build_model_config(load("--use_peft", "--lora_target_modules", "q_proj")).lora_target_modules == ["q_proj"]
    everything = build_model_config(load("--use_peft", "--lora_target_modules", "all-linear"))
    assert everything.lora_target_modules == "all-linear"


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "adalomo"])
def test_optimizers_that_nothing_here_serves_are_refused(optim):
    assert "is refused" in refused("--optim", optim)


class TestHangSeconds:
    def test_some_phases_in_the_file_or_as_a_flag(self, yaml_file):
        path = yaml_file("hang_seconds: {step: 300, save: 1200.5}\n")
        assert load_run_config(["--config", path]).own.hang_seconds == {"step": 300, "save": 1200.5}
        assert load("--hang_seconds", '{"start": 60}').own.hang_seconds == {"start": 60}
        assert load().own.hang_seconds is None

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{training: 5}", "hang_seconds: expected some of start, step, save, evaluation, found 'training'"),
            ("{step: 0}", "hang_seconds: step: expected a number of seconds above 0, found 0"),
            ("{step: true}", "hang_seconds: step: expected a number of seconds above 0, found True"),
            ("{save: .nan}", "hang_seconds: save: expected a number of seconds above 0, found nan"),
            ("{save: 1900}", "hang_seconds: save: expected at most ddp_timeout (1800), found 1900: give a longer"),
            ("{step: 61}\nddp_timeout: 60", "hang_seconds: step: expected at most ddp_timeout (60), found 61"),
            ("600", "expected dict, found 600"),
        ],
    )
    def test_what_is_no_limit_is_refused(self, text, words, yaml_file):
        with pytest.raises(ValueError) as error:
            load_run_config(["--config", yaml_file(f"hang_seconds: {text}\n")])
        assert words in str(error.value)
