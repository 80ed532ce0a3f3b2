"""Preparation as a chain of SLURM jobs and job arrays, without SLURM: what is submitted, run and said in failure.

tests/cluster has the real cluster.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.support.slurm_stand_ins import Project, plain, wait_for

PREPARE = ["prepare", "--recipe", "run.yaml", "--output", "my shards"]
SIZE = ["--cpus-per-task=16", "--mem=32G", "--time=04:00:00"]
PASSED_ON = ["--recipe", "run.yaml", "--output", "my shards"]


def submit(project: Project, *arguments: str, tasks: int = 8, **env: str) -> list[list[str]]:
    """What submit.sh asks of sbatch."""
    assert project.run("submit.sh", *arguments, PACKHAUL_PREPARE_TASKS=str(tasks), **env) == 0, project.log
    return [plain(call["arguments"]) for call in project.calls("sbatch")]


def run_task(project: Project, *arguments: str, prepare: str = "", array: str = "", **env: str) -> int:
    """Run prepare.sbatch with this text as data_prep/prepare.py; its exit code."""
    (project.folder / "data_prep").mkdir(exist_ok=True)
    (project.folder / "data_prep" / "prepare.py").write_text(prepare)
    if array:
        env["SLURM_ARRAY_TASK_ID"] = array
    return project.run("prepare.sbatch", *arguments, **env)


def run_by_hand(project: Project, commands: str) -> list[list[str]]:
    """What these commands ask of sbatch when a user runs them."""
    before = len(project.calls("sbatch"))
    path = f"{project.folder}/venv/bin:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PACKHAUL_VENV": "venv"}
    subprocess.run(["bash", "-ec", commands], cwd=project.folder, env=env, check=True, capture_output=True)
    return [plain(call["arguments"]) for call in project.calls("sbatch")[before:]]


def array_job(stage: str, array: str, after: int | None, tasks: int = 8) -> list[str]:
    name = [f"--job-name={stage}-NAME", f"--array={array}", "--output=slurm/logs/prepare-NAME/%A_%a.out"]
    return [
        *["--parsable", *SIZE, "--export=ALL", *name, *dependency(after), "slurm/prepare.sbatch"],
        *["--stage", stage, "--num-tasks", str(tasks), *PASSED_ON],
    ]


def one_job(stage: str, after: int | None) -> list[str]:
    name = [f"--job-name={stage}-NAME", "--output=slurm/logs/prepare-NAME/%j.out"]
    start = ["--parsable", *SIZE, "--export=ALL", *name, *dependency(after)]
    return [*start, "slurm/prepare.sbatch", "--stage", stage, *PASSED_ON]


def dependency(job_id: int | None) -> list[str]:
    return [f"--dependency=afterok:{job_id}", "--kill-on-invalid-dep=yes"] if job_id else []


def test_several_tasks_are_a_chain_of_two_arrays_and_two_jobs_before_the_training(project):
    *chain, train = submit(project, *PREPARE, "then", "train", "--config", "run.yaml")
    assert project.log == "tokenize 101\nplan 102\npack 103\nfinish 104\ntrain 105\n"
    assert chain == [
        array_job("tokenize", "0-7", after=None),
        one_job("plan", after=101),
        array_job("pack", "0-7", after=102),
        one_job("finish", after=103),
    ]
    assert "--dependency=afterok:104" in train and train[-3:] == ["slurm/train.sbatch", "--config", "run.yaml"]


def test_a_throttle_limits_how_many_tasks_run_at_once(project):
    tokenize, _, pack, _ = submit(project, *PREPARE, PACKHAUL_PREPARE_AT_ONCE="3")
    assert "--array=0-7%3" in tokenize and "--array=0-7%3" in pack


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--from", "tokenize", "--array", "2,5"],
            [
                array_job("tokenize", "2,5", None),
                one_job("plan", 101),
                array_job("pack", "0-7", 102),
                one_job("finish", 103),
            ],
        ),
        (["--from=pack", "--array=2"], [array_job("pack", "2", None), one_job("finish", 101)]),
        (["--from", "plan"], [one_job("plan", None), array_job("pack", "0-7", 101), one_job("finish", 102)]),
        (["--from", "finish"], [one_job("finish", None)]),
        (["--from", "pack", "--only"], [array_job("pack", "0-7", None)]),
    ],
)
def test_a_part_of_the_chain_can_be_submitted(project, flags, expected):
    assert submit(project, *PREPARE, *flags) == expected


def test_dry_run_prints_the_commands_of_the_whole_chain(project):
    chain = [*PREPARE, "then", "train", "--config", "run.yaml"]
    assert submit(project, "--dry-run", *chain) == []
    printed = project.log
    for number, stage in enumerate(["tokenize", "plan", "pack", "finish"]):
        printed = printed.replace(f"ID_OF_{stage}", str(101 + number))
    by_hand = run_by_hand(project, printed)
    assert len(by_hand) == 5
    (project.folder / "calls.jsonl").unlink()
    assert submit(project, *chain) == by_hand


@pytest.mark.parametrize(
    ("flags", "tasks", "message"),
    [
        (["--from", "pack"], "1", "PACKHAUL_PREPARE_TASKS is 1: one job"),
        (["--array", "2"], "1", "PACKHAUL_PREPARE_TASKS is 1: one job"),
        (["--only"], "1", "PACKHAUL_PREPARE_TASKS is 1: one job"),
        (["--from", "packing"], "8", "there is no stage 'packing': one of tokenize plan pack finish"),
        (["--from"], "8", "there is no stage ''"),
        (["--from", "plan", "--array", "2"], "8", "plan is one job"),
        (["--array", "two"], "8", "--array must look like 2 or 0,4-6, found 'two'"),
        (["--num-tasks", "4"], "8", "--num-tasks is set for each job of the chain"),
        (["--stage=plan"], "8", "--stage is set for each job of the chain"),
        ([], "0", "PACKHAUL_PREPARE_TASKS must be a whole number of 1 or more, found '0'"),
    ],
)
def test_a_part_that_does_not_exist_is_refused_before_anything_is_submitted(project, flags, tasks, message):
    assert project.run("submit.sh", *PREPARE, *flags, PACKHAUL_PREPARE_TASKS=tasks) == 1
    assert message in project.log
    assert not project.calls("sbatch")


def test_a_chain_that_sbatch_refuses_half_way_says_what_is_submitted(project):
    assert project.run("submit.sh", *PREPARE, PACKHAUL_PREPARE_TASKS="8", FAKE_LIMIT="2") == 1
    assert project.log.startswith("tokenize 101\nplan 102\n")
    assert "These jobs are in the queue: 101 102 (scancel 101 102)" in project.log
    assert "MaxArraySize is 1001, PACKHAUL_PREPARE_TASKS 8" in project.log


@pytest.mark.parametrize("flags", [["--stage", "pack", "--num-tasks", "8"], ["--stage=pack", "--num-tasks=8"]])
def test_a_task_of_an_array_is_told_its_index(project, flags):
    assert run_task(project, *flags, *PASSED_ON, array="5") == 0, project.log
    (srun,) = project.calls("srun")
    assert srun["arguments"][-len(flags) - 9 :] == [
        *["data_prep.prepare", "--num-workers", "8", *flags, *PASSED_ON, "--task-index", "5"]
    ]
    assert "failed" not in project.log


@pytest.mark.parametrize(
    ("array", "flags", "message"),
    [
        ("2", [], "this is task 2 of a job array, which needs --stage tokenize or pack, and --num-tasks"),
        (
            "",
            ["--stage", "pack", "--num-tasks", "8"],
            "is for a job array: sbatch --array=0-7, or --array=I for one task",
        ),
        ("2", ["--stage", "pack", "--num-tasks", "all"], "--num-tasks must be a whole number, found 'all'"),
    ],
)
def test_a_task_without_its_number_would_do_the_work_of_another_and_is_refused(project, array, flags, message):
    assert run_task(project, *flags, *PASSED_ON, array=array) == 1
    assert message in project.log
    assert not project.calls("srun")


def test_a_failed_task_says_how_to_run_it_alone_and_what_follows(project):
    flags = ["--stage", "tokenize", "--num-tasks", "4", *PASSED_ON]
    assert run_task(project, *flags, prepare="raise SystemExit(2)", array="3") == 2
    *_, message, rest, whole, alone = project.log.splitlines()
    assert "tokenize, task 3 of 0-3, failed with exit code 2: the jobs that wait for it do not start" in message
    # Run as they are: nobody has PACKHAUL_PREPARE_TASKS=4 in env.sh here.
    assert run_by_hand(project, rest.split(": ", 1)[1])[0] == array_job("tokenize", "3", None, tasks=4)
    assert run_by_hand(project, whole.split(": ", 1)[1])[0] == array_job("tokenize", "0-3", None, tasks=4)
    assert run_by_hand(project, alone.split(": ", 1)[1]) == [array_job("tokenize", "3", None, tasks=4)]


def test_a_failed_plan_says_how_to_go_on_from_there(project):
    env = {"PACKHAUL_PREPARE_TASKS": "4"}  # from the submission
    assert run_task(project, "--stage", "plan", *PASSED_ON, prepare="raise SystemExit(2)", **env) == 2
    *_, message, rest, _, _ = project.log.splitlines()
    assert "plan failed with exit code 2" in message
    words = shlex.split(rest.split(": ", 1)[1])
    assert words == ["PACKHAUL_PREPARE_TASKS=4", "slurm/submit.sh", "prepare", "--from", "plan", *PASSED_ON]


def test_one_job_that_fails_is_submitted_again(project):
    assert run_task(project, *PASSED_ON, prepare="raise SystemExit(2)") == 2
    message = "prepare failed with exit code 2: submit the same command again once the cause is gone; finished slices"
    assert message in project.log.splitlines()[-1]


def test_a_task_that_slurm_stops_says_so_once_its_work_has_ended(project):
    (project.folder / "data_prep").mkdir()
    work = "import pathlib, time\npathlib.Path('working').touch()\n"
    work += "while not pathlib.Path('go').exists(): time.sleep(0.02)\nprint('ended', flush=True)\nraise SystemExit(7)"
    (project.folder / "data_prep" / "prepare.py").write_text(work)
    flags = ["--stage", "pack", "--num-tasks", "8", *PASSED_ON]
    script = project.start("prepare.sbatch", *flags, SLURM_ARRAY_TASK_ID="2")
    wait_for(project.folder / "working")
    script.send_signal(signal.SIGTERM)  # as scancel and the time limit do
    time.sleep(0.3)
    (project.folder / "go").touch()
    assert script.wait(30) == 7
    assert "was stopped by SLURM" in project.log.partition("ended\n")[2]


def test_a_step_that_term_has_ended_before_the_script_has_heard_of_it_was_stopped_too(project):
    (project.folder / "data_prep").mkdir()
    work = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"
    (project.folder / "data_prep" / "prepare.py").write_text(work)
    assert project.start("prepare.sbatch", *PASSED_ON).wait(30) == 143
    assert "prepare was stopped by SLURM" in project.log
