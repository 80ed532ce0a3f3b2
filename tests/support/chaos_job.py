"""A SLURM job whose training is started and killed by chaos.py: the real loop over attempts, without a cluster.

It runs in a process of its own (`slurm.jobs.train_job`). What it would start with srun it asks for over a pipe, and is
told the exit code; SLURM's own answers are those of a job that runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

RUNNING = "JobId=1 JobState=RUNNING Reason=None Restarts=0 PreemptTime=None"
SITE = {
    "PACKHAUL_GPUS_PER_NODE": "0",
    "PACKHAUL_PROCS_PER_NODE": "1",
    "PACKHAUL_CPUS_PER_TASK": "1",
    "PACKHAUL_CHECK_NODES": "0",
    "PACKHAUL_ACCELERATE_CONFIG": "cpu_single",
    "PACKHAUL_MAX_FAILURES": "100",  # kills in a row that come before a new checkpoint
    "PACKHAUL_VENV": sys.prefix,
}
JOB = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_CPUS_PER_TASK": "1",
}


class Job:
    """A running job.

    Args:
        folder: where it runs; slurm/ and configs/ of the project are linked there.
        config: of the training.
    """

    def __init__(self, folder: Path, config: Path):
        for name in ("slurm/env.sh", "slurm/jobs", "slurm/__init__.py", "configs", "train", "data_prep"):
            (folder / name).parent.mkdir(exist_ok=True)
            if not (folder / name).exists():
                (folder / name).symlink_to(ROOT / name)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(config)],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "job.log").open("a"),
            text=True,
        )

    def asks(self) -> bool:
        """Whether it asks for another attempt; else it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == "train\n"

    def tell(self, code: int) -> None:
        """How the attempt has ended: an exit code as srun gives it."""
        assert self._process.stdin is not None
        print(code, file=self._process.stdin, flush=True)

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait(60)


def environment(folder: Path) -> dict[str, str]:
    """The variables that slurm/env.sh exports here, and those of a job."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "PACKHAUL"))}
    given = {**clean, **SITE, **JOB, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", ". slurm/env.sh; env -0"]
    read = subprocess.run(command, cwd=folder, env=given, capture_output=True, check=True).stdout.decode()
    return dict(pair.split("=", 1) for pair in read.split("\0") if "=" in pair)


def main(config: str) -> int:
    """The job."""
    from slurm.jobs import answers, attempt, environment, launching, train_job, world

    chaos = os.dup(1)
    os.dup2(2, 1)  # the job's own lines go into its log

    def ask(*command, timeout=60, env=None):
        return 0, RUNNING, ""

    def train(self, nodes, variables, arguments, is_saved):
        os.write(chaos, b"train\n")
        return int(sys.stdin.readline())

    answers.ask = ask
    answers.host_names = lambda node_list: [node_list]
    launching.Steps.train = train
    environment.enter = lambda site: environment.Environment(dict(os.environ))
    assert (attempt.answers.ask, world.answers.ask) == (ask, ask)
    return train_job.main(["--config", config])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
