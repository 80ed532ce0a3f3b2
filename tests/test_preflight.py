"""Each disagreement that the preflight check knows is found, and a sound set-up passes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.preflight_files import WORDS, write_model, write_shards, write_tokenizer
from train.config import load_run_config
from train.launch import launch_from_environment, launch_from_file
from train.preflight import check, examine, main
from train.schedule import derive

CPU = ["--use_cpu", "--bf16", "false"]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def flags(shards, model, tmp_path):
    """The flags of a sound run on the CPU."""
    return ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run"), *CPU]


@pytest.fixture
def deepspeed_file(tmp_path):
    """Write a DeepSpeed JSON: sound, but for the keys given (None removes one)."""

    def write(**changes: Any) -> Path:
        auto = (
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "train_batch_size",
            "gradient_clipping",
        )
        settings = {"zero_optimization": {"stage": 2}, **dict.fromkeys(auto, "auto"), **changes}
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


@pytest.fixture
def launch_file(tmp_path, deepspeed_file):
    """Write an accelerate YAML: DeepSpeed on two CPU processes, but for the keys given (None removes one)."""

    def write(deepspeed: dict[str, Any] | None = None, **changes: Any) -> Path:
        json_file = tmp_path / "deepspeed.json"
        section = {"deepspeed_config_file": str(json_file if json_file.exists() else deepspeed_file())}
        settings = {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {**section, **(deepspeed or {})},
            "num_processes": 2,
            "use_cpu": True,
            **changes,
        }
        path = tmp_path / "accelerate.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


def problems(flags: list[str], *more: str, launch: Path | None = None, world_size: int | None = None) -> str:
    return "\n".join(check(load_run_config([*flags, *more]), accelerate_config=launch, world_size=world_size))


def test_a_sound_set_up_passes(flags, launch_file):
    assert problems(flags, launch=launch_file()) == ""
    assert problems(flags) == ""


class TestLaunchFile:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"distributed_type": "MULTI_CPU"}, "distributed_type MULTI_CPU starts one process"),
            ({"distributed_type": "NO"}, "distributed_type NO starts one process"),
            ({"distributed_type": False}, "distributed_type NO starts one process"),
            ({"distributed_type": "FSDP"}, "it would silently be plain DDP"),
            ({"distributed_type": None}, "expected distributed_type"),
            ({"num_machines": 2}, "expected deepspeed_multinode_launcher: standard for 2 machines, found None"),
            ({"mixed_precision": "bf16"}, "mixed_precision beside deepspeed_config_file"),
            ({"deepspeed": {"zero_stage": 2}}, "zero_stage beside deepspeed_config_file"),
            ({"deepspeed": {"gradient_clipping": 1.0}}, "gradient_clipping beside deepspeed_config_file"),
            ({"deepspeed": {"zero3_init_flag": True}}, "zero3_init_flag is True, but"),
            ({"deepspeed": {"deepspeed_config_file": "nowhere.json"}}, "nowhere.json: no such file"),
            ({"deepspeed": {"deepspeed_config_fle": "x"}}, "unknown to accelerate: deepspeed_config_fle"),
            ({"num_proceses": 2}, "unknown to accelerate: num_proceses"),
            ({"use_cpu": False}, "use_cpu is False, in the run config True"),
            (
                {"parallelism_config": {"parallelism_config_cp_size": 2}},
                "documents of a packed row attend to each other",
            ),
            (
                {"parallelism_config": {"parallelism_config_sp_size": 2}},
                "documents of a packed row attend to each other",
            ),
        ],
    )
    def test_found(self, flags, launch_file, changes, words):
        assert words in problems(flags, launch=launch_file(**changes))

    def test_the_standard_launcher_joins_machines(self, flags, launch_file):
        file = launch_file(deepspeed={"deepspeed_multinode_launcher": "standard"}, num_machines=2)
        assert problems(flags, launch=file) == ""

    def test_precision_outside_deepspeed(self, flags, launch_file):
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None, mixed_precision="bf16")
        assert "mixed_precision is bf16, the run config says no" in problems(flags, launch=file)
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None, mixed_precision="fp8")
        assert "mixed_precision fp8: bf16: true in the run config would replace it in silence" in problems(
            flags, launch=file
        )
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None, mixed_precision="no")
        assert problems(flags, launch=file) == ""

    def test_one_process_cannot_be_many(self, flags, launch_file):
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None)
        assert "distributed_type NO starts 1 process, 4 are asked for" in problems(flags, launch=file, world_size=4)
        assert problems(flags, launch=file, world_size=1) == ""

    def test_accelerates_own_section_instead_of_a_deepspeed_file(self, flags, launch_file):
        file = launch_file(deepspeed_config={"zero_stage": 2, "gradient_clipping": 1.0})
        assert problems(flags, launch=file) == ""
        assert "gradient_clipping is 1.0, in the run config 0.5" in problems(flags, "--max_grad_norm=0.5", launch=file)

    def test_a_key_twice(self, flags, launch_file):
        file = launch_file()
        file.write_text(file.read_text() + "num_processes: 4\n")
        assert "key 'num_processes' is given twice" in problems(flags, launch=file)

    def test_what_is_expected(self, flags, launch_file):
        file = launch_file()
        assert "expected_world_size is 4, the launch makes 2" in problems(flags, "--expected_world_size=4", launch=file)
        assert problems(flags, "--expected_world_size=4", launch=file, world_size=4) == ""
        found = problems(flags, "--expected_distributed_type=FSDP", launch=file)
        assert "expected_distributed_type is FSDP, this launch makes DEEPSPEED" in found

    def test_accelerate_use_cpu_turns_deepspeed_off(self, flags, launch_file, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        # The check binds os.environ, not a copy of it.
        assert "ACCELERATE_USE_CPU is set: it silently turns DeepSpeed" in problems(flags, launch=launch_file())


class TestDeepSpeedFile:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"zero_optimization": {"stage": "auto"}}, "expected zero_optimization.stage 0, 1, 2 or 3, found 'auto'"),
            ({"zero_optimization": None}, "expected zero_optimization.stage 0, 1, 2 or 3, found None"),
            ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, in the run config 8"),
            ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, in the run config 1"),
            ({"train_batch_size": 8}, "train_batch_size is 8, in the run config 16"),
            ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, in the run config 1.0 (max_grad_norm)"),
            ({"gradient_clipping": None}, "gradient_clipping is missing: DeepSpeed takes its own default"),
            ({"gradient_accumulation_steps": None}, "gradient_accumulation_steps is missing"),
            ({"bf16": {"enabled": True}}, "bf16.enabled is True, in the run config bf16 is False"),
            ({"fp16": {"enabled": True}}, "fp16.enabled is True, in the run config fp16 is False"),
            ({"optimizer": {"type": "AdamW"}}, "section 'optimizer' would replace the run config's optim"),
            (
                {"scheduler": {"type": "WarmupLR"}},
                "section 'scheduler' would replace the run config's lr_scheduler_type",
            ),
        ],
    )
    def test_found(self, flags, deepspeed_file, launch_file, changes, words):
        deepspeed_file(**changes)
        assert words in problems(flags, launch=launch_file())

    def test_numbers_that_agree_pass(self, flags, deepspeed_file, launch_file):
        deepspeed_file(
            train_batch_size=16, train_micro_batch_size_per_gpu=8, gradient_clipping=1, bf16={"enabled": False}
        )
        assert problems(flags, launch=launch_file()) == ""

    def test_zero3_init_flag(self, flags, deepspeed_file, launch_file):
        deepspeed_file(zero_optimization={"stage": 3})
        found = problems(flags, launch=launch_file(deepspeed={"zero3_init_flag": False}))
        assert "zero3_init_flag is False, but" in found
        assert problems(flags, launch=launch_file(deepspeed={"zero3_init_flag": True})) == ""

    def test_offload_would_replace_the_optimizer(self, flags, deepspeed_file, launch_file):
        offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
        deepspeed_file(zero_optimization=offload)
        words = "offload_optimizer cpu would silently replace paged_adamw_8bit"
        assert words in problems(flags, "--optim=paged_adamw_8bit", launch=launch_file())
        assert "replace sgd" in problems(flags, "--optim=sgd", launch=launch_file())
        assert problems(flags, "--optim=adamw_torch", launch=launch_file()) == ""
        deepspeed_file(zero_optimization=offload, zero_force_ds_cpu_optimizer=False)
        assert problems(flags, "--optim=paged_adamw_8bit", launch=launch_file()) == ""

    @pytest.mark.parametrize("optim", ["adafactor", "stable_adamw"])
    def test_optimizers_that_need_whole_weights(self, flags, optim, launch_file, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        assert f"on which {optim} would silently be another optimizer" in problems(
            flags, "--optim", optim, launch=launch_file()
        )
        assert problems(flags, "--optim", optim) == ""

    def test_a_key_twice(self, flags, deepspeed_file, launch_file):
        deepspeed_file().write_text('{"gradient_clipping": 1, "gradient_clipping": 2}')
        assert "key 'gradient_clipping' is given twice" in problems(flags, launch=launch_file())

    def test_not_a_mapping(self, flags, deepspeed_file, launch_file):
        deepspeed_file().write_text("[1]")
        assert "deepspeed.json: expected a mapping, found list" in problems(flags, launch=launch_file())

    def test_no_gathered_weights_is_a_note(self, flags, deepspeed_file, launch_file):
        deepspeed_file(zero_optimization={"stage": 3})
        report = examine(load_run_config(flags), accelerate_config=launch_file(), world_size=None)
        assert not report.problems
        assert any("no weights file is written" in note for note in report.notes)


class TestEnvironment:
    """Inside `accelerate launch` the same is found in what it hands to each process."""

    @pytest.fixture
    def environment(self, deepspeed_file):
        return {
            "ACCELERATE_MIXED_PRECISION": "no",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(deepspeed_file()),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "WORLD_SIZE": "2",
        }

    def found(self, flags, environment, monkeypatch, *more: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return problems(flags, *more, world_size=2)

    def test_a_sound_one_passes(self, flags, environment, monkeypatch):
        assert self.found(flags, environment, monkeypatch) == ""

    def test_no_launcher(self):
        assert launch_from_environment({}) is None

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU is set"),
            ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag is True, but"),
            ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}, "nowhere.json: no such file"),
            ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "documents of a packed row attend to each other"),
            ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "true"}, "it would silently be plain DDP"),
            ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision is bf16"),
        ],
    )
    def test_found(self, flags, environment, monkeypatch, changes, words):
        assert words in self.found(flags, {**environment, **changes}, monkeypatch)

    def test_one_process_on_the_cpu(self, flags, monkeypatch):
        """What the launcher of one process hands over: the check about ACCELERATE_USE_CPU is for DeepSpeed alone."""
        environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert problems(flags, world_size=1) == ""
        monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
        assert "use_cpu is False, in the run config True" in problems(flags, world_size=1)

    def test_expectations(self, flags, environment, monkeypatch):
        more = ["--expected_world_size=8", "--expected_distributed_type=NO"]
        found = self.found(flags, environment, monkeypatch, *more)
        assert "expected_world_size is 8, the launch makes 2" in found
        assert "expected_distributed_type is NO, this launch makes DEEPSPEED" in found

    @pytest.mark.parametrize("in_file", [True, False])
    def test_is_what_accelerate_makes_of_the_file(self, launch_file, monkeypatch, in_file):
        """The environment is accelerate's own, made from the YAML by its launcher's code."""
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        changes: dict[str, Any] = {"deepspeed": {"zero3_init_flag": True}}
        if not in_file:  # accelerate's own section instead of a DeepSpeed file
            section = {"zero_stage": 3, "gradient_clipping": 0.5, "gradient_accumulation_steps": 4}
            changes = {"deepspeed_config": {**section, "offload_optimizer_device": "cpu", "zero3_init_flag": True}}
        file = launch_file(**changes)
        args = launch_command_parser().parse_args(["--config_file", str(file), "-m", "train.sft"])
        args, defaults, _ = _validate_launch_command(args)
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(args)
        inside = launch_from_environment({**environment, "WORLD_SIZE": "2"})
        before = launch_from_file(file)
        assert inside.distributed_type == before.distributed_type == "DEEPSPEED"
        assert inside.num_processes == before.num_processes == 2
        assert inside.deepspeed["zero3_init_flag"] is before.deepspeed["zero3_init_flag"] is True
        assert inside.deepspeed_settings() == before.deepspeed_settings()


class TestData:
    def test_not_finished(self, flags, shards):
        (shards / "manifest.json").unlink()
        assert "its preparation has not finished" in problems(flags)

    def test_no_such_directory(self, flags):
        assert "no such directory" in problems([*flags[2:], "--data", "nowhere"])

    def test_another_format(self, flags, shards):
        manifest = json.loads((shards / "manifest.json").read_text())
        (shards / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
        assert "expected format_version 1, found 99" in problems(flags)

    def test_a_shard_is_missing_or_cut(self, flags, shards):
        file = shards / "train" / "00000.arrow"
        file.write_bytes(file.read_bytes()[:-8])
        (shards / "eval" / "00000.arrow").unlink()
        found = problems(flags)
        assert f"data: {file}: expected" in found
        assert f"data: {shards / 'eval' / '00000.arrow'}: missing" in found

    def test_changed_bytes_are_found_on_request(self, flags, shards, capsys):
        file = shards / "train" / "00000.arrow"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert main(flags) == 0
        assert main([*flags, "--verify_data"]) == 2
        assert "the bytes have changed" in capsys.readouterr().err

    def test_nothing_to_train_on(self, tmp_path, flags):
        empty = write_shards(tmp_path / "empty", rows=0)
        assert "has no rows to train on" in problems([*flags[2:], "--data", str(empty)])


class TestModel:
    def with_model(self, flags, folder: Path, *more: str) -> str:
        return problems([*flags[:2], *flags[4:], "--model_name_or_path", str(folder), *more])

    def test_no_folder(self, flags, tmp_path):
        assert "expected a model folder, found none at" in self.with_model(flags, tmp_path / "nowhere")

    def test_a_hub_model_that_is_not_here(self, flags, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        found = problems([*flags[:2], *flags[4:], "--model_name_or_path", "nobody/nothing"])
        assert "nobody/nothing is no folder here, and not in the hub cache while HF_HUB_OFFLINE is set" in found
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        config = load_run_config([*flags[:2], *flags[4:], "--model_name_or_path", "nobody/nothing"])
        report = examine(config, accelerate_config=None, world_size=1)
        assert not report.problems
        assert any("nobody/nothing is not on this machine" in note for note in report.notes)

    def test_an_adapter_or_an_empty_folder(self, flags, model):
        (model / "model.safetensors").unlink()
        assert "expected weights" in problems(flags)
        (model / "config.json").rename(model / "adapter_config.json")
        assert "holds an adapter, not a model" in problems(flags)
        (model / "adapter_config.json").unlink()
        assert "expected config.json" in problems(flags)

    def test_pickled_weights(self, flags, model):
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        assert "are pickled (*.bin), and loading them can run any code" in problems(flags)
        assert problems(flags, "--allow_pickle") == ""

    def test_label_smoothing_would_drop_the_balancing_loss(self, flags, model):
        write_model(model, router_aux_loss_coef=0.001)
        assert problems(flags) == ""
        smoothing = ["--label_smoothing_factor", "0.1"]
        assert "(router_aux_loss_coef 0.001) would be left out" in problems(flags, *smoothing)
        assert problems(flags, *smoothing, "--router_aux_loss_coef", "0") == ""

    def test_layers_that_cannot_be_packed(self, flags, model):
        write_model(model, model_type="lfm2", layer_types=["conv", "full_attention"])
        assert "model_type lfm2 has conv" in problems(flags)

    def test_documents_longer_than_the_context(self, flags, model, tmp_path):
        write_model(model, max_position_embeddings=7)
        assert "max_position_embeddings is 7, the longest document" in problems(flags)
        # Positions begin anew with each document: rows may be longer than the context.
        write_model(model, max_position_embeddings=8)
        assert problems(flags) == ""

    def test_a_language_model_inside_a_multimodal_one(self, flags, model):
        settings = {"vocab_size": 8, "max_position_embeddings": 7}
        (model / "config.json").write_text(json.dumps({"text_config": settings}))
        assert "max_position_embeddings is 7" in problems(flags)

    def test_token_ids_without_an_embedding(self, flags, model):
        write_model(model, vocab_size=5)
        assert "vocab_size is 5, the shards hold token id 5: a manifest from another tokenizer" in problems(flags)

    def test_unused_token_ids_need_no_embedding(self, flags, tmp_path):
        shards = write_shards(tmp_path / "few", largest_id=4)
        write_model(tmp_path / "model", vocab_size=5)
        assert problems([*flags[2:], "--data", str(shards)]) == ""

    @pytest.mark.parametrize(
        ("vocabulary", "words"),
        [
            (
                {**WORDS, "one": 3, "two": 2},
                "2 of 6 tokens in common have other ids; 'one' is id 2 in the shards and 3",
            ),
            ({"a": 0, "b": 1, "c": 2, "d": 3, "four": 5}, "only 1 of the shards' 6 tokens are tokens of the model"),
        ],
    )
    def test_another_tokenizer(self, flags, model, vocabulary, words):
        write_tokenizer(model, vocabulary)
        found = problems(flags)
        assert "a manifest from another tokenizer than the model's" in found
        assert words in found

    def test_a_tokenizer_of_the_same_vocabulary(self, flags, model, shards):
        write_tokenizer(model, {**WORDS, "five": 6})
        assert problems(flags) == ""
        base = {token: i for token, i in WORDS.items() if token != "<end>"}
        write_tokenizer(shards / "tokenizer", base, added={"<end>": 1, "<turn>": 7})  # the instruct model's
        assert problems(flags) == ""

    def test_a_model_without_a_tokenizer_passes(self, flags, model):
        (model / "tokenizer.json").unlink()
        assert problems(flags) == ""

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    @pytest.mark.parametrize("text", ["[1]", "{"])
    def test_files_that_cannot_be_read(self, flags, model, name, text):
        (model / name).write_text(text)
        assert f"{model / name}: " in problems(flags)

    def test_a_unigram_vocabulary(self, flags, model):
        content = {"model": {"type": "Unigram", "vocab": [[token, 0.0] for token in reversed(WORDS)]}}
        (model / "tokenizer.json").write_text(json.dumps(content))
        assert "6 of 6 tokens in common have other ids" in problems(flags)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--attn_implementation", "flash_attention_2"], "flash_attention_2 needs a GPU, but use_cpu is true"),
            (["--attn_implementation", "flex"], "attn_implementation: 'flex' is not known to keep"),
            (["--use_liger_kernel"], "use_liger_kernel: needs the package liger_kernel"),
            (["--report_to", "mlflow", "wandb"], "report_to mlflow: needs the package mlflow"),
            (["--optim", "galore_adamw"], "optim galore_adamw: needs the package galore_torch"),
        ],
    )
    def test_what_is_not_there(self, flags, more, words, monkeypatch):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name: None if name in ("liger_kernel", "mlflow", "galore_torch") else name,
        )
        assert words in problems(flags, *more)

    def test_flash_attention_is_not_installed(self, flags, monkeypatch):
        monkeypatch.setattr("train.attention.has_distribution", lambda name: False)
        gpu = [flag for flag in flags if flag not in CPU]
        found = problems(gpu, "--attn_implementation", "flash_attention_2")
        assert "flash_attention_2 needs flash-attn, which is not installed" in found
        monkeypatch.setattr("train.attention.has_distribution", lambda name: name == "flash-attn")
        assert problems(gpu, "--attn_implementation", "flash_attention_2") == ""

    def test_an_attention_kernel_from_the_hub_needs_its_package(self, flags, monkeypatch):
        gpu = [flag for flag in flags if flag not in CPU]
        monkeypatch.setattr("train.attention.has_distribution", lambda name: False)
        found = problems(gpu, "--attn_implementation", "kernels-community/flash-attn2")
        assert "kernels-community/flash-attn2 needs kernels, which is not installed" in found
        monkeypatch.setattr("train.attention.has_distribution", lambda name: name == "kernels")
        assert problems(gpu, "--attn_implementation", "kernels-community/flash-attn2") == ""
        assert problems(gpu, "--attn_implementation", "flash_attention_2") == ""  # transformers takes the kernel then

    def test_remote_code_is_noted(self, flags):
        report = examine(load_run_config([*flags, "--trust_remote_code"]), accelerate_config=None, world_size=1)
        assert any("trust_remote_code is on" in note for note in report.notes)

    def test_bf16_weights_without_deepspeed_are_noted(self, flags, launch_file):
        config = load_run_config([*flags, "--dtype", "bfloat16"])
        alone = examine(config, accelerate_config=None, world_size=1)
        assert any("small updates to bfloat16 weights are rounded away" in note for note in alone.notes)
        assert not any("rounded" in n for n in examine(config, accelerate_config=launch_file(), world_size=2).notes)


class TestSchedule:
    def test_no_eval_split(self, tmp_path, flags):
        shards = write_shards(tmp_path / "no_eval", eval_rows=0)
        flags = [*flags[2:], "--data", str(shards)]
        assert "has no eval split" in problems(flags, "--eval_strategy", "epoch")
        assert problems(flags) == ""

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ([], "true needs evaluations to know the best by"),
            (["--eval_strategy", "epoch"], "expects save_strategy: epoch, as eval_strategy, found steps"),
            (
                ["--eval_strategy=steps", "--eval_steps=40", "--save_steps=100"],
                "a multiple of eval_steps, found 100 and 40",
            ),
            (["--eval_strategy=steps", "--eval_steps=0.1", "--save_steps=100"], "a multiple of eval_steps"),
            (["--eval_strategy=steps", "--eval_steps=0.2", "--save_steps=0.5"], "a multiple of eval_steps"),
            (["--eval_strategy=steps", "--logging_steps=30", "--save_steps=100"], "found 100 and 30"),
        ],
    )
    def test_best_checkpoint(self, flags, more, words):
        assert words in problems(flags, "--load_best_model_at_end", *more)

    @pytest.mark.parametrize(
        "more",
        [
            ["--eval_strategy=steps", "--eval_steps=50", "--save_steps=100"],
            ["--eval_strategy=steps", "--eval_steps=0.1", "--save_steps=0.3"],
            ["--eval_strategy=steps", "--eval_steps=50", "--save_strategy=best"],
            ["--eval_strategy=epoch", "--save_strategy=epoch"],
        ],
    )
    def test_best_checkpoint_that_fits(self, flags, more):
        assert problems(flags, "--load_best_model_at_end", *more) == ""

    def test_the_metric_is_one_that_is_measured(self, flags):
        steps = ["--eval_strategy=epoch", "--save_strategy=epoch", "--load_best_model_at_end"]
        for name in ("loss", "eval_loss", "eval_token_accuracy", "words_loss", "eval_words_loss_change"):
            assert problems(flags, *steps, "--metric_for_best_model", name) == ""
        found = problems(flags, *steps, "--metric_for_best_model", "accuracy")
        assert "metric_for_best_model: expected one of eval_loss, eval_token_accuracy, eval_words_loss, " in found
        found = problems(flags, *steps, "--eval_on_start=false", "--metric_for_best_model", "loss_change")
        assert "found loss_change" in found  # nothing to compare with

    def test_plateau_and_best_need_evaluations(self, flags):
        assert "best needs evaluations" in problems(flags, "--save_strategy", "best")
        assert "needs evaluations" in problems(flags, "--lr_scheduler_type", "reduce_lr_on_plateau")

    def test_derived_numbers(self, flags):
        more = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=3", "--num_train_epochs=1.5"]
        more += [
            "--warmup_steps=0.1",
            "--save_steps=2",
            "--eval_strategy=steps",
            "--eval_steps=3",
            "--save_total_limit=3",
        ]
        train = {"rows": 40, "tokens": 640, "trained_tokens": 320}
        schedule = derive(load_run_config([*flags, *more]), train, processes=2)
        assert schedule.rows_per_step == 12
        assert schedule.tokens_per_step == 192
        assert schedule.trained_tokens_per_step == 96
        assert schedule.steps_per_epoch == 4  # 40 rows, 12 a step
        assert schedule.total_steps == 6
        assert schedule.warmup_steps == 1
        assert schedule.num_checkpoints == 3  # after 2, 4 and 6
        assert schedule.num_evaluations == 3  # that of the base model with them

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--warmup_steps", "15"], "warm-up takes all"),
            (["--gradient_accumulation_steps", "8"], "a step takes 64 rows, the train split has 40"),
            (["--save_strategy", "no"], "no checkpoint is written before the end"),
        ],
    )
    def test_notes(self, flags, more, words):
        report = examine(load_run_config([*flags, *more]), accelerate_config=None, world_size=1)
        assert any(words in note for note in report.notes)
        sound = examine(load_run_config(flags), accelerate_config=None, world_size=1)
        assert not any(words in note for note in sound.notes)

    @pytest.mark.parametrize(("batch", "accumulation", "epochs"), [(1, 1, 1.0), (3, 2, 2.5), (4, 8, 1.0)])
    def test_steps_are_the_trainers(self, flags, batch, accumulation, epochs, tmp_path):
        """One process; the trainer's own arithmetic on a data loader of the same length."""
        import math

        from transformers import Trainer, TrainingArguments

        more = [f"--per_device_train_batch_size={batch}", f"--gradient_accumulation_steps={accumulation}"]
        train = {"rows": 41, "tokens": 41, "trained_tokens": 41}
        schedule = derive(load_run_config([*flags, *more, f"--num_train_epochs={epochs}"]), train, processes=1)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            use_cpu=True,
        )
        trainer = object.__new__(Trainer)
        trainer.args = args
        trainer.get_total_train_batch_size = lambda args: batch * accumulation
        trainer.get_sp_size = lambda: 1
        trainer.num_examples = lambda loader: 41
        values = trainer.set_initial_training_values(args, [None] * math.ceil(41 / batch))
        assert (schedule.steps_per_epoch, schedule.total_steps) == (values[1], values[6])


class TestCommand:
    def test_summary_and_exit_code(self, flags, launch_file, capsys):
        assert main([*flags, "--accelerate_config", str(launch_file()), "--warmup_steps", "2"]) == 0
        out = capsys.readouterr().out
        assert "16 rows a step = 8 x 1 accumulated x 2 processes: about 256 tokens, 128 of them trained" in out
        assert "9 in all, 3 an epoch, 2 of warm-up" in out
        assert "preflight: nothing wrong found" in out

    def test_every_problem_is_listed(self, flags, launch_file, model, capsys):
        write_model(model, vocab_size=5)
        more = ["--load_best_model_at_end", "--expected_world_size", "8", "--attn_implementation", "flash_attention_2"]
        file = launch_file(deepspeed={"zero3_init_flag": True})
        assert main([*flags, *more, f"--accelerate_config={file}"]) == 2
        err = capsys.readouterr().err
        assert "5 problem(s)" in err
        for words in (
            "vocab_size is 5",
            "load_best_model_at_end",
            "expected_world_size",
            "flash_attention_2",
            "zero3_init",
        ):
            assert words in err

    def test_launch_problems_beside_a_wrong_run_config(self, flags, launch_file, capsys):
        file = launch_file(distributed_type="MULTI_CPU")
        assert main([*flags, "--packing", "--accelerate_config", str(file)]) == 2
        err = capsys.readouterr().err
        assert "MULTI_CPU starts one process" in err
        assert "flag --packing: True is refused" in err

    def test_number_of_processes(self, flags, launch_file, capsys):
        file = launch_file(num_processes=None)
        assert main([*flags, "--accelerate_config", str(file), "--num_processes", "4"]) == 0
        assert "x 4 processes" in capsys.readouterr().out
        assert main([*flags, "--accelerate_config", str(file)]) == 0
        assert "the number of processes is not known" in capsys.readouterr().out
        assert main([*flags, "--num_processes", "0"]) == 2
        assert "--num_processes: expected a whole number of 1 or more, found '0'" in capsys.readouterr().err
        assert main([*flags, "--accelerate_config"]) == 2
        assert "--accelerate_config: expected a value behind it" in capsys.readouterr().err

    def test_the_data_stays_untouched(self, flags, shards, launch_file):
        before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards.rglob("*") if p.is_file()}
        main([*flags, "--accelerate_config", str(launch_file()), "--verify_data"])
        assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards.rglob("*") if p.is_file()}
