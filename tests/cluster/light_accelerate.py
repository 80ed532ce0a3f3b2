"""Stands in for accelerate's launcher where the job around it is tested: a tenth of a second on each node, not four.

train.launch imports it as `accelerate.commands.launch`. It understands the flags that slurm/jobs gives and no other. It
starts processes as torch's launcher does: each in a session of its own, with the variables of its place in the world.
When one fails the others of its node are ended. `environment.json` holds what else accelerate would set.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml

FOLDER = Path(__file__).parents[2]  # the entry of PYTHONPATH, which is not for the processes


class ChildFailedError(Exception):
    """A process has failed; named as torch's own."""

    def __init__(self, rank: int, local_rank: int, pid: int, code: int):
        super().__init__(f"rank {rank}: exit code {code}")
        self.rank, self.failure = rank, SimpleNamespace(local_rank=local_rank, pid=pid, exitcode=code)

    def get_first_failure(self) -> tuple[int, SimpleNamespace]:
        """Its rank, and what is known of it."""
        return self.rank, self.failure


def launch_command_parser() -> argparse.ArgumentParser:
    """The flags of slurm/jobs/launching.py."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("config_file", "main_process_ip", "main_process_port", "log_dir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("num_machines", "num_processes", "machine_rank"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--deepspeed_multinode_launcher", choices=["standard"], required=True)
    parser.add_argument("--tee", choices=["3"], required=True)
    parser.add_argument("--module", action="store_true", required=True)
    parser.add_argument("training_script")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser


def launch_command(arguments: argparse.Namespace) -> None:
    """Run this node's processes to their end.

    Raises:
        ChildFailedError: one has failed.
    """
    shared, running = environment(arguments), {}
    here = arguments.num_processes // arguments.num_machines
    for local_rank in range(here):
        rank = arguments.machine_rank * here + local_rank
        place = {"RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": here}
        process = start(arguments, {**shared, **{name: str(value) for name, value in place.items()}})
        running[process.pid] = (rank, local_rank)
    while running:
        pid, status = os.wait()
        rank, local_rank = running.pop(pid)
        if code := os.waitstatus_to_exitcode(status):
            for other in running:
                os.killpg(other, signal.SIGKILL)
            raise ChildFailedError(rank, local_rank, pid, code)


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Of all processes of the world."""
    more = json.loads((FOLDER / "environment.json").read_text())
    if yaml.safe_load(Path(arguments.config_file).read_text()).get("distributed_type") == "DEEPSPEED":
        more["ACCELERATE_USE_DEEPSPEED"] = "true"
    paths = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path != str(FOLDER)]
    more.update(PYTHONPATH=os.pathsep.join(paths), WORLD_SIZE=str(arguments.num_processes), LIGHT_LAUNCH="1")
    more.update(MASTER_ADDR=arguments.main_process_ip, MASTER_PORT=arguments.main_process_port)
    return {**os.environ, **more}


def start(arguments: argparse.Namespace, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """One process."""
    command = [sys.executable, "-u", "-m", arguments.training_script, *arguments.training_script_args]
    return subprocess.Popen(command, env=variables, start_new_session=True)
