"""The SLURM templates on a real cluster: launch, signals, requeue, failure, and the whole chain."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from .conftest import light_launch, light_path, read_log, stub_project, submit_stub


def attempts(project: Path) -> Path:
    """The folder of the logs of the only training."""
    (folder,) = (project / "slurm/logs").glob("train-*")
    return folder


@pytest.fixture(scope="module")
def failed_job(cluster, site, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Two nodes with two processes each, of which one fails at its third step: the folder, and the job at its end."""
    folder = stub_project(tmp_path_factory.mktemp("failed") / "project")
    size = {"PACKHAUL_PROCS_PER_NODE": "2", "PACKHAUL_CPUS_PER_TASK": "4", "PACKHAUL_GPUS_PER_NODE": "2"}
    job_id = submit_stub(cluster, folder, {**site, **size}, steps=1000, failing_rank=3)
    return folder, cluster.wait(job_id, timeout=90)


def test_two_nodes_with_two_processes_each_are_one_world_of_four(failed_job):
    project, job = failed_job
    log = read_log(job)
    ranks = [json.loads((project / f"runs/stub/rank{rank}.json").read_text()) for rank in range(4)]
    assert [rank["world_size"] for rank in ranks] == [4] * 4, log
    assert [(rank["host"], rank["node_id"]) for rank in ranks] == [("node1", "0")] * 2 + [("node2", "1")] * 2
    assert {rank["threads"] for rank in ranks} == {"2"}  # 4 CPUs for 2 processes
    assert {rank["port"] for rank in ranks} == {str(15000 + int(job["JobId"]))}
    assert {(rank["interface"], rank["deepspeed"], rank["offline"]) for rank in ranks} == {("eth0", "true", "1")}
    assert (job["NumNodes"], job["CPUs/Task"], job["Requeue"]) == ("2", "4", "1")
    assert "world of 4: 2 node(s) x 2 process(es)" in log
    logs = list((attempts(project) / f"{job['JobId']}-attempt0").rglob("stdout.log"))
    assert sorted(path.read_text().split(" on ")[0] for path in logs) == [f"rank {rank} of 4" for rank in range(4)]
    assert not list(project.rglob(".visible-*"))


def test_a_rank_that_fails_ends_the_job_which_is_not_requeued(failed_job):
    project, job = failed_job
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), log
    folder = attempts(project) / f"{job['JobId']}-attempt0"
    errors = folder.rglob("stderr.log")
    failed = [path.relative_to(folder).parts[0] for path in errors if "fails as it was told" in path.read_text()]
    assert failed == ["node1"]
    assert "training failed, not requeued" in log
    assert "rank 3 (local rank 1" in log.splitlines()[-1] and "on node2 ended with exit code" in log.splitlines()[-1]


def test_signals_are_obeyed_also_during_start_up_and_the_last_restart_ends_with_85(cluster, real_launch, site):
    """A real launch gets USR1 while it starts. It goes on in light ones, of which the first gets TERM alone, as where a
    site sends nothing else. The end after a requeue is shown below, by the real training."""
    run = real_launch / "runs/stub"
    saved, steps = run / "step.txt", run / "steps.log"

    def signal_the_script(name: str, restarts: int) -> None:
        """Once it has trained a step since the last signal."""
        cluster.wait_until(lambda job: job["Restarts"] == str(restarts), job_id, timeout=60)
        step = int(saved.read_text()) if saved.is_file() else 0  # by now the attempt before has saved
        began = lambda: steps.is_file() and len(steps.read_text().split()) > step  # noqa: E731
        cluster.wait_for(began, job_id, timeout=60)
        cluster.run("scancel", "--batch", f"--signal={name}", job_id)

    job_id = submit_stub(cluster, real_launch, {**site, "PACKHAUL_MAX_RESTARTS": "2"}, steps=4000)
    started = "slurm/logs/train-*/*-attempt0/node*.started"  # the launchers, seconds before their processes
    cluster.wait_for(lambda: len(list(real_launch.glob(started))) == 2, job_id, timeout=20)
    cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    cluster.wait_for((run / "preempted.json").is_file, job_id, timeout=60)
    light_launch(real_launch)
    signal_the_script("TERM", restarts=1)
    signal_the_script("USR1", restarts=2)
    job = cluster.wait(job_id, timeout=60)
    log = read_log(job)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "85:0", "2"), log
    assert "requeued: restart 1 of at most 2" in log and "attempt 1" in log  # appended, not overwritten
    assert "requeued: restart 2 of at most 2" in log and "TERM: asking the training processes" in log
    assert "not requeued: PACKHAUL_MAX_RESTARTS restarts are used up" in log
    last = int(saved.read_text())
    assert [int(line) for line in steps.read_text().split()] == list(range(1, last + 1))  # none lost, none done twice
    names = [f"{job_id}-attempt{number}" for number in range(3)]
    assert sorted(path.name for path in attempts(real_launch).glob("*-attempt*")) == names
    assert (attempts(real_launch) / "latest").resolve().name == names[-1]


def test_a_cancelled_job_saves_but_is_not_requeued(cluster, project, site):
    job_id = submit_stub(cluster, project, site, steps=1000)
    cluster.wait_for((project / "runs/stub/steps.log").is_file, job_id, timeout=60)
    cluster.run("scancel", job_id)
    job = cluster.wait(job_id, timeout=50)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    log = read_log(job)
    assert 'preempted, checkpoint saved: {"step":' in log and "not requeued: the job was cancelled" in log


def test_a_chain_of_jobs_goes_on_without_a_requeue_and_a_busy_port_is_passed_over(cluster, project, site):
    """The second job of the chain finishes the training; the third has nothing to do."""
    chain = {**site, "PACKHAUL_CHAIN": "3", "PACKHAUL_SBATCH_OPTIONS": "--no-requeue"}
    busy = (
        "import socket, time; held = [socket.create_server(('', p)) for p in range(15000, 15200, 2)]; time.sleep(600)"
    )
    holder = cluster.run(
        *["sbatch", "--parsable", "--nodelist=node1", "--mem=1G", f'--wrap={sys.executable} -c "{busy}"'], cwd=project
    ).strip()
    arguments = ["train", "--config", "run.yaml"]
    stub = {"STUB": '{"steps": 100}', **light_path(project)}
    lines = cluster.run(project / "slurm/submit.sh", *arguments, cwd=project, **chain, **stub)
    jobs = [line.split()[1] for line in lines.splitlines()]
    cluster.wait_for((project / "runs/stub/steps.log").is_file, jobs[0], timeout=60)
    cluster.run("scancel", "--batch", "--signal=USR1", jobs[0])
    first, second, third = (cluster.wait(job, timeout=60) for job in jobs)
    cluster.run("scancel", holder)
    assert [job["JobState"] for job in (first, second, third)] == ["COMPLETED"] * 3, read_log(second)
    assert "the next job of the chain goes on" in read_log(first)
    assert "training is complete" in read_log(second)
    assert "an earlier job of this chain has finished the training" in read_log(third)
    steps = (project / "runs/stub/steps.log").read_text()
    assert [int(line) for line in steps.split()] == list(range(1, 101))
    assert sum("is in use on node1: trying the next" in read_log(job) for job in (first, second)) == 1


@pytest.mark.parametrize("first", ["slurm", "training"])
def test_a_job_goes_on_after_a_power_failure_of_a_node(first, cluster, real_launch, site):
    """Whoever notices it first: gloo, where it is the training. Nothing is saved on the way: it goes on from the last
    checkpoint, here none."""
    project = real_launch
    if first == "slurm":
        light_launch(project)
    job_id = submit_stub(cluster, project, site, steps=150, patience=60 if first == "slurm" else 2)
    cluster.wait_for((project / "runs/stub/steps.log").is_file, job_id, timeout=60)
    cluster.cut_node(2)
    # A signal that is being passed on when the attempt ends must not reach the next one.
    cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    cluster.wait_until(lambda job: job["Restarts"] == "1", job_id, timeout=90)
    if first == "training":
        light_launch(project)  # what follows
    cluster.start_node(2)
    job = cluster.wait(job_id, timeout=150)
    log = read_log(job)
    # SLURM may deliver the signal once more, to the step of the next attempt, which has the same name.
    assert job["JobState"] == "COMPLETED" and job["Restarts"] in ("1", "2"), log
    assert "attempt 1" in log and (project / "runs/stub/complete.json").exists()
    # The signal may come while the interpreter, whose all-reduce has failed, ends; gloo may abort it then, too.
    noticed = re.search("failed with exit code 1|was ended by SIG(USR1|ABRT)", log)
    assert first == "slurm" or (noticed and noticed.start() < log.index("DUE TO NODE FAILURE")), log
    assert [int(line) for line in (project / "runs/stub/steps.log").read_text().split()][-150:] == list(range(1, 151))


def test_what_nodes_lack_is_named_before_training(cluster, project, site):
    lacking = {"PACKHAUL_NETWORK_INTERFACE": "ib7", "PACKHAUL_SHARED_DIRS": "/dev/shm"}
    checked = {**site, "PACKHAUL_CHECK_NODES": "1", "PACKHAUL_MIN_FREE_GIB": "0"}
    job = cluster.wait(submit_stub(cluster, project, {**checked, **lacking}, steps=10), timeout=60)
    log = read_log(job)
    assert job["JobState"] == "FAILED"
    assert "no network interface ib7 (PACKHAUL_NETWORK_INTERFACE); it has" in log, log
    assert "node node2: /dev/shm is another folder here than on the first node" in log, log
    assert "a node cannot train" in log, log
    assert not (project / "runs/stub/rank0.json").exists()


def test_plain_sbatch_refuses_a_job_of_another_size_than_env_sh_says(cluster, project, site):
    command = ["sbatch", "--parsable", "slurm/train.sbatch", "--config", "run.yaml"]
    job = cluster.wait(cluster.run(*command, cwd=project, **site).strip(), timeout=20)
    assert job["JobState"] == "FAILED"
    assert "this job has 1 node(s), slurm/env.sh says PACKHAUL_NODES=2" in read_log(job)


def test_prepare_then_train_is_preempted_and_requeued_and_finishes_then_export(cluster, real_project, site):
    arguments = ["prepare", "--recipe", "recipe.yaml", "--output", "shards", "--encoder", "tokenizers"]
    arguments += ["then", "train", "--config", "run.yaml"]
    arguments += ["then", "export", "--checkpoint", "runs/tiny", "--output", "exported"]
    checked = {"PACKHAUL_CHECK_NODES": "1", "PACKHAUL_MIN_FREE_GIB": "0"}
    prepare, train, export = cluster.submit(real_project, *arguments, **{**site, **checked}).values()
    assert cluster.job(train)["Dependency"].startswith(f"afterok:{prepare}")
    prepared = cluster.wait(prepare, timeout=120)
    assert prepared["JobState"] == "COMPLETED", read_log(prepared)

    cluster.wait_until(lambda job: "sft: step " in read_log(job) or job["JobState"] == "FAILED", train, timeout=240)
    cluster.run("scancel", "--batch", "--signal=USR1", train)
    job = cluster.wait(train, timeout=300)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert "requeued: restart 1 of at most 50" in log and "not requeued" not in log
    assert log.count("sft: step ") == 12, log  # each step once, and not on each node
    assert log.count("2 process(es), DEEPSPEED") == 2  # both attempts, one world

    run_dir = real_project / "runs/tiny"
    (preempted,) = [path for path in run_dir.glob("checkpoint-*") if path.name != "checkpoint-12"]
    saved = json.loads((preempted / "complete.json").read_text())
    assert (saved["world_size"], f"checkpoint-{saved['step']}") == (2, preempted.name)
    assert f"resuming from {Path('runs/tiny') / preempted.name} (step {saved['step']})" in log
    final = json.loads((run_dir / "complete.json").read_text())
    assert (final["world_size"], final["step"]) == (2, 12)
    assert "model.safetensors" in final["files"]
    assert not (run_dir / "preempted.json").exists()
    assert "2 node(s) looked at, none lacks anything" in log
    assert "2 nodes add up 15 MiB by gloo" in log
    exported = cluster.wait(export, timeout=120)  # it waited for the end, not the requeue
    assert exported["JobState"] == "COMPLETED", read_log(exported)
    assert (real_project / "exported/model.safetensors").exists()
