"""Run configuration: the libraries' own options, in their types, and the refusal of what would train wrongly."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from train.config import PACKED_ROWS, OwnOptions, build_model_config, build_sft_config, known_options, load_run_config
from train.options import Computed, model_options, package_folder, parse, sft_options
from train.refusals import REFUSALS, RENAMED, unknown_rules

REQUIRED = ["--data", "shards", "--output_dir", "run", "--model_name_or_path", "model"]


def load(*flags: str):
    return load_run_config([*REQUIRED, *flags])


def refused(*flags: str) -> str:
    with pytest.raises(ValueError) as error:
        load(*flags)
    return str(error.value)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(f"data: shards\noutput_dir: run\nmodel_name_or_path: model\n{text}")
        return str(path)

    return write


class TestOptionsOfTheLibraries:
    """What is read from the source is what the imported classes have."""

    @pytest.fixture(scope="class")
    def classes(self):
        from trl import ModelConfig, SFTConfig

        return [(SFTConfig, sft_options()), (ModelConfig, model_options())]

    def test_same_names(self, classes):
        for cls, options in classes:
            assert {f.name for f in dataclasses.fields(cls)} == set(options)

    def test_same_defaults(self, classes):
        for cls, options in classes:
            for f in dataclasses.fields(cls):
                read = options[f.name].default
                if f.default is not dataclasses.MISSING and not isinstance(read, Computed):
                    assert read == f.default, f.name

    def test_same_choices_as_the_enumerations(self):
        from transformers.trainer_utils import SaveStrategy, SchedulerType
        from transformers.training_args import OptimizerNames

        for name, enumeration in (
            ("save_strategy", SaveStrategy),
            ("lr_scheduler_type", SchedulerType),
            ("optim", OptimizerNames),
        ):
            assert sft_options()[name].choices == tuple(member.value for member in enumeration)

    def test_no_name_means_two_things(self):
        own = set(known_options()) - set(sft_options()) - set(model_options())
        assert own == {field.name for field in dataclasses.fields(OwnOptions)}
        assert not set(sft_options()) & set(model_options())

    def test_a_library_that_is_not_installed(self):
        with pytest.raises(ValueError, match="no_such_library is not installed"):
            package_folder("no_such_library")

    def test_rules_are_about_options_that_exist(self):
        assert unknown_rules() == []
        assert not set(RENAMED) & set(known_options())


class TestHelp:
    def run(self, *words: str) -> tuple[subprocess.CompletedProcess, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", *words]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def test_lists_every_option_within_a_second(self):
        result, seconds = self.run("train.preflight", "--help")
        assert result.returncode == 0
        assert seconds < 1.0
        for name in known_options():
            assert f"--{name}" in result.stdout

    def test_of_training_itself(self, capsys):
        with pytest.raises(SystemExit) as stop:
            load_run_config(["--seed", "1", "--help"])
        assert stop.value.code == 0
        assert "--learning_rate float" in capsys.readouterr().out

    def test_an_error_comes_within_a_second(self):
        result, seconds = self.run("train.preflight", "--learning_rat", "1")
        assert result.returncode == 2
        assert seconds < 1.0

    def test_nothing_heavy_is_imported(self):
        heavy = "{'torch', 'transformers', 'trl', 'datasets', 'accelerate', 'pyarrow'}"
        code = f"import sys, train.preflight; print(sorted({heavy} & set(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.stdout.strip() == "[]"


class TestTypes:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("learning_rate", "1e-5", 1e-5),
            ("warmup_steps", "100", 100),
            ("warmup_steps", "0.03", 0.03),
            ("max_steps", "-1", -1),
            ("bf16", "true", True),
            ("use_cpu", "False", False),
            ("run_name", "2024", "2024"),
            ("run_name", "none", None),
            ("report_to", "none", "none"),
            ("eval_strategy", "no", "no"),
            ("lora_target_modules", "all-linear", ["all-linear"]),
            ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
            ("report_to", '["wandb", "tensorboard"]', ["wandb", "tensorboard"]),
            ("pad_to_multiple_of", "8", 8),
            ("pad_to_multiple_of", "auto", "auto"),
        ],
    )
    def test_text_becomes_the_type(self, name, text, value):
        parsed = parse(known_options()[name], text)
        assert parsed == value
        assert type(parsed) is type(value)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("learning_rate", "fast"),
            ("learning_rate", "nan"),
            ("max_steps", "1.5"),
            ("bf16", "maybe"),
            ("eval_strategy", "sometimes"),
            ("optim", "adam"),
            ("dtype", "bf16"),
            ("lr_scheduler_kwargs", "{num_cycles: 2}"),
            ("lora_target_modules", "q_proj,v_proj"),
            ("expected_world_size", "two"),
        ],
    )
    def test_wrong_text_is_refused_with_its_place(self, name, text):
        message = refused("--use_peft", f"--{name}", text)
        assert f"flag --{name}: expected" in message
        assert repr(text) in message

    def test_yaml_values(self, yaml_file):
        text = "learning_rate: 1e-5\neval_strategy: no\nexpected_distributed_type: NO\nsave_steps: 50\nbf16: off\n"
        config = load_run_config(["--config", yaml_file(text)])
        assert config.sft["learning_rate"] == 1e-5  # YAML reads 1e-5 as text
        assert config.sft["eval_strategy"] == "no"  # and a bare no as false
        assert config.own.expected_distributed_type == "NO"
        assert config.sft["save_steps"] == 50
        assert config.precision == "no"

    @pytest.mark.parametrize(
        ("line", "hint"),
        [
            ("max_steps: true", "expected int, found True"),
            ("learning_rate:", "expected float, found nothing"),
            ("run_name: 2024", "expected str, found 2024: put quotes around it"),
            ("report_to: [wandb, 3]", "expected a list of texts"),
            ("seed: 1.5", "expected int, found 1.5"),
            ("learning_rate: .nan", "expected float, found nan"),
            ("save_strategy: often", "expected one of no, steps, epoch, best, found 'often'"),
        ],
    )
    def test_wrong_yaml_value_is_refused_with_file_and_line(self, yaml_file, line, hint):
        path = yaml_file(f"{line}\n")
        with pytest.raises(ValueError) as error:
            load_run_config(["--config", path])
        assert f"{path} line 4: {line.split(':')[0]}: {hint}" in str(error.value)


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

    @pytest.mark.parametrize("name", RENAMED)
    def test_an_old_name_says_the_new_way(self, name):
        assert RENAMED[name] in refused(f"--{name}", "1")

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


# A value that must be refused, for each rule; the type is the option's.
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


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSALS)
    def test_refused_with_the_reason(self, name):
        if name == "parallelism_config":
            assert "flag --parallelism_config: expected object" in refused("--parallelism_config", "x")
            return
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
            (["--load_in_4bit"], "load_in_4bit: quantised weights cannot be trained"),
            (["--use_peft", "--load_in_4bit", "--load_in_8bit"], "load_in_8bit: True together with load_in_4bit"),
            (["--bnb_4bit_quant_type", "fp4"], "bnb_4bit_quant_type: does nothing without load_in_4bit"),
            (["--use_peft", "--lora_target_modules", "q_proj", "lm_head"], "'lm_head' is refused"),
            (["--model_init_kwargs", '{"dtype": "float16"}'], "'dtype' would be overwritten"),
            (["--accelerator_config", '{"split_batches": true}'], "split_batches: True is refused"),
            (["--accelerator_config", '{"dispatch_batches": true}'], "dispatch_batches: True is refused"),
            (["--accelerator_config", '{"use_seedable_sampler": false}'], "use_seedable_sampler: False is refused"),
            (["--accelerator_config", "x.json"], "accelerator_config: expected a mapping"),
            (["--liger_kernel_config", '{"fused_linear_cross_entropy": true}'], "fused_linear_cross_entropy"),
            (["--gradient_checkpointing", "true", "--activation_checkpointing", "false"], "contradicts"),
            (["--activation_offloading", "--use_cpu"], "activations are in the CPU's memory already"),
            (["--label_smoothing_factor", "0.1", "--loss_type", "dft"], "does nothing with loss_type: dft"),
            (["--optim", "adalomo"], "accumulation and clipping do nothing"),
            (["--optim", "galore_adamw_layerwise"], "accumulation and clipping do nothing"),
        ],
    )
    def test_refused_combinations(self, flags, words):
        assert words in refused(*flags)

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
