"""Evaluation as a SLURM job, without SLURM: what is submitted and what runs."""

from __future__ import annotations

import pytest

from tests.support.slurm_stand_ins import plain

EVALUATE = ["evaluate", "--export", "exports/mine", "--run", "run", "--tasks", "ifeval,kmmlu", "--batch_size", "auto"]


def test_an_export_is_evaluated_once_it_is_there(project):
    env = {"PACKHAUL_EVALUATE_GPUS": "h100:2", "PACKHAUL_PARTITION": "gpu", "PACKHAUL_EVALUATE_TIME": "9"}
    chain = ["export", "--checkpoint", "run", "--output", "exports/mine", "then", *EVALUATE]
    assert project.run("submit.sh", *chain, **env) == 0, project.log
    assert project.log == "export 101\nevaluate 102\n"
    _, call = project.calls("sbatch")
    assert plain(call["arguments"]) == [
        *["--parsable", "--partition=gpu", "--cpus-per-task=8", "--mem=64G", "--time=9", "--gpus-per-node=h100:2"],
        *["--export=ALL", "--job-name=evaluate-NAME", "--output=slurm/logs/evaluate-NAME/%j.out"],
        *["--dependency=afterok:101", "--kill-on-invalid-dep=yes", "slurm/evaluate.sbatch", *EVALUATE[1:]],
    ]


@pytest.mark.parametrize("gpus", ["", "0"])
def test_without_gpus_none_are_asked_for(project, gpus):
    assert project.run("submit.sh", *EVALUATE, PACKHAUL_EVALUATE_GPUS=gpus) == 0, project.log
    (call,) = project.calls("sbatch")
    assert not [word for word in call["arguments"] if word.startswith("--gpus")]


@pytest.mark.parametrize(
    ("gpus", "words", "processes", "threads"),
    [
        ("1", [], [], "8"),
        ("h100:4", [], ["--num_processes", "4"], "2"),
        ("4", ["--num_processes", "1"], [], "2"),
    ],
)
def test_each_gpu_has_a_copy_of_the_model_unless_told_otherwise(project, gpus, words, processes, threads):
    (project.folder / "train" / "evaluate.py").write_text(
        "import os, sys; print('ASKED', os.environ['OMP_NUM_THREADS'], *sys.argv[1:]); raise SystemExit(3)"
    )
    code = project.run("evaluate.sbatch", *EVALUATE[1:], *words, PACKHAUL_EVALUATE_GPUS=gpus)
    (srun,) = project.calls("srun")
    asked = [*processes, *EVALUATE[1:], *words]
    assert srun["arguments"][-len(asked) - 3 :] == ["python", "-m", "train.evaluate", *asked]
    assert {"--ntasks=1", "--cpus-per-task=8", "--export=ALL"} <= set(srun["arguments"])
    assert f"ASKED {threads} " in project.log
    assert code == 3 and "the evaluation failed with exit code 3" in project.log


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["evaluate", "--export", "e"], {}, "--tasks TASK is missing"),
        (["evaluate", "--tasks", "t"], {}, "--export DIR is missing"),
        (EVALUATE, {"PACKHAUL_EVALUATE_GPUS": "two"}, "PACKHAUL_EVALUATE_GPUS must look like 1 or h100:1"),
        (EVALUATE, {"PACKHAUL_EVALUATE_TIME": "a day"}, "PACKHAUL_EVALUATE_TIME must look like"),
        (EVALUATE, {"PACKHAUL_EVALUATE_OPTIONS": "'"}, "PACKHAUL_EVALUATE_OPTIONS: "),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_queue(project, arguments, env, message):
    assert project.run("submit.sh", *arguments, **env) == 1
    assert message in project.log and not project.calls("sbatch")


def test_a_missing_extra_is_found_before_the_queue(project):
    """The stand-in's Python stands for an environment; its train.evaluate refuses as the real one does."""
    (project.folder / "train" / "evaluate.py").write_text(
        "import sys; assert '--dry_run' in sys.argv; sys.exit('lm-evaluation-harness is not installed')"
    )
    assert project.run("submit.sh", *EVALUATE, PACKHAUL_CHECK_SUBMISSION="1") == 2, project.log
    assert "lm-evaluation-harness is not installed" in project.log and "nothing is submitted" in project.log
    assert not project.calls("sbatch")
