"""What goes wrong on a cluster, on a real one: edits while a job waits, lost nodes, cancelled chains, killed ranks."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.world_runs import launch_environment

from .conftest import SlurmCluster, light_launch, light_path, read_log, submit_stub, use_stub

TRAIN = ["train", "--config", "run.yaml"]
LENGTH = ["--max_steps", "35", "--save_steps", "5"]


@pytest.fixture
def prepared_project(real_project, monkeypatch) -> Path:
    from data_prep import prepare

    monkeypatch.chdir(real_project)
    assert prepare.main(["--recipe", "recipe.yaml", "--output", "shards", "--num-workers", "1"]) == 0
    return real_project


def test_a_job_submitted_from_within_another_runs_what_was_submitted(cluster, project, site):
    """The outer job is an array task with little memory; the inner one waits while what it was made from is edited."""
    outer = cluster.run(
        *["sbatch", "--parsable", "--mem-per-cpu=200", "--array=3", "--output=outer.out"],
        "--wrap=slurm/submit.sh train --config run.yaml",
        cwd=project,
        **{**site, "PACKHAUL_SBATCH_OPTIONS": "--hold", "STUB": '{"steps": 20}', "RANK": "1", "MASTER_PORT": "1"},
        **light_path(project),
    ).strip()
    assert cluster.wait(outer, timeout=60)["JobState"] == "COMPLETED", (project / "outer.out").read_text()
    job_id = (project / "outer.out").read_text().split()[-1]
    config = {"data": "shards", "model_name_or_path": "model", "output_dir": "runs/edited"}
    (project / "run.yaml").write_text(yaml.safe_dump(config))
    (project / "configs/accelerate/cpu_zero3_multinode.yaml").write_text("compute_environment: LOCAL_MACHINE\n")
    (project / "train/new_module.py").write_text("")
    cluster.run("scontrol", "release", job_id)
    job = cluster.wait(job_id, timeout=90)
    log = read_log(job)
    assert (job["JobState"], job["NumNodes"], "ArrayTaskId" in job) == ("COMPLETED", "2", False), log
    assert json.loads((project / "runs/stub/rank0.json").read_text())["deepspeed"] == "true"
    assert not (project / "runs/edited").exists()
    assert "since the submission 1 file(s) have changed: train/new_module.py" in log


def test_a_persons_scancel_ends_the_chain(cluster, project, site):
    chain = {**site, "PACKHAUL_CHAIN": "2", "PACKHAUL_SBATCH_OPTIONS": "--no-requeue"}
    stub = {"STUB": '{"steps": 2000}', **light_path(project)}
    lines = cluster.run(project / "slurm/submit.sh", *TRAIN, cwd=project, **chain, **stub).splitlines()
    first, second = [line.split()[1] for line in lines]
    cluster.wait_for((project / "runs/stub/steps.log").is_file, first, timeout=60)
    cluster.run("scancel", first)
    jobs = [cluster.wait(job_id, timeout=60) for job_id in (first, second)]
    assert [job["JobState"] for job in jobs] == ["CANCELLED", "FAILED"], read_log(jobs[1])
    assert "an earlier job of this chain has failed or was cancelled" in read_log(jobs[1])


def test_within_an_allocation_the_same_path_is_run(cluster, project, site):
    command = ["salloc", "--nodes=2", "--cpus-per-task=1", "--mem=2G", "slurm/run.sh", "--config", "run.yaml"]
    said = cluster.run(*command, cwd=project, **site, STUB='{"steps": 20}', **light_path(project))
    assert "world of 2: 2 node(s)" in said and "training is complete" in said
    hosts = {json.loads((project / f"runs/stub/rank{rank}.json").read_text())["host"] for rank in (0, 1)}
    assert hosts == {"node1", "node2"}


def test_a_spare_node_takes_the_place_of_one_that_dies(cluster, project, site):
    spare = {**site, "PACKHAUL_SPARE_NODES": "1"}
    job_id = submit_stub(cluster, project, spare, steps=150, patience=5)
    cluster.wait_for((project / "runs/stub/steps.log").is_file, job_id, timeout=60)
    cluster.cut_node(2)
    job = cluster.wait(job_id, timeout=150)
    cluster.start_node(2)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), log
    assert "node node2 is left out from now on: it does not answer" in log
    hosts = [json.loads((project / f"runs/stub/rank{rank}.json").read_text())["host"] for rank in (0, 1)]
    assert hosts == ["node1", "node3"]
    cluster.run("bash", "-c", "until [ $(sinfo -h -t idle -o %D) = 3 ]; do sleep 0.2; done")


def test_an_unfit_node_is_excluded_at_the_requeue(cluster, prepared_project, site):
    """The model lies on each node, but for one of those that SLURM gives first."""
    project, model = prepared_project, "/dev/shm/model"
    copy = ["cp", "-r", str(model_of(project)), model]
    cluster.run("srun", "--nodelist=node[1,3]", "--nodes=2", "--mem=1G", *copy)
    config = {"data": "shards", "model_name_or_path": model, "output_dir": "runs/stub"}
    (project / "run.yaml").write_text(yaml.safe_dump(config))
    use_stub(project)
    light_launch(project)
    checked = {**site, "PACKHAUL_CHECK_NODES": "1", "PACKHAUL_MIN_FREE_GIB": "0"}
    job_id = submit_stub(cluster, project, checked, steps=20)
    job = cluster.wait(job_id, timeout=150)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"], job["ExcNodeList"]) == ("COMPLETED", "1", "node2"), log
    assert re.search(r"node node2.*model", log), log


def signalled_when(condition, project: Path, rank: int, log, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a rank of the project's training at once when the condition holds.

    Args:
        log: gives the job's log.
    """
    deadline = time.monotonic() + 240
    while not (found := [process for process in psutil.process_iter() if is_rank(process, project, rank)]):
        assert time.monotonic() < deadline, log()
        time.sleep(0.5)  # it has its imports before it
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.002)
    for process in found:
        process.send_signal(number)


def is_rank(process: psutil.Process, project: Path, rank: int) -> bool:
    """Whether it trains in this project's folder; other tests may run beside this one."""
    try:
        is_ours = "train.sft" in process.cmdline() and process.cwd() == str(project)
        return is_ours and process.environ().get("RANK") == str(rank)
    except psutil.Error:
        return False


def submit_real(cluster: SlurmCluster, project: Path, site: dict[str, str], *more: str) -> str:
    return cluster.submit(project, *TRAIN, *LENGTH, *more, **site)["train"]


def test_killed_and_stopped_ranks_are_outlived_and_the_end_is_that_of_an_uninterrupted_run(
    cluster, prepared_project, site, worlds, tmp_path
):
    """Rank 1 dies in a step, rank 0 in a save, then rank 1 hangs. Before, a rank on node 2 alone fails."""
    project = prepared_project
    config = yaml.safe_load((project / "run.yaml").read_text())
    limits = {"start": 300, "step": 15, "save": 60, "evaluation": 60}
    (project / "run.yaml").write_text(
        yaml.safe_dump({**config, "hang_seconds": limits, "expected_distributed_type": "DEEPSPEED"})
    )
    cluster.run("srun", "--nodelist=node1", "--mem=1G", "cp", "-r", str(model_of(project)), "/dev/shm/only-here")
    # A killed rank is told by accelerate itself, what follows by light launches: starts are most of this test.
    site = {**site, **light_launch(project, launch_environment("cpu_zero3_multinode", 2))}
    lonely = submit_real(cluster, project, site, "--model_name_or_path", "/dev/shm/only-here", "--output_dir", "lonely")
    failed = cluster.wait(lonely, timeout=120)
    first_error = read_log(failed).rpartition("packhaul: ")[2]  # and nothing follows it
    assert (failed["JobState"], failed["ExitCode"]) == ("FAILED", "2:0"), read_log(failed)
    assert first_error.startswith("rank 1 on node2: ") and "/dev/shm/only-here" in first_error
    folders = ["--data", str(project / "shards"), "--output_dir", str(project / "runs/twin")]
    worlds.train("cpu_zero3", project / "run.yaml", tmp_path / "twin.log", *LENGTH, *folders)

    (project / "light").rename(project / "later")
    job_id, run = submit_real(cluster, project, site), project / "runs/tiny"
    again = "training again in this allocation"
    events = [
        (lambda: (run / "checkpoint-5/complete.json").exists(), 1, signal.SIGKILL),
        (lambda: (run / ".saving-15").exists(), 0, signal.SIGKILL),  # after a new checkpoint: progress
        (lambda: (run / "checkpoint-20/complete.json").exists(), 1, signal.SIGSTOP),
    ]
    for number, (condition, rank, sent) in enumerate(events, start=1):
        signalled_when(condition, project, rank, lambda: read_log(cluster.job(job_id)), sent)
        if number == 1:
            (project / "later").rename(project / "light")
        cluster.wait_until(lambda job, n=number: read_log(job).count(again) == n or ended(job), job_id, timeout=90)
    job = cluster.wait(job_id, timeout=200)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), log
    assert log.count(again) == 3, log
    assert re.search(r"rank 1 on node2 hangs: in (step|the save after step) \d+", log), log
    assert (run / "model.safetensors").read_bytes() == (project / "runs/twin/model.safetensors").read_bytes()
    assert json.loads((run / "complete.json").read_text())["world_size"] == 2


def ended(job: dict[str, str]) -> bool:
    return job["JobState"] != "RUNNING"


def model_of(project: Path) -> Path:
    return Path(yaml.safe_load((project / "run.yaml").read_text())["model_name_or_path"])
