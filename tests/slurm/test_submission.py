"""What is submitted is what runs, from whatever shell, at whatever site: stand-ins show what SLURM is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slurm.jobs import sbatch
from tests.support.slurm_stand_ins import ROOT, plain, value

TRAIN = ["train", "--config", "run.yaml"]


def submitted(project) -> tuple[Path, list[str]]:
    """The folder of the copies, and the arguments that the job gets."""
    (call,) = project.calls("sbatch")
    folder = re.search(r"PACKHAUL_SUBMISSION=([^,]+)", value_of(call, "--export"))[1]
    words = call["arguments"]
    return Path(folder), words[words.index("slurm/train.sbatch") + 1 :]


def value_of(call, name) -> str:
    return next(word.partition("=")[2] for word in call["arguments"] if word.startswith(name + "="))


@pytest.fixture
def launch_files(project):
    launch = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "configs/zero.json"}}
    (project.folder / "configs/accelerate/zero3_multinode.yaml").write_text(yaml.safe_dump(launch))
    (project.folder / "configs/zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    return project


def test_a_job_reads_what_was_submitted(launch_files):
    project = launch_files
    assert project.run("submit.sh", *TRAIN, "--learning_rate", "1e-4", PACKHAUL_SIGNAL_SECONDS="200") == 0, project.log
    folder, arguments = submitted(project)
    config = (project.folder / "run.yaml").read_text()
    # All that was submitted is changed while the job waits.
    (project.folder / "run.yaml").write_text("output_dir: other\n")
    (project.folder / "configs/zero.json").write_text("{}")
    (project.folder / "configs/accelerate/zero3_multinode.yaml").write_text("{}")
    env_sh = project.folder / "slurm/env.sh"
    env_sh.write_text(env_sh.read_text().replace("SIGNAL_SECONDS:-300", "SIGNAL_SECONDS:-1"))
    assert project.run("train.sbatch", *arguments, PACKHAUL_SUBMISSION=str(folder)) == 0, project.log
    (first, *_) = project.calls("launch")
    copied = project.folder / folder
    assert (copied / "run.yaml").read_text() == config
    assert value(first, "--config") == f"{folder}/run.yaml"
    launch = yaml.safe_load((project.folder / value(first, "--config_file")).read_text())
    deepspeed = launch["deepspeed_config"]["deepspeed_config_file"]
    assert json.loads((project.folder / deepspeed).read_text()) == {"zero_optimization": {"stage": 3}}
    assert "PACKHAUL_SIGNAL_SECONDS=200" in (copied / "env.sh").read_text()
    assert "since the submission 1 file(s) have changed" in project.log  # env.sh is one


def test_code_that_changed_is_said_and_unchanged_code_is_not(project):
    project.run("submit.sh", *TRAIN)
    folder, arguments = submitted(project)
    project.run("train.sbatch", *arguments, PACKHAUL_SUBMISSION=str(folder))
    assert "since the submission" not in project.log
    (project.folder / "train/sft.py").write_text("")
    (project.folder / "train/new.py").write_text("")
    (project.folder / "train/export.py").unlink()
    project.run("train.sbatch", *arguments, PACKHAUL_SUBMISSION=str(folder))
    assert "since the submission 3 file(s) have changed: train/export.py, train/new.py, train/sft.py" in project.log


def test_values_with_blanks_and_quotes_come_back(project):
    odd = "a 'b' \"c\" $d `e` \\ é"
    project.run("submit.sh", *TRAIN, PACKHAUL_MODULES=odd)
    folder, _ = submitted(project)
    command = '. "$1"; printf %s "$PACKHAUL_MODULES"'
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PACKHAUL")}
    read = subprocess.run(
        ["bash", "-c", command, "_", folder / "env.sh"], cwd=project.folder, env=clean, capture_output=True
    )
    assert read.stdout.decode() == odd, read.stderr


def test_bytes_that_are_no_text_come_back(project):
    odd = os.fsdecode(b"caf\xe9")
    assert project.run("submit.sh", *TRAIN, "--run_name", odd, PACKHAUL_MODULES=odd) == 0, project.log
    folder, arguments = submitted(project)
    assert b"PACKHAUL_MODULES='caf\xe9'" in (project.folder / folder / "env.sh").read_bytes()
    assert json.loads((project.folder / folder / "submission.json").read_text())["command"][-1] == odd
    assert arguments[-1] == odd


def test_a_submission_from_within_a_job_is_one_of_its_own(project):
    project.run("submit.sh", *TRAIN, PACKHAUL_SIGNAL_SECONDS="200")
    folder, _ = submitted(project)
    (project.folder / "calls.jsonl").unlink()
    job = {"PACKHAUL_SUBMISSION": str(folder), "PACKHAUL_CHAIN_INDEX": "3", "PACKHAUL_CHAIN_BEFORE": "7"}
    assert project.run("submit.sh", *TRAIN, PACKHAUL_HERE="1", **job) == 0, project.log
    own, _ = submitted(project)
    text = (project.folder / own / "env.sh").read_text()
    assert own != folder and "SIGNAL_SECONDS=200" not in text
    assert not [name for name in (*job, "PACKHAUL_HERE") if f"export {name}=" in text]
    (call,) = project.calls("sbatch")
    assert not {"PACKHAUL_HERE", *job} & set(call["all_env"])


def test_the_python_of_the_cluster_reads_nothing_of_the_persons(project):
    (project.folder / "mine").mkdir()
    (project.folder / "mine" / "shlex.py").write_text("raise SystemExit('another shlex')")
    assert project.run("submit.sh", *TRAIN, PYTHONPATH=str(project.folder / "mine")) == 0, project.log


def test_an_output_that_a_person_names_besides_is_no_folder_to_make(project):
    assert project.run("submit.sh", *TRAIN, PACKHAUL_SBATCH_OPTIONS="--output=mine.out") == 0, project.log


def test_logs_are_no_code(project):
    (project.folder / "slurm/logs/train-x").mkdir(parents=True)
    (project.folder / "slurm/logs/train-x/other.py").touch()
    project.run("submit.sh", *TRAIN)
    folder, _ = submitted(project)
    code = json.loads((project.folder / folder / "submission.json").read_text())["code"]
    assert "slurm/jobs/words.py" in code and not [name for name in code if name.startswith("slurm/logs")]


def test_what_modules_print_is_in_the_log(project):
    with (project.folder / "venv/bin/activate").open("a") as file:
        file.write("echo loaded cuda/12.8; echo and warned >&2\n")
    assert project.train() == 0
    assert "loaded cuda/12.8" in project.log and "and warned" in project.log


def test_a_link_to_the_newest_attempt_is_not_worth_a_job(project):
    (project.folder / "slurm/logs/train/latest").mkdir(parents=True)
    assert project.train() == 0, project.log
    assert "slurm/logs/train/latest does not lead to" in project.log


def test_the_shell_of_another_job_does_not_leak(project):
    outer = {"SLURM_MEM_PER_CPU": "100", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPU_BIND": "quiet", "PMI_RANK": "1"}
    outer |= {
        "PMIX_RANK": "1",
        "OMPI_COMM_WORLD_RANK": "1",
        "RANK": "1",
        "MASTER_PORT": "1",
        "CUDA_VISIBLE_DEVICES": "3",
    }
    outer |= {"MPI_LOCALRANKID": "1"}
    kept = {"MPI_HOME": "/opt/mpi", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "mine", "SBATCH_EXPORT": "NONE"}
    assert project.run("submit.sh", *TRAIN, **outer, **kept) == 0, project.log
    (call,) = project.calls("sbatch")
    assert not [name for name in call["all_env"] if name.startswith(("SLURM_", "PMI", "OMPI")) and name != "SLURM_CONF"]
    assert not {"RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "MPI_LOCALRANKID"} & set(call["all_env"])
    assert set(kept) <= set(call["all_env"])
    assert {name: call["env"][name] for name in ("SLURM_CONF", "SBATCH_ACCOUNT")} == {
        name: kept[name] for name in ("SLURM_CONF", "SBATCH_ACCOUNT")
    }
    assert value_of(call, "--export").startswith("ALL,")


def test_a_device_that_a_person_has_chosen_outside_of_any_job_stays(project):
    project.run("submit.sh", *TRAIN, SLURM_JOB_ID="", CUDA_VISIBLE_DEVICES="3")
    (call,) = project.calls("sbatch")
    # SLURM_JOB_ID="" is set by the stand-in's environment: an empty one is still that of a job.
    assert "SLURM_JOB_ID" not in call["all_env"]


@pytest.mark.parametrize(
    ("env", "sent", "not_sent"),
    [
        ({"PACKHAUL_MEMORY": ""}, [], ["--mem"]),
        ({"PACKHAUL_TIME": ""}, [], ["--time"]),
        ({"PACKHAUL_GPUS_PER_NODE": "", "PACKHAUL_PROCS_PER_NODE": "4"}, [], ["--gpus-per-node"]),
        ({"PACKHAUL_GPUS_PER_NODE": "gpu:h100:4"}, ["--gpus-per-node=h100:4"], []),
        ({"PACKHAUL_GPUS_PER_NODE": "h100:4"}, ["--gpus-per-node=h100:4"], []),
        ({"PACKHAUL_GPUS_PER_NODE": "0", "PACKHAUL_PROCS_PER_NODE": "2"}, [], ["--gpus-per-node"]),
        ({"PACKHAUL_SBATCH_OPTIONS": "--comment='two words' --qos=x"}, ["--comment=two words", "--qos=x"], []),
        ({"PACKHAUL_SPARE_NODES": "1"}, ["--nodes=3", "--no-kill"], []),
    ],
)
def test_sites_differ(project, env, sent, not_sent):
    assert project.run("submit.sh", *TRAIN, **env) == 0, project.log
    (call,) = project.calls("sbatch")
    assert set(sent) <= set(call["arguments"])
    assert not [word for word in call["arguments"] if word.partition("=")[0] in not_sent]


def test_stages_have_accounts_partitions_and_options_of_their_own(project):
    env = {"PACKHAUL_ACCOUNT": "gpu", "PACKHAUL_PREPARE_ACCOUNT": "cpu", "PACKHAUL_EXPORT_ACCOUNT": "big"}
    env |= {"PACKHAUL_PARTITION": "g", "PACKHAUL_PREPARE_PARTITION": "c", "PACKHAUL_EXPORT_PARTITION": "e"}
    env |= {"PACKHAUL_SBATCH_OPTIONS": "--qos=g", "PACKHAUL_PREPARE_OPTIONS": "", "PACKHAUL_EXPORT_OPTIONS": "--qos=e"}
    words = ["prepare", "--recipe", "run.yaml", "--output", "s", "then", *TRAIN]
    words += ["then", "export", "--checkpoint", "run", "--output", "o"]
    assert project.run("submit.sh", *words, PACKHAUL_EXPORT_CPUS="3", PACKHAUL_EXPORT_TIME="9", **env) == 0
    prepare, train, export = (call["arguments"] for call in project.calls("sbatch"))
    assert ("--account=cpu" in prepare, "--partition=c" in prepare, "--qos=g" in prepare) == (True, True, False)
    assert {"--account=gpu", "--partition=g", "--qos=g"} <= set(train)
    assert {"--account=big", "--partition=e", "--qos=e", "--cpus-per-task=3", "--time=9"} <= set(export)


@pytest.mark.parametrize(("found", "code"), [("8", 0), ("4", 0), ("3", 1), ("", 0)])
def test_more_gpus_than_asked_for_are_no_problem(project, found, code):
    assert project.train(SLURM_GPUS_ON_NODE=found) == code, project.log


def test_shared_folders_may_have_blanks_in_their_names(project):
    (project.folder / "my data").mkdir()
    assert project.train(PACKHAUL_SHARED_DIRS=". 'my data'") == 0, project.log
    (first, *_) = project.calls("launch")
    assert json.loads(first["env"]["PACKHAUL_SHARED_DIRS_JSON"]) == [".", "my data"]
    assert project.train(PACKHAUL_SHARED_DIRS=". my data") == 1
    assert "PACKHAUL_SHARED_DIRS: my is not a folder" in project.log


@pytest.mark.parametrize(("kind", "flag"), [("nvidia", "--nv"), ("amd", "--rocm")])
def test_singularity_and_amd(project, kind, flag):
    env = {"PACKHAUL_CONTAINER": "image.sif", "PACKHAUL_CONTAINER_RUNTIME": "singularity", "PACKHAUL_GPU_KIND": kind}
    assert project.train(PACKHAUL_VENV="none", **env) == 0, project.log
    words = project.calls("singularity")[-1]["arguments"]
    assert flag in words[: words.index("image.sif")]


def test_a_conda_environment_has_no_activate(project):
    conda = project.folder / "conda"
    (conda / "etc/conda/activate.d").mkdir(parents=True)
    (conda / "etc/conda/activate.d/own.sh").write_text("touch activated\n")
    (project.folder / "venv/bin").rename(conda / "bin")
    (conda / "bin/activate").unlink()
    path = {"PATH": f"{conda}/bin:{os.environ['PATH']}"}
    assert project.train(PACKHAUL_VENV="conda", **path) == 0, project.log
    assert (project.folder / "activated").exists()


def test_two_runs_of_one_config_have_other_names_and_squeue_tells_stages_apart(project):
    for folder in ("a/run", "b/run"):
        assert project.run("submit.sh", *TRAIN, "--output_dir", folder) == 0
    first, second = (value_of(call, "--job-name") for call in project.calls("sbatch"))
    assert first != second and first.startswith("train-run-") and second.startswith("train-run-")


@pytest.mark.parametrize(("version", "overlaps"), [("20.02.7", False), ("20.11.0", True), ("24.05.3", True)])
def test_a_binding_is_asked_for_on_purpose_and_steps_may_overlap(project, version, overlaps):
    project.train(FAKE_VERSION=version)
    (srun,) = project.calls("srun")
    assert {"--cpu-bind=none", "--gpu-bind=none", "--export=ALL"} <= set(srun["arguments"])
    assert ("--overlap" in srun["arguments"]) == overlaps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TRAIN, "--learning_rte", "1"], "did you mean 'learning_rate'"),
        (["prepare", "--recipe", "recipe.yaml", "--output", "s"], "recipe.yaml"),
        (["prepare", "--recipe", "recipe.yaml", "--output", "s", "then", *TRAIN], "recipe.yaml"),
    ],
)
def test_what_is_wrong_is_found_before_the_queue(project, words, said):
    (project.folder / "recipe.yaml").write_text("chat_template: nothing\n")
    (project.folder / "data_prep").symlink_to(ROOT / "data_prep")
    assert project.run("submit.sh", *words, PACKHAUL_CHECK_SUBMISSION="1") == 2, project.log
    assert said in project.log and "nothing is submitted" in project.log
    assert not project.calls("sbatch")


def test_what_cannot_be_checked_here_is_said_and_submitted(project):
    env = {"PACKHAUL_MODULES": "cuda", "PACKHAUL_CHECK_SUBMISSION": "1"}
    assert project.run("submit.sh", *TRAIN, **env) == 0
    assert "not checked before the submission: PACKHAUL_MODULES is set" in project.log
    assert len(project.calls("sbatch")) == 1


def test_help_says_what_there_is(project):
    assert project.run("submit.sh", "--help") == 0
    assert "slurm/submit.sh [--dry-run] train" in project.log
    assert plain(["x"]) == ["x"]


def test_a_refusal_of_sbatch_names_the_variables_to_change(project):
    env = {"PACKHAUL_PARTITION": "gpuu", "PACKHAUL_SPARE_NODES": "1", "PACKHAUL_SBATCH_OPTIONS": "--qos=big --nice=3"}
    found = {"FAKE_LIMIT": "0", "FAKE_SINFO": "main*: 3 nodes"}
    assert project.run("submit.sh", *TRAIN, **env, **found) == 1
    assert "sbatch refused train" in project.log and "  PACKHAUL_PARTITION=gpuu\n" in project.log
    assert (
        "  PACKHAUL_SPARE_NODES=1\n" in project.log
        and "  PACKHAUL_SBATCH_OPTIONS='--qos=big --nice=3'\n" in project.log
    )
    assert "  partition main*: 3 nodes\n" in project.log
    assert "PACKHAUL_PREPARE" not in project.log and "PACKHAUL_ACCOUNT" not in project.log  # not sent


def test_no_copies_stay_of_what_sbatch_refused(project):
    assert project.run("submit.sh", *TRAIN, FAKE_LIMIT="0") == 1
    assert not list(project.folder.glob("slurm/logs/*/submissions/*"))


def test_the_copies_of_jobs_that_are_in_the_queue_stay(project):
    assert project.run("submit.sh", *TRAIN, PACKHAUL_CHAIN="3", FAKE_LIMIT="2") == 1
    assert len(list(project.folder.glob("slurm/logs/*/submissions/*/env.sh"))) == 1


@pytest.mark.parametrize(("pattern", "log"), [("%j.out", "17.out"), ("%A_%a.out", "17_%a.out")])
def test_a_person_at_a_terminal_is_told_where_the_log_is(tmp_path, monkeypatch, capsys, pattern, log):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sbatch, "ask", lambda *command, **options: (0, "17;cluster\n", ""))
    queue = sbatch.Queue(None, dry_run=False)
    submit = ["train", [f"--output=logs/{pattern}"], ["slurm/train.sbatch"]]
    queue.submit(*submit)
    assert capsys.readouterr() == ("train 17\n", "")  # a program that reads the ids gets nothing else
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    queue.submit(*submit)
    assert capsys.readouterr() == ("train 17\n", f"packhaul: its log: logs/{log}\n")
