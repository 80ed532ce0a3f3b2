"""Twelve usual mistakes of SLURM templates, each caught without SLURM; the eleventh is in test_requeue.py.

The scripts run against stand-ins that write down how they were called. tests/cluster has the real cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.slurm_stand_ins import ROOT, directives, plain, value, wait_for

SCRIPTS = sorted(path for path in (ROOT / "slurm").iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install -e .[dev])")
    result = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_only_env_sh_has_lines_to_edit():
    assert [path.name for path in SCRIPTS if re.search(r"^[^#\n]*# EDIT", path.read_text(), re.MULTILINE)] == ["env.sh"]


def test_mistake_1_each_node_has_its_own_machine_rank(project):
    assert project.train() == 0, project.log
    assert sorted(value(call, "--machine_rank") for call in project.calls("launch")) == ["0", "1"]


def test_mistake_2_the_first_host_of_the_node_list_is_the_main_one(project):
    project.train()
    assert {value(call, "--main_process_ip") for call in project.calls("launch")} == {"gpu07"}
    assert ["show", "hostnames", "gpu[07,12]"] in [call["arguments"] for call in project.calls("scontrol")]


def test_mistake_3_the_port_comes_from_the_job_id(project):
    for job_id in ("31234", "31235", "9999999"):
        project.train(SLURM_JOB_ID=job_id)
    ports = [int(value(call, "--main_process_port")) for call in project.calls("launch")]
    assert len(set(ports)) == 3
    assert all(1024 < port < 32768 for port in ports)  # from 32768 the kernel gives ports to outgoing connections


def test_mistakes_4_and_5_srun_starts_one_launcher_on_each_node(project):
    project.train()
    (srun,) = project.calls("srun")
    assert (value(srun, "--ntasks"), value(srun, "--ntasks-per-node")) == ("2", "1")
    launchers = project.calls("launch")
    assert len(launchers) == 2  # for four processes each
    assert all(call["env"]["INSIDE_SRUN"] for call in launchers)
    assert directives("train.sbatch")["ntasks-per-node"] == "1"


@pytest.mark.parametrize("procs_per_node", ["4", "2"])
def test_mistake_6_the_number_of_processes_is_that_of_all_nodes(project, procs_per_node):
    project.train(PACKHAUL_PROCS_PER_NODE=procs_per_node)
    for call in project.calls("launch"):
        assert value(call, "--num_processes") == str(2 * int(procs_per_node))
        assert value(call, "--num_machines") == "2"
        # train.sft refuses a world of another size: several worlds of one would otherwise all exit with 0.
        assert value(call, "--expected_world_size") == str(2 * int(procs_per_node))


def test_mistake_7_deepspeed_leaves_the_launch_to_slurm(project):
    project.train()
    assert {value(call, "--deepspeed_multinode_launcher") for call in project.calls("launch")} == {"standard"}


def test_mistake_8_srun_is_told_the_cpus_and_the_threads_share_them(project):
    project.train()
    assert value(project.calls("srun")[0], "--cpus-per-task") == "8"
    assert {call["env"]["OMP_NUM_THREADS"] for call in project.calls("launch")} == {"2"}  # 8 CPUs, 4 processes


def test_mistake_8_in_prepare(project):
    assert project.run("prepare.sbatch", "--recipe", "r.yaml", PACKHAUL_SHARED_DIRS=".") != 0  # "python -m" fails here
    (srun,) = project.calls("srun")
    assert value(srun, "--cpus-per-task") == "8"
    assert srun["arguments"][-5:] == ["data_prep.prepare", "--num-workers", "8", "--recipe", "r.yaml"]


def test_mistake_9_the_signal_goes_to_the_batch_script_in_time():
    seconds = re.fullmatch(r"B:USR1@(\d+)", directives("train.sbatch")["signal"] or "")
    assert seconds and int(seconds[1]) >= 120  # a step, a save, and a margin: SLURM is up to a minute early


def test_mistake_9_a_signal_before_the_launchers_have_started_is_kept_for_them(project):
    slow = {"FAKE_TRAIN": "waits,is preempted", "FAKE_LAUNCH_SECONDS": "1"}
    script = project.start("train.sbatch", "--config", "run.yaml", **slow)
    wait_for(project.folder / "launching")
    script.send_signal(signal.SIGUSR1)
    assert script.wait(30) == 0, project.log
    assert project.requeued() and len(project.calls("launch")) == 2
    assert not (project.folder / "signalled-early").exists()  # it would have ended the launchers


def test_mistake_10_the_script_hears_the_signal_while_srun_runs_and_waits_for_the_end(project):
    assert project.train_with_signal(FAKE_TRAIN="waits,completes") == 0, project.log
    assert not project.calls("scancel")  # it goes on trying after this attempt, and would signal the next one
    assert (project.folder / "run" / "complete.json").exists()
    assert not project.requeued()


def test_mistake_10_the_exit_code_after_a_signal_is_that_of_the_training(project):
    assert project.train_with_signal(FAKE_TRAIN="waits,fails") == 3
    assert not project.requeued()


def test_the_launcher_survives_the_signal_that_is_meant_for_the_training(project):
    project.train()
    launchers = project.calls("launch")
    assert all(call["ignores_usr1"] and call["ignores_term"] for call in launchers)
    # torchrun would take TERM again, pass it on, and kill the training 30 s later.
    assert {call["env"]["PET_SIGNALS_TO_HANDLE"] for call in launchers} == {"SIGINT"}


def test_a_task_that_fails_ends_the_others_and_no_variable_is_lost_on_the_way(project):
    project.train()
    (srun,) = project.calls("srun")
    assert (value(srun, "--kill-on-bad-exit"), value(srun, "--export")) == (
        "1",
        "ALL",
    )  # neither is the rule everywhere


def test_nothing_that_forwards_a_signal_outlives_its_script(project):
    script = project.start("train.sbatch", "--config", "run.yaml", FAKE_TRAIN="waits,waits", FAKE_LAUNCH_SECONDS="30")
    wait_for(project.folder / "run")
    script.send_signal(signal.SIGUSR1)
    time.sleep(1)
    script.kill()  # as SLURM does after KillWait
    script.wait(10)
    deadline = time.monotonic() + 60  # it sleeps for five seconds at a time
    while "slurm.jobs" in (left := commands_of(script.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "slurm.jobs" not in left


def commands_of(session: int) -> str:
    """The command lines of a session's processes."""
    found = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True)
    return found.stdout


def test_a_busy_port_is_passed_over(project):
    import socket

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 15000 + 31234 % 15000))
        taken.listen()
        assert project.train() == 0, project.log
    ports = {value(call, "--main_process_port") for call in project.calls("launch")}
    assert ports == {str(15001 + 31234 % 15000)}
    assert "is in use on" in project.log


def test_apptainer_runs_everything_but_slurms_own_commands(project):
    env = {"PACKHAUL_CONTAINER": "image.sif", "PACKHAUL_CONTAINER_MOUNTS": "/opt", "PACKHAUL_VENV": "none"}
    assert project.train(**env) == 0, project.log
    assert all(call["env"]["INSIDE_CONTAINER"] for call in project.calls("launch"))
    assert not any(call["env"]["INSIDE_CONTAINER"] for call in project.calls("scontrol") + project.calls("srun"))
    words = project.calls("apptainer")[-1]["arguments"]
    assert words[: words.index("image.sif")] == [
        *["exec", "--pwd", str(project.folder), "--nv", "--bind", str(project.folder), "--bind", "/opt"],
    ]


def test_pyxis_is_told_on_srun(project):
    env = {"PACKHAUL_CONTAINER": "me/image:1", "PACKHAUL_CONTAINER_RUNTIME": "pyxis", "PACKHAUL_VENV": "none"}
    project.train(PACKHAUL_CONTAINER_MOUNTS="/opt", **env)
    (first, *_) = project.calls("srun")
    assert value(first, "--container-image") == "me/image:1"
    assert value(first, "--container-mounts") == f"{project.folder}:{project.folder},/opt:/opt"
    assert not any(line.startswith("#SBATCH --container") for path in SCRIPTS for line in path.read_text().splitlines())


def test_mistake_12_the_folder_of_the_logs_is_there_in_a_fresh_clone():
    for script in ("train.sbatch", "prepare.sbatch", "export.sbatch", "evaluate.sbatch"):
        folder = Path(directives(script)["output"] or "/").parent
        tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
        if tracked.returncode:
            pytest.skip("not a git checkout")
        assert tracked.stdout == f"{folder}/.gitignore\n"


def test_mistake_12_the_exit_code_of_prepare_is_kept(project):
    (project.folder / "data_prep").mkdir()
    (project.folder / "data_prep" / "__init__.py").touch()
    (project.folder / "data_prep" / "prepare.py").write_text("raise SystemExit(4)")
    assert project.run("prepare.sbatch", "--recipe", "r.yaml") == 4


@pytest.mark.parametrize("flag", [["--output_dir", "other"], ["--output_dir=other"]])
def test_a_flag_wins_over_the_output_dir_of_the_run_config(project, flag):
    project.run("train.sbatch", "--config", "run.yaml", *flag)
    assert (project.folder / "other").is_dir() and not (project.folder / "run" / "preempted.json").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ([], {}, "output_dir: missing"),
        (["--config", "none.yaml"], {}, "none.yaml"),
        (["--config", "run.yaml", "--learning_rte", "1"], {}, "did you mean 'learning_rate'"),
        (["--config", "run.yaml"], {"SLURM_JOB_NUM_NODES": "1"}, "1 node(s), slurm/env.sh says PACKHAUL_NODES=2"),
        (["--config", "run.yaml"], {"SLURM_GPUS_ON_NODE": "0"}, "0 GPU(s) per node, slurm/env.sh says"),
        (["--config", "run.yaml"], {"SLURM_JOB_ID": ""}, "submit this file with slurm/submit.sh or sbatch"),
        (["--config", "run.yaml"], {"PACKHAUL_MODULES": "cuda"}, "has no module command"),
    ],
)
def test_a_job_that_cannot_train_says_why(project, arguments, env, message):
    assert project.run("train.sbatch", *arguments, **env) in (1, 2)
    assert message in project.log
    assert not project.calls("srun")


def test_env_sh_names_all_that_is_wrong_at_once(project):
    wrong = {"PACKHAUL_NODES": "two", "PACKHAUL_TIME": "1 day", "PACKHAUL_ACCELERATE_CONFIG": "zero4"}
    assert project.run("submit.sh", "train", "--config", "run.yaml", **wrong) == 1
    for name in wrong:
        assert f"  - {name}" in project.log
    assert not project.calls("sbatch")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *[("5", 300), ("4:59", 299), ("0:05:01", 301), ("8:59", 539), ("9", 540)],
        *[("0-1", 3600), ("0-0:05", 300), ("1-00:00:08", 86408)],
    ],
)
def test_a_time_limit_within_the_signals_lead_is_refused(project, time, seconds):
    code = project.run("submit.sh", "--dry-run", "train", "--config", "run.yaml", PACKHAUL_TIME=time)
    assert code == (seconds <= 300), project.log
    assert ("is no longer than PACKHAUL_SIGNAL_SECONDS=300" in project.log) == (seconds <= 300)
    assert ("requeued after its first step, again and again" in project.log) == (300 < seconds < 540)


def test_submit_gives_sbatch_the_values_of_env_sh(project):
    env = {"PACKHAUL_ACCOUNT": "a7", "PACKHAUL_PARTITION": "gpu", "PACKHAUL_SBATCH_OPTIONS": "--qos=long --exclusive"}
    arguments = ["prepare", "--recipe", "run.yaml", "--output", "my shards", "then"]
    arguments += ["train", "--config", "run.yaml", "--learning_rate", "1e-4"]
    assert project.run("submit.sh", *arguments, PACKHAUL_SIGNAL_SECONDS="240", **env) == 0, project.log
    assert project.log == "prepare 101\ntrain 102\n"
    prepare, train = (plain(call["arguments"]) for call in project.calls("sbatch"))
    common, more = ["--parsable", "--account=a7", "--partition=gpu"], ["--qos=long", "--exclusive", "--export=ALL"]
    assert prepare == [
        *common,
        *["--cpus-per-task=16", "--mem=32G", "--time=04:00:00", *more],
        *["--job-name=prepare-NAME", "--output=slurm/logs/prepare-NAME/%j.out"],
        *["slurm/prepare.sbatch", "--recipe", "run.yaml", "--output", "my shards"],
    ]
    assert train == [
        *common,
        *["--cpus-per-task=8", "--mem=0", "--time=24:00:00", "--nodes=2", "--signal=B:USR1@240", "--gpus-per-node=4"],
        *[*more, "--job-name=train-NAME", "--output=slurm/logs/train-NAME/%j.out"],
        *["--dependency=afterok:101", "--kill-on-invalid-dep=yes"],
        *["slurm/train.sbatch", "--config", "run.yaml", "--learning_rate", "1e-4"],
    ]


def test_dry_run_prints_the_same_commands_and_submits_nothing(project):
    arguments = ["prepare", "--recipe", "run.yaml", "--output", "my shards", "then", "train", "--config", "run.yaml"]
    assert project.run("submit.sh", "--dry-run", "--show-scripts", *arguments) == 0
    printed = project.log
    assert not project.calls("sbatch")
    for script in ("prepare", "train"):
        text = (project.folder / f"slurm/{script}.sbatch").read_text()
        assert "".join(f"# {line}\n" for line in text.splitlines()) in printed
    project.run("submit.sh", *arguments)
    subprocess.run(  # what was printed, run by hand with the first id filled in, is what submit.sh runs
        ["bash", "-ec", printed.replace("ID_OF_prepare", "101")],
        cwd=project.folder,
        env={**os.environ, "PATH": f"{project.folder}/venv/bin:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    commands = [plain(call["arguments"]) for call in project.calls("sbatch")]
    assert commands[:2] == commands[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "--config", "run.yaml"], "there is no stage 'trian'"),
        ([], "there is no stage ''"),
        (["train", "--config"], "--config FILE is missing"),
        (["prepare", "--recipe", "run.yaml"], "--output DIR is missing"),
        (
            ["prepare", "--recipe", "run.yaml", "--output", "s", "then", "train", "--config", "none.yaml"],
            "there is no file none.yaml",
        ),
    ],
)
def test_submit_refuses_a_chain_before_its_first_job_is_submitted(project, arguments, message):
    assert project.run("submit.sh", *arguments) == 1
    assert message in project.log
    assert not project.calls("sbatch")
