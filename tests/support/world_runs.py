"""Runs of train.sft in worlds of several processes, forked from one process that has imported everything.

    python -m tests.support.world_runs PLAN.json    # attempts one after the other; 1 as soon as one ends otherwise
    python -m tests.support.world_runs --serve      # an attempt a line of standard input; see tests/support/worlds.py

An `accelerate launch` spends most of a short test in imports, once in each process. Here each process of each run is
forked after them, with the environment that `accelerate launch` itself would make. PLAN.json is a list of attempts:
`accelerate` (name in configs/accelerate), `processes`, `flags`, `log`, `rows` (a folder: each process writes there
which rows it trained in which step), `stop_at` (a signal comes to the last process in this step), `fault` (process,
step, "die", "hang", "stop", "full" for the error of a full disk or "limit" for a limit of the kernel on what this
process may write to a file, up to the next call, and where, if not in the step: "start", "data", "save", or of
sharded states "states", "plan" and "write", where calls are counted), `faults` (several of them),
`slow` (process, seconds that each of its steps sleeps), `environment` (more variables), `code` (the exit code expected;
else 0), `module` (whose `main` gets the flags; else train.sft), `alone` (a single process, with no
launcher's environment), `converter` (DeepSpeed's converter of states runs in a process of its own, as it does for
users; else in the one that calls it), `estimate` (at its end a run estimates its memory, as it does for users).
"""

from __future__ import annotations

import errno
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.support.fsdp_on_cpu import tell_of_gpus
from train.checkpoint import world_size
from train.memory import after_run

ROOT = Path(__file__).resolve().parents[2]

# With what they import late.
IMPORTED = """
datasets deepspeed peft transformers trl deepspeed.ops.op_builder.all_ops deepspeed.module_inject.auto_ep_layer
deepspeed.runtime.zero.muon.muon_optimizer deepspeed.runtime.superoffload.superoffload_stage3
deepspeed.checkpoint.ds_to_universal torch.nn.attention.varlen transformers.models.llama.modeling_llama
train.sft train.checkpoint.final_model train.checkpoint.logging_sums train.loop.setup train.loop.trainer
train.loop.wandb_run train.model.documentwise train.model.isolation train.model.loading train.model.neftune
"""
CODES = "exit codes: "  # begins the answer to an attempt; the libraries print as well


def main() -> int:
    """Run the plan's attempts one after the other; 1 as soon as one does not end as it should."""
    if sys.argv[1] == "--serve":
        return serve()
    plan = json.loads(Path(sys.argv[1]).read_text())
    import_everything()
    for number, attempt in enumerate(plan):
        codes = run(attempt)
        if any(code != attempt.get("code", 0) for code in codes):
            print(f"attempt {number}: exit codes {codes}: {Path(attempt['log']).read_text()[-6000:]}")
            return 1
    return 0


def serve() -> int:
    """Run attempts as they come, until there are no more."""
    import_everything()
    for line in sys.stdin:
        print(f"{CODES}{json.dumps(run(json.loads(line)))}", flush=True)
    return 0


def import_everything() -> None:
    """What each process needs, so that it is forked with it."""
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    from train.run import compile_locks

    compile_locks.announce_builds()
    ShareMemCommBuilder().load(verbose=False)  # compiled once, before several processes want it
    import_libraries()


def import_libraries() -> None:
    """What each process imports, in a state in which forks share it."""
    gc.disable()  # imports leave hardly any garbage
    for name in IMPORTED.split():
        importlib.import_module(name)
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # a table that is made once for all models
    gc.enable()
    gc.collect()
    gc.freeze()  # else each process looks through, and so copies, all that its parent holds


def run(attempt: dict[str, Any]) -> list[int]:
    """Start a world and wait for it; the exit codes. When a process fails the others are killed, as a launcher does."""
    children = start_world(attempt)
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0)
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] not in (0, 9):
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [code for code in codes.values() if code not in (-signal.SIGKILL, 9)]  # 9: the fault


def start_world(attempt: dict[str, Any]) -> list[int]:
    """Fork the processes of an attempt; their ids."""
    shared = {} if attempt.get("alone") else world_environment(attempt)
    children = []
    for rank in range(attempt["processes"]):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            own = {"RANK": rank, "LOCAL_RANK": rank} if shared else {}
            more = {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1, **attempt.get("environment", {})}
            os.environ.update({key: str(value) for key, value in (shared | own | more).items()})
            run_and_exit(attempt, rank)
        children.append(child)
    return children


def world_environment(attempt: dict[str, Any]) -> dict[str, Any]:
    """What all processes of a world have in common."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = attempt["processes"]
    sizes = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return launch_environment(attempt["accelerate"], world) | sizes


def launch_environment(accelerate: str, processes: int) -> dict[str, str]:
    """What `accelerate launch` hands to each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    file = str(ROOT / "configs" / "accelerate" / f"{accelerate}.yaml")
    words = ["--config_file", file, "--num_processes", str(processes), "--main_process_port", "0", "-m", "train.sft"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_fsdp:
        return prepare_multi_gpu_env(arguments)
    deepspeed = "zero" in accelerate
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return (prepare_deepspeed_cmd_env if deepspeed else prepare_simple_launcher_cmd_env)(arguments)[1]


def run_and_exit(attempt: dict[str, Any], rank: int) -> None:
    """The forked process: it must never go on as its parent."""
    code = 1
    try:
        out = os.open(attempt["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        _record(attempt, rank)
        if not attempt.get("converter"):
            world_size.subprocess = ConvertedHere
        if not attempt.get("estimate"):
            after_run.estimated = lambda *_: {}
        if attempt["accelerate"].startswith("fsdp"):
            tell_of_gpus()
        code = importlib.import_module(attempt.get("module", "train.sft")).main(attempt["flags"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _record(attempt: dict[str, Any], rank: int) -> None:
    """Write down what is trained, and send the signal."""
    from train.loop.trainer import PackedSFTTrainer

    original = PackedSFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        step = self.state.global_step + 1
        if attempt.get("rows"):
            row = hashlib.sha256(inputs["input_ids"].numpy().tobytes()).hexdigest()
            with (Path(attempt["rows"]) / f"process{rank}").open("a") as file:
                file.write(f"{step} {row}\n")
        if step == attempt.get("stop_at") and rank == attempt["processes"] - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        slow, seconds = attempt.get("slow", [None, 0])
        time.sleep(seconds if slow == rank else 0)
        return original(self, model, inputs, *args, **kwargs)

    PackedSFTTrainer.training_step = training_step
    faults = [*attempt.get("faults", []), *([attempt["fault"]] if "fault" in attempt else [])]
    for process, *fault in faults:
        if process == rank:
            _break(*fault)


class ConvertedHere:
    """What train.checkpoint.world_size uses of `subprocess`, without another import of torch and DeepSpeed."""

    @staticmethod
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """The converter, in this process."""
        from deepspeed.checkpoint import ds_to_universal

        python, option, module, *words = command
        assert (python, option, module) == (sys.executable, "-m", ds_to_universal.__name__), command
        before, sys.argv = sys.argv, [module, *words, "--num_extract_workers", "1", "--num_merge_workers", "1"]
        try:
            ds_to_universal.main(ds_to_universal.parse_arguments())
        finally:
            sys.argv = before
        return subprocess.CompletedProcess(command, 0, "", "")


def _break(call: int, kind: str, where: str = "step") -> None:
    """Let this process die, hang or be stopped in its n-th call of a function."""
    from accelerate.utils import fsdp_utils
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    import train.loop.setup
    from train.checkpoint.saving import Checkpointer
    from train.loop.data import SourceCollator
    from train.loop.trainer import PackedSFTTrainer

    places: dict[str, tuple[Any, str]] = {
        "start": (train.loop.setup, "_load_rows"),
        "data": (SourceCollator, "__call__"),
        "step": (PackedSFTTrainer, "training_step"),
        "save": (Checkpointer, "save"),
        "states": (fsdp_utils, "_get_model_state_dict"),
        "plan": (DefaultSavePlanner, "create_local_plan"),
        "write": (FileSystemWriter, "write_data"),
    }
    owner, name = places[where]
    original, calls, unlimited = getattr(owner, name), [], resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def faulty(*args, **kwargs):
        calls.append(name)
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        if (args[0].state.global_step + 1 if where == "step" else len(calls)) == call:
            FAULTS[kind]()
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


def _fill_up() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _limit_files() -> None:
    """Writes past it fail in the middle of a file, with "File too large" (Python ignores the signal)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


FAULTS = {
    "full": _fill_up,
    "limit": _limit_files,
    "die": lambda: os._exit(9),
    "hang": lambda: time.sleep(600),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


if __name__ == "__main__":
    sys.exit(main())
