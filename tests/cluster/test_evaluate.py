"""An evaluation on a real cluster: the job has the GPUs that it asks for, and its results lie in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import SlurmCluster, make_project, read_log

# In the place of lm-evaluation-harness: writes down where it runs, as results.
HARNESS = """
import json, os, sys
from pathlib import Path
path = Path(sys.argv[sys.argv.index("--output_path") + 1])
names = ("SLURM_JOB_ID", "SLURM_GPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
found = {name: os.environ.get(name) for name in names}
path.with_name("results_now.json").write_text(json.dumps({"results": {"where": found}}))
sys.exit(int(os.environ.get("STUB_CODE", "0")))
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder to submit from, with an export and its run, and the stand-in of the harness."""
    folder = make_project(tmp_path / "project", "data_prep", "train")
    files = {"exports/mine/config.json": "{}", "exports/mine/export.json": '{"step": 7}', "runs/own/run.json": "{}"}
    for name, text in {**files, "lm_eval/__init__.py": "", "lm_eval/__main__.py": HARNESS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def evaluate(cluster: SlurmCluster, project: Path, site: dict[str, str], **more: str) -> dict[str, str]:
    """The job of an evaluation at its end."""
    words = ["evaluate", "--export", "exports/mine", "--run", "runs/own", "--tasks", "ifeval"]
    env = {**site, "PACKHAUL_EVALUATE_CPUS": "2", "PACKHAUL_EVALUATE_MEMORY": "1G", "PACKHAUL_EVALUATE_TIME": "10"}
    return cluster.wait(cluster.submit(project, *words, **{**env, **more})["evaluate"], timeout=60)


def test_results_of_a_job_lie_in_the_folder_of_the_run(cluster, project, site):
    job = evaluate(cluster, project, site)
    assert job["JobState"] == "COMPLETED", read_log(job)
    (file,) = (project / "runs/own/evaluation").glob("mine-step7-*.json")
    where = json.loads(file.read_text())["results"]["where"]
    asked = {"SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "2", "OMP_NUM_THREADS": "2"}
    assert where == {"SLURM_JOB_ID": job["JobId"], **asked}


def test_a_harness_that_fails_is_a_failed_job_without_results(cluster, project, site):
    job = evaluate(cluster, project, site, STUB_CODE="3")
    assert job["JobState"] == "FAILED"
    log = read_log(job)
    assert "lm-eval ended with exit code 3" in log and "then submit the same command again" in log
    assert not list((project / "runs/own/evaluation").glob("*.json"))
