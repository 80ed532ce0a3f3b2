"""train.checks.launch: the launch file, and the environment that accelerate makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.preflight_runs import problems
from train.checks.launch import check_launch, launch_from_environment, launch_from_file
from train.memory.from_run import sharding_of


class TestLaunchFile:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"distributed_type": "MULTI_CPU"}, "distributed_type MULTI_CPU starts one process"),
            ({"distributed_type": "NO"}, "distributed_type NO starts one process"),
            ({"distributed_type": False}, "distributed_type NO starts one process"),
            ({"distributed_type": "FSDP"}, "it would silently be plain DDP"),
            ({"distributed_type": "FSDP"}, "expected fsdp_version: 2, found 1"),
            (
                {"distributed_type": "FSDP", "fsdp_config": {"fsdp_state_dict_type": "LOCAL_STATE_DICT"}},
                "expected fsdp_state_dict_type SHARDED_STATE_DICT or FULL_STATE_DICT, found LOCAL_STATE_DICT",
            ),
            (
                {"distributed_type": "FSDP", "fsdp_config": {"fsdp_activation_checkpointing": True}},
                "fsdp_activation_checkpointing: true is refused: it recomputes with other random numbers",
            ),
            (
                {"distributed_type": "FSDP", "fsdp_config": {"fsdp_offload_params": True}},
                "fsdp_offload_params: true is refused: it is not compared with a reference here",
            ),
            ({"distributed_type": None}, "expected distributed_type"),
            ({"num_machines": 2}, "expected deepspeed_multinode_launcher: standard for 2 machines, found None"),
            ({"mixed_precision": "bf16"}, "mixed_precision next to deepspeed_config_file"),
            ({"deepspeed": {"zero_stage": 2}}, "zero_stage next to deepspeed_config_file"),
            ({"deepspeed": {"gradient_clipping": 1.0}}, "gradient_clipping next to deepspeed_config_file"),
            ({"deepspeed": {"zero3_init_flag": True}}, "zero3_init_flag is True, but"),
            ({"deepspeed": {"deepspeed_config_file": "nowhere.json"}}, "nowhere.json: no such file"),
            ({"deepspeed": {"deepspeed_config_fle": "x"}}, "unknown to accelerate: deepspeed_config_fle"),
            ({"num_proceses": 2}, "unknown to accelerate: num_proceses"),
            ({"use_cpu": False}, "use_cpu is False, in the run config True"),
            (
                {"parallelism_config": {"parallelism_config_cp_size": 2}},
                "write sequence_parallel in the run config",
            ),
            (
                {"parallelism_config": {"parallelism_config_dp_shard_size": 2}},
                "dp_replicate_size and dp_shard_size are for distributed_type FSDP, found DEEPSPEED",
            ),
            (
                {"distributed_type": "FSDP", "parallelism_config": {"parallelism_config_dp_replicate_size": 2}},
                "expected parallelism_config_dp_shard_size of 2 or more, found 1",
            ),
            (
                {"distributed_type": "FSDP", "parallelism_config": {"parallelism_config_dp_shard_size": 4}},
                "dp_replicate_size 1 times parallelism_config_dp_shard_size 4 makes 4 processes, 2 are started",
            ),
            (
                {"parallelism_config": {"parallelism_config_sp_size": 2}},
                "write sequence_parallel in the run config",
            ),
        ],
    )
    def test_found(self, flags, launch_file, changes, words):
        assert words in problems(flags, launch=launch_file(**changes))

    @pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "lion_32bit", "adagrad"])
    def test_an_optimizer_that_cannot_step_on_shards(self, optim, flags, launch_file):
        found = problems(flags, "--optim", optim, launch=launch_file(distributed_type="FSDP"))
        assert f"optim {optim} cannot step on weights that FSDP shards" in found
        assert "cannot step" not in problems(flags, launch=launch_file(distributed_type="FSDP"))

    def test_groups_that_replicate(self):
        environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        sizes = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
        launch = launch_from_environment({**environment, **sizes, "ACCELERATE_USE_PARALLELISM_CONFIG": "true"})
        assert not list(check_launch(launch, 4)) and "makes 4 processes, 8 are" in "".join(check_launch(launch, 8))
        assert sharding_of(launch, 8).replicas == 2
        unused = launch_from_environment({**environment, **sizes})
        assert not list(check_launch(unused, 8)) and sharding_of(unused, 8).replicas == 1

    def test_the_standard_launcher_joins_machines(self, flags, launch_file):
        file = launch_file(deepspeed={"deepspeed_multinode_launcher": "standard"}, num_machines=2)
        assert problems(flags, launch=file) == ""

    def test_precision_outside_deepspeed(self, flags, launch_file):
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None, mixed_precision="bf16")
        assert "mixed_precision is bf16, the run config says no" in problems(flags, launch=file)
        file = launch_file(distributed_type="NO", num_processes=1, deepspeed_config=None, mixed_precision="fp8")
        assert "mixed_precision fp8: bf16: true in the run config would silently replace it" in problems(
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
            ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "write sequence_parallel in the run config"),
            ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "true"}, "it would silently be plain DDP"),
            (
                {
                    "ACCELERATE_USE_DEEPSPEED": "false",
                    "ACCELERATE_USE_FSDP": "true",
                    "FSDP_ACTIVATION_CHECKPOINTING": "true",
                },
                "fsdp_activation_checkpointing: true is refused",
            ),
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
