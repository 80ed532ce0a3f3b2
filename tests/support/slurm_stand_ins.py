"""Stand-ins for srun, scontrol, sinfo, sbatch, containers and the launch that write down how they were called.

`Project` is a folder in which the scripts of slurm/ run with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]

# One program under several names. srun runs its command once for each node. launch plays the training: FAKE_TRAIN says
# what it does at once, or (after a comma) when USR1 has been sent on, and the exit code that srun gets for it. Several
# attempts in one job are separated by a semicolon.
STAND_IN = r"""#!{python} -SE
import json, os, signal, subprocess, sys, time
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
if arguments == ["--version"]:
    print("slurm " + os.environ.get("FAKE_VERSION", "23.02.7"))
    sys.exit(0)
if name == "python":
    if arguments[:2] != ["-m", "train.launch"]:
        os.execv("{python}", ["{python}", *arguments])
    name, arguments = "launch", arguments[2:]
names = ("SLURM_NODEID", "OMP_NUM_THREADS", "INSIDE_SRUN", "INSIDE_CONTAINER", "PET_SIGNALS_TO_HANDLE")
names += ("PACKHAUL_LOG_DIR", "PACKHAUL_SHARED_DIRS_JSON", "PACKHAUL_DATA_DIR", "PACKHAUL_MODEL_DIR", "SLURM_NTASKS")
names += ("PACKHAUL_GPUS_PER_NODE", "PACKHAUL_PROCS_PER_NODE")
names += ("RANK", "SLURM_CONF", "SBATCH_ACCOUNT", "CUDA_VISIBLE_DEVICES")
call = {{"name": name, "arguments": arguments, "env": {{n: os.environ.get(n) for n in names}}}}
if name == "sbatch":
    call["all_env"] = sorted(os.environ)
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
    if what == "saves and fails":
        step = 1 + len(list(run.glob("checkpoint-*")))
        (run / f"checkpoint-{{step}}").mkdir(exist_ok=True)
        (run / f"checkpoint-{{step}}" / "complete.json").write_text("{{}}")
    code = {{"fails": 3, "saves and fails": 3, "refuses": 2, "loses its port": 4, "hangs": 5}}.get(what, 0)
    logs, node = Path(os.environ["PACKHAUL_LOG_DIR"]), os.environ["SLURM_NODEID"]
    written = {{"time": 1.0, "node": int(node), "host": "gpu07", "exit_code": code, "rank": 1, "who": "rank 1"}}
    (logs / f"launch-node{{node}}.json").write_text(json.dumps(written))
    if code == 5:
        hung = {{"message": "rank 1 on gpu07 hangs: in a save since 14:02:11"}}
        (logs / "hung.json").write_text(json.dumps(hung))
    if code:
        message = "EADDRINUSE" if code == 4 else f"what {{what}}"
        error = {{"time": 1.0, "rank": 1, "host": "gpu07", "exit_code": code, "message": message}}
        error["consequence"] = code == 5
        (logs / "error-rank1.json").write_text(json.dumps(error))
    return code

if name == "srun":
    command = arguments[[a.startswith("-") for a in arguments].index(False):]
    if "train.check_nodes" in command[-1]:
        Path("checking").touch()
        time.sleep(float(os.environ.get("FAKE_CHECK_SECONDS", "0")))
        unfit = json.loads(os.environ.get("FAKE_UNFIT", "{{}}"))
        Path(os.environ["PACKHAUL_LOG_DIR"], "unfit.json").write_text(json.dumps(unfit))
        codes = os.environ.get("FAKE_CHECK", "1" if unfit else "0").split(";")
        number = len(list(Path("slurm/logs/train").glob("*-attempt*"))) - 1
        sys.exit(int(codes[min(number, len(codes) - 1)]))
    if command == ["true"]:
        sys.stderr.write(os.environ.get("FAKE_SRUN_ERROR", ""))
        time.sleep(float(os.environ.get("FAKE_SILENCE", "0")))
        sys.exit(1 if os.environ.get("FAKE_SRUN_ERROR") else 0)
    nodes = next(int(a.split("=")[1]) for a in arguments if a.startswith("--ntasks="))
    env = dict(os.environ, INSIDE_SRUN="1")
    tasks = []  # the real one passes USR1 on to them
    signal.signal(signal.SIGUSR1, lambda *_: Path("signalled" if tasks else "signalled-early").touch())
    Path("launching").touch()
    time.sleep(float(os.environ.get("FAKE_LAUNCH_SECONDS", "0")))
    tasks += [subprocess.Popen(command, env=dict(env, SLURM_NODEID=str(node))) for node in range(nodes)]
    codes = [task.wait() for task in tasks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))
if name == "launch":
    number = len(list(Path("slurm/logs/train").glob("*-attempt*"))) - 1
    tries = os.environ["FAKE_TRAIN"].split(";")
    first, _, on_signal = tries[min(number, len(tries) - 1)].partition(",")
    Path("training").touch()
    while first == "waits" and not Path("signalled").exists():
        time.sleep(0.02)
    sys.exit(train(on_signal if first == "waits" else first))
if name in ("apptainer", "singularity"):
    image = arguments.index("image.sif")
    sys.exit(subprocess.call(arguments[image + 1 :], env=dict(os.environ, INSIDE_CONTAINER="1")))
if name == "scontrol" and arguments[:3] == ["--oneliner", "show", "job"]:
    asked = Path("calls.jsonl").read_text().count('"--oneliner"')
    states = os.environ.get("FAKE_STATE", "RUNNING").split(";")
    print("JobId=31234 JobState=" + states[min(asked, len(states)) - 1] + " Reason="
          + os.environ.get("FAKE_REASON", "None") + " Restarts=" + os.environ.get("FAKE_RESTARTS", "0")
          + " PreemptTime="
          + os.environ.get("FAKE_PREEMPT_TIME", "None") + " Requeue=1 ExcNodeList="
          + os.environ.get("FAKE_EXCLUDED", "(null)"))
if name == "scontrol" and arguments == ["show", "config"]:
    print("MaxArraySize            = 1001\nSlurmdTimeout           = 1 sec")
    sys.exit(0)
if name == "sinfo":
    print(os.environ.get("FAKE_SINFO", "").replace(",", "\n"))
if name == "scontrol" and arguments[:2] == ["show", "hostnames"]:
    nodes = os.environ.get("FAKE_NODES", "gpu07 " + "gpu12 " * 20000)  # more than a pipe holds
    print(nodes.replace(" ", "\n"), flush=True)
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
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07,12]",
    "SLURMD_NODENAME": "gpu07",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_NODEID": "0",  # what the batch script itself sees, on the first node
    "PACKHAUL_NODES": "2",
    "PACKHAUL_GPUS_PER_NODE": "4",
    "PACKHAUL_CPUS_PER_TASK": "8",
    "PACKHAUL_VENV": "venv",
    "PACKHAUL_CHECK_NODES": "0",
    "PACKHAUL_CHECK_SUBMISSION": "0",
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
        for name in ("srun", "scontrol", "scancel", "sbatch", "sinfo", "apptainer", "singularity", "python"):
            (binaries / name).write_text(STAND_IN.format(python=sys.executable))
            (binaries / name).chmod(0o755)

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
        for process in psutil.process_iter():  # srun has a session of its own
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder):
                    process.kill()

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
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def value(call: dict, flag: str) -> str:
    """What follows `flag` in a recorded command line, as `flag value` or `flag=value`."""
    words = [word for argument in call["arguments"] for word in argument.split("=", 1)]
    return words[words.index(flag) + 1]


def plain(arguments: list[str]) -> list[str]:
    """A recorded sbatch command with plain words for a run's name and the submission's time, and with the files that
    were given in the place of their copies."""
    words = [re.sub(r"\b([a-z]+)-[\w.]+-[0-9a-f]{4}\b", r"\1-NAME", word) for word in arguments]
    words = [re.sub(r"submissions/[\d-]+", "submissions/TIME", word) for word in words]
    words = [re.sub(r",PACKHAUL_SUBMISSION=\S+?/TIME", "", word) for word in words]
    return ["run.yaml" if word.endswith(("TIME/run.yaml", "TIME/recipe.yaml")) else word for word in words]


def directives(script: str) -> dict[str, str | None]:
    """The #SBATCH options in a script of slurm/; None for one without a value."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", (ROOT / "slurm" / script).read_text(), re.MULTILINE)
    return {name: value or None for name, value in lines}
