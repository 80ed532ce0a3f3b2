"""Every file under configs/ that starts training parses, is what its name says, and passes the preflight check."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.strict_files import read_json, read_yaml
from tests.conftest import ROOT
from tests.support.preflight_files import write_model, write_shards
from tests.support.training import kill
from train.checks.launch import launch_from_file
from train.config.run_config import load_run_config
from train.preflight import check

ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
TRAIN = sorted((ROOT / "configs" / "train").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


def flags_for(train: Path, launch: Path, folder: Path) -> list[str]:
    """The run config as shipped, on shards and a model that exist, on the hardware of the launch file."""
    shards = write_shards(folder / "shards", rows=400)
    mixture = {"model_type": "qwen3_moe", "num_experts": 8} if launch.stem.endswith("_ep") else {}
    model = write_model(folder / "model", **mixture)
    flags = ["--config", str(train), "--data", str(shards), "--model_name_or_path", str(model)]
    settings, _ = read_yaml(launch)
    if settings["use_cpu"]:
        return [*flags, "--use_cpu", "--bf16", "false"]
    return [*flags, "--use_cpu", "false"]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the paths in configs are relative to it


def test_all_kinds_are_shipped():
    gpu = {"single_gpu", "zero1", "zero2", "zero3", "zero3_multinode", "fsdp2", "fsdp2_multinode"}
    gpu |= {"zero2_offload", "zero3_offload", "zero3_nvme", "zero3_plus_multinode", "zero2_ep", "zero3_ep"}
    cpu = {"cpu_single", "cpu_zero1", "cpu_zero2", "cpu_zero3", "cpu_zero3_multinode", "cpu_zero3_offload"}
    cpu |= {"cpu_zero2_ep", "cpu_zero3_ep"}
    assert {path.stem for path in ACCELERATE} == gpu | cpu
    other = {"zero2_offload", "zero3_offload", "zero3_nvme", "zero3_plus", "zero2_ep", "zero3_ep"}
    assert {path.stem for path in DEEPSPEED} == {"zero1", "zero2", "zero3"} | other


# Two of a kind are enough with every file; those for one GPU are tried with each kind of file, and those that differ
# from them in numbers alone only with their own (tests/test_recipes.py).
FOR_ONE_GPU = {"example_one_gpu", "example_lora_80gb", "medical_qa"}
OF_A_KIND = {"llama_70b_full", "llama_70b_lora", "long_rows", "tool_calls", "reasoning"}
KINDS = {"single_gpu", "zero2_offload", "zero3", "zero3_ep", "fsdp2", "cpu_zero2"}
PAIRS = [
    pytest.param(launch, train, id=f"{launch.stem}-{train.stem}")
    for launch in ACCELERATE
    for train in TRAIN
    if train.stem not in OF_A_KIND and (train.stem not in FOR_ONE_GPU or launch.stem in KINDS)
]


@pytest.mark.parametrize(("launch", "train"), PAIRS)
def test_every_run_config_passes_with_every_launch_file(train, launch, tmp_path):
    processes = launch_from_file(launch).num_processes or 16
    flags = [*flags_for(train, launch, tmp_path), f"--expected_world_size={processes}"]
    flags += ["--expected_distributed_type", launch_from_file(launch).distributed_type]
    offloaded = any(word in launch.stem for word in ("offload", "nvme"))
    options, _ = read_yaml(train)
    paged = options.get("optim", "").startswith("paged")
    if offloaded and paged:  # DeepSpeed's own Adam would stand in for its 8-bit one
        [problem] = check(load_run_config(flags), accelerate_config=launch, world_size=processes)
        assert "would silently replace paged_adamw_8bit" in problem
        flags += ["--optim", "adamw_torch"]
    if options.get("bf16_copies") and launch.stem != "single_gpu":  # for one process without DeepSpeed
        problems = check(load_run_config(flags), accelerate_config=launch, world_size=processes)
        assert any(problem.startswith("bf16_copies: expected one process") for problem in problems)
        flags += ["--bf16_copies", "false"]
    if launch.stem.endswith("_ep") and (options.get("use_peft") or options.get("torch_compile")):
        problems = check(load_run_config(flags), accelerate_config=launch, world_size=processes)
        names = [word for word, on in (("adapters", options.get("use_peft")),
                                       ("torch_compile", options.get("torch_compile"))) if on]  # fmt: skip
        assert len(problems) == len(names) and all(any(name in said for said in problems) for name in names)
        return
    if "fsdp" in launch.stem and paged:
        [problem] = check(load_run_config(flags), accelerate_config=launch, world_size=processes)
        assert "optim paged_adamw_8bit cannot step on weights that FSDP shards" in problem
        flags += ["--optim", "adamw_torch"]
    assert check(load_run_config(flags), accelerate_config=launch, world_size=processes) == []


@pytest.mark.parametrize("path", [p for p in TRAIN if p.stem.startswith("example")], ids=name_of)
def test_an_example_agrees_with_its_own_numbers(path, tmp_path):
    """The launch file that its first lines name, with no flag but for the data and the model."""
    launch = ROOT / next(word for word in path.read_text().replace("=", " ").split() if "configs/accelerate/" in word)
    flags = flags_for(path, launch, tmp_path)[:-2]
    assert check(load_run_config(flags), accelerate_config=launch) == []


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_deepspeed_files_hold_stage_and_communication_only(path):
    settings = read_json(path)
    assert settings.pop("zero_optimization")["stage"] == int(path.stem[4])
    assert settings.pop("bf16") == settings.pop("fp16") == {"enabled": "auto"}
    assert ("aio" in settings) == ("nvme" in path.stem)
    settings.pop("aio", None)
    experts = settings.pop("expert_parallel", None)
    expected = {"enabled": True, "autoep_size": 2, "use_grouped_mm": False}
    assert experts == (expected if path.stem.endswith("_ep") else None)
    assert set(settings.values()) == {"auto"}


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_deepspeed_knows_every_key(path):
    """DeepSpeed's own reading of the section; an unknown key is an error there."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    section = read_json(path)["zero_optimization"]
    known = DeepSpeedZeroConfig(**{key: value for key, value in section.items() if value != "auto"})
    names = set(DeepSpeedZeroConfig.model_fields) | {f.alias for f in DeepSpeedZeroConfig.model_fields.values()}
    assert set(section) <= names and known.stage == section["stage"]


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_reads_them_as_meant(path):
    """Through accelerate's own launcher, up to the environment it would give to each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    multinode = ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "node1"]
    multinode += ["--main_process_port", "29500", "--deepspeed_multinode_launcher", "standard"]  # as slurm gives them
    flags = multinode if "multinode" in path.stem else []
    args = launch_command_parser().parse_args(["--config_file", str(path), *flags, "-m", "train.sft"])
    args, defaults, _ = _validate_launch_command(args)
    processes = {"single": 1, "multinode": 16, "cpu": 2, "": 8}
    assert args.num_processes == next(number for part, number in processes.items() if part in path.stem)
    assert args.use_cpu is path.stem.startswith("cpu")
    assert args.use_deepspeed is ("zero" in path.stem)
    assert args.use_fsdp is ("fsdp" in path.stem)
    if args.use_fsdp:
        environment = prepare_multi_gpu_env(args)
        assert (environment["FSDP_VERSION"], environment["FSDP_STATE_DICT_TYPE"]) == ("2", "SHARDED_STATE_DICT")
        assert (args.nproc_per_node, getattr(args, "nnodes", "1")) == (("8", "2") if flags else ("8", "1"))
    if not args.use_deepspeed:
        return
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    command, environment = prepare_deepspeed_cmd_env(args)
    assert command is None  # its own launcher, torchrun: not DeepSpeed's, which needs ssh
    stage = int(path.stem.removeprefix("cpu_")[4])
    name = path.stem.removeprefix("cpu_").removesuffix("_multinode")
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"configs/deepspeed/{name}.json"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str(stage == 3).lower()
    assert args.nproc_per_node == str(args.num_processes // (2 if flags else 1))


PROBE = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from train.config.run_config import build_sft_config, load_run_config

args = build_sft_config(load_run_config(sys.argv[2:]))
a = Accelerator()
stage = a.state.deepspeed_plugin and a.state.deepspeed_plugin.zero_stage
found = [args.world_size, a.num_processes, a.distributed_type.value, stage]
Path(sys.argv[1], str(a.process_index)).write_text(json.dumps(found))
"""


def start_probe(folder: Path, launch: str, *flags: str, use_cpu: bool) -> subprocess.Popen:
    """Start processes that write the world they are in, from a shipped launch file."""
    script = folder / "probe.py"
    script.write_text(PROBE)
    command = [Path(sys.executable).with_name("accelerate"), "launch"]
    command += ["--config_file", f"configs/accelerate/{launch}.yaml", *flags, script, folder]
    command += ["--data", "x", "--model_name_or_path", "x", "--output_dir", folder / "run", "--bf16", "false"]
    command += ["--use_cpu"] if use_cpu else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def exit_codes(processes: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            kill(process)


@pytest.mark.parametrize(
    ("launch", "kind"),
    [
        ("cpu_zero3_multinode", ["DEEPSPEED", 3]),
        ("fsdp2_multinode", ["MULTI_CPU", None]),  # what accelerate makes of FSDP without GPUs
    ],
)
def test_machines_join_one_world(launch, kind, tmp_path):
    """Two launchers, as on two machines: one world of two, not two of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = [
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        port,
    ]
    machines = [start_probe(tmp_path, launch, *flags, "--machine_rank", str(i), use_cpu=True) for i in (0, 1)]
    assert exit_codes(machines) == [0, 0], (tmp_path / "log").read_text()
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert found == [[2, 2, *kind]] * 2


def test_processes_that_would_train_alone_are_stopped(tmp_path):
    """Without use_cpu in the run config, DeepSpeed on a machine without a GPU makes worlds of one process."""
    codes = exit_codes([start_probe(tmp_path, "cpu_zero2", "--main_process_port", "0", use_cpu=False)])
    assert codes != [0]
    assert "started a world of 2 process(es), this process joined one of 1" in (tmp_path / "log").read_text()
