"""Preparation as a chain of job arrays on a real cluster: it stops where a task fails, and goes on from there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from data_prep import prepare
from tests.support.reading import all_bytes

from .conftest import SlurmCluster, read_log

# Added to the package. It says that a task is at work, and stands in for a disk that is full under task 0.
STAND_IN = """
import os, pathlib, sys
print("at work", flush=True)
if pathlib.Path("disk-full").exists() and os.environ.get("SLURM_ARRAY_TASK_ID") == "0":
    sys.exit("no space left on device")
"""
# The faster encoder's proof takes longer than everything else here.
PREPARE = ["prepare", "--recipe", "recipe.yaml", "--output", "shards", "--encoder", "tokenizers"]


def advised(log: str, which: str) -> list[str]:
    """The command that a failed task's message gives under this name, as words: variables, then slurm/submit.sh."""
    (line,) = [line for line in log.splitlines() if line.strip().startswith(which)]
    return shlex.split(line.split(": ", 1)[1])


def rerun(cluster: SlurmCluster, project: Path, command: list[str], site: dict[str, str]) -> dict[str, str]:
    """Run an advised command as a user would, without the variables of the first submission."""
    site = {name: value for name, value in site.items() if name != "PACKHAUL_PREPARE_TASKS"}
    lines = cluster.run("env", *command, cwd=project, **site).splitlines()
    return dict(line.split() for line in lines)


@pytest.fixture
def array_site(site) -> dict[str, str]:
    """Two tasks, of which one fits on a node: both nodes work on one preparation."""
    return {**site, "PACKHAUL_PREPARE_TASKS": "2", "PACKHAUL_PREPARE_MEMORY": "40G"}


def test_a_chain_of_arrays_stops_at_a_failed_and_a_killed_task_and_ends_with_the_bytes_of_one_machine(
    cluster, real_project, array_site, monkeypatch
):
    package = real_project / "data_prep" / "__init__.py"
    package.write_text(package.read_text() + STAND_IN)
    (real_project / "disk-full").touch()

    # Task 0 of tokenize fails: nothing after it starts, the training neither.
    jobs = cluster.submit(real_project, *PREPARE, "then", "train", "--config", "run.yaml", **array_site)
    assert list(jobs) == ["tokenize", "plan", "pack", "finish", "train"]
    for stage in ("train", "finish", "pack", "plan"):
        assert cluster.wait(jobs[stage], timeout=120)["JobState"] == "CANCELLED"
    tasks = [cluster.wait(f"{jobs['tokenize']}_{index}", timeout=120) for index in range(2)]
    assert [task["JobState"] for task in tasks] == ["FAILED", "COMPLETED"]
    assert {task["BatchHost"] for task in tasks} == {"node1", "node2"}
    logs = {path.name for path in (real_project / "slurm/logs").glob("prepare-*/*.out")}
    assert logs == {f"{jobs['tokenize']}_{index}.out" for index in range(2)}
    log = read_log(tasks[0])
    assert "no space left on device" in log
    assert "tokenize, task 0 of 0-1, failed with exit code 1: the jobs that wait for it do not start" in log

    # Submitted as a whole again, what is done is skipped. Then task 1 of pack is killed: finish does not start.
    (real_project / "disk-full").unlink()
    jobs = rerun(cluster, real_project, advised(log, "the whole chain"), array_site)
    assert list(jobs) == ["tokenize", "plan", "pack", "finish"]
    cluster.wait(jobs["plan"], timeout=180)
    for task, number in zip(cluster.tasks(jobs["tokenize"]), (0, 3), strict=True):
        assert ("parts are tokenized already" in read_log(task)) == (number > 0), read_log(task)
    killed = f"{jobs['pack']}_1"
    cluster.wait_until(lambda job: "at work" in read_log(job), killed, timeout=60)
    cluster.run("scancel", killed)
    job = cluster.wait(killed, timeout=60)
    assert cluster.wait(jobs["finish"], timeout=60)["JobState"] == "CANCELLED"
    assert [task["JobState"] for task in cluster.tasks(jobs["pack"])] == ["COMPLETED", "CANCELLED"]
    assert not (real_project / "shards/manifest.json").exists()
    log = read_log(job)
    assert "pack, task 1 of 0-1, was stopped by SLURM" in log

    # That task alone, and what follows.
    jobs = rerun(cluster, real_project, advised(log, "this and what follows"), array_site)
    assert list(jobs) == ["pack", "finish"]
    assert cluster.wait(jobs["finish"], timeout=120)["JobState"] == "COMPLETED", read_log(cluster.job(jobs["finish"]))
    assert [task["ArrayTaskId"] for task in cluster.tasks(jobs["pack"])] == ["1"]

    monkeypatch.chdir(real_project)
    whole = ["--recipe", "recipe.yaml", "--output", "whole", "--num-workers", "1", "--encoder", "tokenizers"]
    assert prepare.main(whole) == 0
    assert all_bytes(real_project / "shards") == all_bytes(real_project / "whole")
