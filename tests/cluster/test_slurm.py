"""The SLURM templates on a real cluster of two nodes: launch, signals, requeue, failure, and the whole chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from .conftest import make_project, read_log


@pytest.fixture
def project(tmp_path):
    """A folder to submit from in which train.sft is the stand-in of stub_sft.py."""
    folder = make_project(tmp_path, "train")
    shutil.copy(Path(__file__).with_name("stub_sft.py"), folder / "train" / "sft.py")
    config = {"data": "shards", "model_name_or_path": "model", "output_dir": "runs/stub"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def submit_stub(cluster, project: Path, site: dict[str, str], **stub) -> str:
    """Submit a training with the stand-in, told to do `stub`; the job id."""
    (job_id,) = submit(cluster, project, "train", "--config", "run.yaml", **site, STUB=json.dumps(stub))
    return job_id


def submit(cluster, project: Path, *arguments: str | Path, **env: str) -> list[str]:
    """The job ids that slurm/submit.sh prints, one for each stage."""
    lines = cluster.run(project / "slurm" / "submit.sh", *arguments, cwd=project, **env).splitlines()
    return [line.split()[1] for line in lines]


def test_two_nodes_with_two_processes_each_are_one_world_of_four(cluster, project, site):
    site = {**site, "PACKHAUL_PROCS_PER_NODE": "2", "PACKHAUL_CPUS_PER_TASK": "4", "PACKHAUL_GPUS_PER_NODE": "2"}
    job_id = submit_stub(cluster, project, site, steps=10)
    job = cluster.wait(job_id, timeout=90)
    log = read_log(job)
    assert job["JobState"] == "COMPLETED", log
    ranks = [json.loads((project / f"runs/stub/rank{rank}.json").read_text()) for rank in range(4)]
    assert [rank["world_size"] for rank in ranks] == [4] * 4
    assert [(rank["host"], rank["node_id"]) for rank in ranks] == [("node1", "0")] * 2 + [("node2", "1")] * 2
    assert {rank["threads"] for rank in ranks} == {"2"}  # 4 CPUs for 2 processes
    assert {rank["port"] for rank in ranks} == {str(15000 + int(job_id))}
    assert {(rank["interface"], rank["deepspeed"], rank["offline"]) for rank in ranks} == {("eth0", "true", "1")}
    assert (job["NumNodes"], job["CPUs/Task"], job["Requeue"]) == ("2", "4", "1")
    assert "world of 4: 2 node(s) x 2 process(es)" in log
    logs = list((project / f"slurm/logs/packhaul-train-{job_id}/attempt0").rglob("stdout.log"))
    assert sorted(path.read_text().split(" on ")[0] for path in logs) == [f"rank {rank} of 4" for rank in range(4)]
    assert not list(project.rglob(".visible-*"))


def test_a_signal_during_start_up_is_obeyed_and_the_job_goes_on_after_its_requeue(cluster, project, site):
    job_id = submit_stub(cluster, project, site, seconds_to_start=3, steps=150)
    after = cluster.run(
        "sbatch", "--parsable", f"--dependency=afterok:{job_id}", "--wrap=test -e runs/stub/complete.json", cwd=project
    )
    cluster.wait_until(lambda _: (project / "runs/stub").is_dir(), job_id, timeout=20)
    cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    job = cluster.wait(job_id, timeout=90)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert "requeued: restart 1 of at most 50" in log and "attempt 1" in log  # appended, not overwritten
    steps = [int(line) for line in (project / "runs/stub/steps.log").read_text().split()]
    assert steps == list(range(1, 151))  # none lost, none done twice
    logs = project / f"slurm/logs/packhaul-train-{job_id}"
    assert sorted(path.name for path in logs.iterdir()) == ["attempt0", "attempt1"]
    assert cluster.wait(after.strip(), timeout=20)["JobState"] == "COMPLETED"  # it waited for the end, not the requeue


def test_a_preempted_job_that_may_not_restart_ends_with_85(cluster, project, site):
    job_id = submit_stub(cluster, project, {**site, "PACKHAUL_MAX_RESTARTS": "0"}, steps=1000)
    cluster.wait_until(lambda _: (project / "runs/stub/steps.log").is_file(), job_id, timeout=60)
    cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    job = cluster.wait(job_id, timeout=60)
    log = read_log(job)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "85:0", "0"), log
    assert "not requeued: 0 restarts, and PACKHAUL_MAX_RESTARTS=0" in log


def test_a_rank_that_fails_ends_the_job_which_is_not_requeued(cluster, project, site):
    job_id = submit_stub(cluster, project, site, steps=1000, failing_rank=1)
    job = cluster.wait(job_id, timeout=90)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), log
    errors = (project / f"slurm/logs/packhaul-train-{job_id}/attempt0/node1").rglob("stderr.log")
    assert ["rank 1 fails as it was told" in path.read_text() for path in errors] == [True]
    assert "training failed with exit code" in log


def test_a_cancelled_job_saves_but_is_not_requeued(cluster, project, site):
    job_id = submit_stub(cluster, project, site, steps=1000)
    cluster.wait_until(lambda _: (project / "runs/stub/steps.log").is_file(), job_id, timeout=60)
    cluster.run("scancel", job_id)
    job = cluster.wait(job_id, timeout=50)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert 'not requeued from here; checkpoint saved on the way out: {"step":' in read_log(job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PACKHAUL_NETWORK_INTERFACE": "ib7"}, "no network interface ib7 (PACKHAUL_NETWORK_INTERFACE); it has"),
        ({"PACKHAUL_SHARED_DIRS": "/dev/shm"}, "node node2: /dev/shm is another folder here than on node1"),
    ],
)
def test_a_node_that_lacks_something_is_named_before_training(cluster, project, site, change, message):
    job_id = submit_stub(cluster, project, {**site, **change}, steps=10)
    job = cluster.wait(job_id, timeout=30)
    assert job["JobState"] == "FAILED"
    assert message in read_log(job), read_log(job)
    assert not (project / "runs/stub/rank0.json").exists()


def test_plain_sbatch_refuses_a_job_of_another_size_than_env_sh_says(cluster, project, site):
    command = ["sbatch", "--parsable", "slurm/train.sbatch", "--config", "run.yaml"]
    job = cluster.wait(cluster.run(*command, cwd=project, **site).strip(), timeout=20)
    assert job["JobState"] == "FAILED"
    assert "this job has 1 node(s), slurm/env.sh says PACKHAUL_NODES=2" in read_log(job)


@pytest.fixture
def real_project(tmp_path, tiny_tokenizer, tiny_model_dir):
    """A folder to submit from with the real data_prep and train, a tiny model, its tokenizer, and 200 rows of data."""
    folder = make_project(tmp_path, "data_prep", "train")
    rows = ({"question": f"What is {n} plus {n + 1}?", "answer": f"It is {2 * n + 1}."} for n in range(200))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"name": "sums", "path": "rows.jsonl", "form": "question_answer"}
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "seq_len": 128, "sources": [source]}
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


def test_prepare_then_train_is_preempted_and_requeued_and_finishes(cluster, real_project, site):
    arguments = ["prepare", "--recipe", "recipe.yaml", "--output", "shards", "then", "train", "--config", "run.yaml"]
    prepare, train = submit(cluster, real_project, *arguments, **site)
    assert cluster.job(train)["Dependency"].startswith(f"afterok:{prepare}")
    prepared = cluster.wait(prepare, timeout=120)
    assert prepared["JobState"] == "COMPLETED", read_log(prepared)

    cluster.wait_until(lambda job: "'loss'" in read_log(job) or job["JobState"] == "FAILED", train, timeout=240)
    cluster.run("scancel", "--batch", "--signal=USR1", train)
    job = cluster.wait(train, timeout=300)
    log = read_log(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
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
