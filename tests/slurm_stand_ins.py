"""Stand-ins for srun, scontrol, scancel, sbatch and accelerate that write down how they were called, and a folder in
which to run the scripts of slurm/ with them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

# One program under several names. srun runs its command once for each node. accelerate plays the training: FAKE_TRAIN
# says what it does at once, or (after a comma) when USR1 has been sent on, and the exit code that srun gets for it.
STAND_IN = r"""#!{python} -SE
import json, os, signal, subprocess, sys, time
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
names = ("SLURM_NODEID", "OMP_NUM_THREADS", "INSIDE_SRUN", "INSIDE_CONTAINER", "PET_SIGNALS_TO_HANDLE")
call = {{"name": name, "arguments": arguments, "env": {{n: os.environ.get(n) for n in names}}}}
for number in ("USR1", "TERM"):
    call["ignores_" + number.lower()] = signal.getsignal(signal.Signals["SIG" + number]) == signal.SIG_IGN
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\n")

def train(what):
    run = Path("run")
    if what == "completes":
        (run / "complete.json").write_text("{{}}")
    if what == "is preempted":
        (run / "preempted.json").write_text('{{"step": 7}}')
    return 3 if what == "fails" else 0

if name == "srun":
    command = arguments[[a.startswith("-") for a in arguments].index(False):]
    nodes = next(int(a.split("=")[1]) for a in arguments if a.startswith("--ntasks="))
    env = dict(os.environ, INSIDE_SRUN="1")
    tasks = []  # the real one passes USR1 on to them
    signal.signal(signal.SIGUSR1, lambda *_: Path("signalled" if tasks else "signalled-early").touch())
    time.sleep(float(os.environ.get("FAKE_LAUNCH_SECONDS", "0")))
    tasks += [subprocess.Popen(command, env=dict(env, SLURM_NODEID=str(node))) for node in range(nodes)]
    sys.exit(max(task.wait() for task in tasks))
if name == "accelerate":
    first, _, on_signal = os.environ["FAKE_TRAIN"].partition(",")
    Path("training").touch()
    while first == "waits" and not Path("signalled").exists():
        time.sleep(0.02)
    sys.exit(train(on_signal if first == "waits" else first))
if name == "apptainer":
    image = arguments.index("image.sif")
    sys.exit(subprocess.call(arguments[image + 1 :], env=dict(os.environ, INSIDE_CONTAINER="1")))
if name == "scontrol" and arguments[:3] == ["--oneliner", "show", "job"]:
    print("JobId=31234 JobState=" + os.environ.get("FAKE_STATE", "RUNNING") + " Reason="
          + os.environ.get("FAKE_REASON", "None") + " Restarts=" + os.environ.get("FAKE_RESTARTS", "0")
          + " PreemptTime="
          + os.environ.get("FAKE_PREEMPT_TIME", "None") + " Requeue=1")
if name == "scontrol" and arguments[0] == "show":
    print("gpu07\n" + "gpu12\n" * 20000, flush=True)  # more than a pipe holds
if name == "scontrol" and arguments[0] == "requeue":
    for process in (os.getppid(), os.getpid()):  # SLURM ends all of the job at once
        os.kill(process, signal.SIGTERM)
    sys.exit(int(os.environ.get("FAKE_REQUEUE", "0")))
if name == "sbatch":
    number = len([line for line in open("calls.jsonl") if '"sbatch"' in line])
    if number > int(os.environ.get("FAKE_LIMIT", "99")):
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    print(100 + number)
"""

JOB = {
    "SLURM_JOB_ID": "31234",
    "SLURM_JOB_NAME": "packhaul-train",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07,12]",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_NODEID": "0",  # what the batch script itself sees, on the first node
    "PACKHAUL_NODES": "2",
    "PACKHAUL_GPUS_PER_NODE": "4",
    "PACKHAUL_CPUS_PER_TASK": "8",
    "PACKHAUL_VENV": "venv",
    "PACKHAUL_CHECK_NODES": "0",
    "FAKE_TRAIN": "completes",
}


class Project:
    """A folder to submit from, with stand-ins for all that a cluster gives."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("packhaul-*"))
        (folder / "configs" / "accelerate").mkdir(parents=True)
        (folder / "configs" / "accelerate" / "zero3_multinode.yaml").touch()
        shutil.copytree(ROOT / "train", folder / "train", ignore=shutil.ignore_patterns("__pycache__"))
        config = {"data": "shards", "model_name_or_path": "model", "output_dir": "run"}
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        binaries = folder / "venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\nunset UNSET; : $UNSET\n')  # as some do
        for name in ("srun", "scontrol", "scancel", "sbatch", "accelerate", "apptainer"):
            (binaries / name).write_text(STAND_IN.format(python=sys.executable))
            (binaries / name).chmod(0o755)
        (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (binaries / "python").chmod(0o755)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PACKHAUL", "OMP_"))}
        path = f"{self.folder}/venv/bin:{clean['PATH']}"
        process = subprocess.Popen(
            ["bash", self.folder / "slurm" / script, *arguments],
            cwd=self.folder,
            env={**clean, "PATH": path, **JOB, **env},
            stdout=(self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """End whatever a script left behind, as SLURM does at the end of a job."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, script: str, *arguments: str, **env: str) -> int:
        return self.start(script, *arguments, **env).wait(30)

    def train(self, **env: str) -> int:
        return self.run("train.sbatch", "--config", "run.yaml", **env)

    def train_with_signal(self, number: signal.Signals = signal.SIGUSR1, **env: str) -> int:
        """train.sbatch, which gets a signal while the training runs."""
        script = self.start("train.sbatch", "--config", "run.yaml", **env)
        wait_for(self.folder / "training")
        script.send_signal(number)
        return script.wait(30)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def calls(self, name: str) -> list[dict]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]

    def requeued(self) -> bool:
        return ["requeue", "31234"] in [call["arguments"] for call in self.calls("scontrol")]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def value(call: dict, flag: str) -> str:
    """What follows `flag` in a recorded command line, as `flag value` or `flag=value`."""
    words = [word for argument in call["arguments"] for word in argument.split("=", 1)]
    return words[words.index(flag) + 1]
