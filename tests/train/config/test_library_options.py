"""train.config.library_options: what is read from the source is what the classes have; values in their types."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.run_flags import refused
from train.config.library_options import Computed, model_options, package_folder, parse, sft_options
from train.config.own_options import OwnOptions, known_options
from train.config.refused_options import RENAMED, unknown_rules
from train.config.run_config import load_run_config


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
