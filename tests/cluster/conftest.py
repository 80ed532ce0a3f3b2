"""A real three-node SLURM cluster for these tests (see slurm_lab.sh), and folders to submit jobs from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("slurm_lab.sh")
UNSHARE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork"]
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter"]
PATIENCE = 6  # limits are written for a machine at rest; other work may run beside the tests
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def reason_to_skip() -> str | None:
    """What this machine lacks for a SLURM cluster of its own, or None."""
    if os.geteuid() != 0:
        return "a SLURM cluster needs root: network namespaces"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client iproute2)"
    namespaces = subprocess.run([*UNSHARE, "true"], capture_output=True)
    return None if namespaces.returncode == 0 else f"no namespaces here: {namespaces.stderr.decode().strip()}"


class SlurmCluster:
    """Three nodes with 8 CPUs and 2 GPUs each (on paper), without internet. Most jobs take two. The whole of it
    ends with `stop`, or with this process, however that ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._keep_alive, alive = os.pipe()[::-1]
        self._lab = subprocess.Popen(
            [LAB, "serve", folder], stdin=alive, stdout=subprocess.PIPE, env=self._env(SLURM_LAB_NODES="3"), text=True
        )
        os.close(alive)
        assert self._lab.stdout is not None
        if self._lab.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError(f"the cluster did not start; its logs are in {folder}/log")
        self._init = Path(f"/proc/{self._lab.pid}/task/{self._lab.pid}/children").read_text().split()[0]

    def stop(self) -> None:
        os.close(self._keep_alive)
        try:
            self._lab.wait(20)
        except subprocess.TimeoutExpired:
            self._lab.kill()  # unshare --kill-child takes the cluster with it
            self._lab.wait(20)

    def _env(self, **more: str) -> dict[str, str]:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PACKHAUL", "OMP_"))
        }
        return {**inherited, "PATH": path, "SLURM_CONF": f"{self.folder}/slurm.conf", **more}

    def run(self, *command: str | Path, cwd: Path | None = None, check: bool = True, **env: str) -> str:
        """Run `command` on the head; its output, both streams. A name with no value is not set."""
        enter = ["nsenter", "-t", self._init, "-n", "-u", "-m", "-p", "--", "sh", "-c", 'cd "$0" && exec "$@"']
        result = subprocess.run(
            [*enter, str(cwd or self.folder), *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env(**env),
            text=True,
            timeout=60 * PATIENCE,
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}")
        return result.stdout

    def cut_node(self, number: int) -> None:
        """A power failure of a node."""
        self.run("bash", LAB, "cut_node", self.folder, str(number))

    def start_node(self, number: int) -> None:
        """The node is back."""
        self.run("bash", LAB, "start_node", self.folder, str(number))

    def submit(self, project: Path, *arguments: str | Path, **env: str) -> dict[str, str]:
        """Call slurm/submit.sh; the job ids that it prints, by stage."""
        lines = self.run(project / "slurm" / "submit.sh", *arguments, cwd=project, **env).splitlines()
        return dict(line.split() for line in lines)

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`; of a job array (or ARRAY_INDEX), one of its tasks."""
        return self.tasks(job_id)[0]

    def tasks(self, job_id: str) -> list[dict[str, str]]:
        """The same for each task of a job array, in order. Tasks that are still waiting are one entry together."""
        lines = self.run("scontrol", "-o", "show", "job", job_id).splitlines()
        jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        return sorted(jobs, key=lambda job: job.get("ArrayTaskId", ""))

    def wait(self, job_id: str, timeout: float) -> dict[str, str]:
        """The job when it is finished for good; a job that waits for its requeue is not."""
        return self.wait_until(lambda job: job["JobState"] in FINISHED, job_id, timeout)

    def wait_until(self, condition, job_id: str, timeout: float, pause: float = 0.5) -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE * timeout
        while not condition(job := self.job(job_id)):
            if time.monotonic() > deadline:
                self.run("scancel", job_id)
                raise TimeoutError(f"job {job_id} is {job['JobState']} after {PATIENCE * timeout} s\n{read_log(job)}")
            time.sleep(pause)
        return job

    def wait_for(self, happened: Callable[[], bool], job_id: str, timeout: float) -> None:
        """Wait for what a job writes: to look at files is cheaper than to ask SLURM. Not after the job's end."""

        def happened_soon(job: dict[str, str]) -> bool:
            end = time.monotonic() + 3
            while not (found := happened()) and time.monotonic() < end:
                time.sleep(0.1)
            return found or job["JobState"] in FINISHED

        job = self.wait_until(happened_soon, job_id, timeout, pause=0)
        assert happened(), f"job {job_id} is {job['JobState']}\n{read_log(job)}"


def read_log(job: dict[str, str]) -> str:
    path = Path(job["StdOut"])
    return path.read_text(errors="replace") if path.is_file() else f"no log {path}"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


def make_project(folder: Path, *packages: str) -> Path:
    """A folder to submit from, like a clone of this repository: slurm/, configs/ and `packages`."""
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("packhaul-*"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    for package in packages:
        shutil.copytree(ROOT / package, folder / package)  # with compiled files, which stay valid
    return folder


def use_stub(folder: Path) -> None:
    """Put the stand-in of stub_sft.py in the place of train.sft."""
    for name, place in {"stub_sft": "sft", "gloo_world": "gloo_world", "socket_world": "socket_world"}.items():
        shutil.copy(Path(__file__).with_name(f"{name}.py"), folder / "train" / f"{place}.py")


def light_launch(folder: Path, environment: dict[str, str] | None = None) -> dict[str, str]:
    """From now on launches in a project take light_accelerate.py for accelerate, where its jobs were submitted with
    what this returns.

    Args:
        environment: what accelerate would hand to each process; the stand-ins need none of it.
    """
    made = folder / "light.new"
    package = made / "accelerate/commands"
    package.mkdir(parents=True)
    for empty in (package.parent / "__init__.py", package / "__init__.py"):
        empty.touch()
    shutil.copy(Path(__file__).with_name("light_accelerate.py"), package / "launch.py")
    (made / "environment.json").write_text(json.dumps(environment or {}))
    made.rename(folder / "light")  # whole at once: a job may be starting
    return light_path(folder)


def light_path(folder: Path) -> dict[str, str]:
    """What a job is submitted with whose launches take the stand-in as soon as `light_launch` has been called."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [f"{folder}/light", os.environ.get("PYTHONPATH")]))}


def stub_project(folder: Path) -> Path:
    """A folder to submit from in which train.sft is the stand-in of stub_sft.py."""
    make_project(folder, "train")
    use_stub(folder)
    config = {"data": "shards", "model_name_or_path": "model", "output_dir": "runs/stub"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def real_launch(tmp_path) -> Path:
    """A folder to submit stand-ins of train.sft from, which accelerate itself launches."""
    return stub_project(tmp_path / "project")


@pytest.fixture
def project(real_launch) -> Path:
    """The same with light launches, and processes without torch: for tests of the job around a launch."""
    light_launch(real_launch)
    return real_launch


def submit_stub(cluster: SlurmCluster, project: Path, site: dict[str, str], **stub) -> str:
    """Submit a training with the stand-in, told to do `stub`; the job id."""
    env = {**site, **light_path(project), "STUB": json.dumps(stub)}
    return cluster.submit(project, "train", "--config", "run.yaml", **env)["train"]


@pytest.fixture
def real_project(tmp_path, tiny_tokenizer, tiny_model_dir) -> Path:
    """A folder to submit from with the real data_prep and train, a tiny model, its tokenizer, and 200 rows of data in
    7 slices, which become 8 shards."""
    folder = make_project(tmp_path / "project", "data_prep", "train")
    rows = ({"question": f"What is {n} plus {n + 1}?", "answer": f"It is {2 * n + 1}."} for n in range(200))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "tokenizer": tiny_tokenizer.name_or_path,
        "seq_len": 128,
        "rows_per_slice": 30,
        "rows_per_shard": 8,
        "sources": [{"name": "sums", "path": "rows.jsonl", "form": "question_answer"}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = {
        "data": "shards",
        "output_dir": "runs/tiny",
        "model_name_or_path": str(tiny_model_dir("llama")),
        "max_steps": 12,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "save_steps": 1000,  # only the signal and the end save
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="session")
def site() -> dict[str, str]:
    """What a user of this cluster would write into slurm/env.sh: two nodes without GPU, one process on each."""
    return {
        "PACKHAUL_NODES": "2",
        "PACKHAUL_GPUS_PER_NODE": "0",
        "PACKHAUL_PROCS_PER_NODE": "1",
        "PACKHAUL_CPUS_PER_TASK": "1",
        "PACKHAUL_MEMORY": "8G",
        "PACKHAUL_TIME": "10",
        "PACKHAUL_SIGNAL_SECONDS": "60",
        "PACKHAUL_CHECK_NODES": "0",  # seconds for each job: two tests have it
        "PACKHAUL_CHECK_SUBMISSION": "0",  # likewise
        "PACKHAUL_EXPORT_MEMORY": "4G",
        "PACKHAUL_PREPARE_CPUS": "1",
        "PACKHAUL_PREPARE_MEMORY": "4G",
        "PACKHAUL_PREPARE_TIME": "10",
        "PACKHAUL_VENV": sys.prefix,
        "PACKHAUL_ACCELERATE_CONFIG": "cpu_zero3_multinode",
        "PACKHAUL_NETWORK_INTERFACE": "eth0",
    }
