"""A folder that a stage cannot use is found at the submission; one that a stage before makes need not be there."""

from __future__ import annotations

import json

import pytest

from slurm.jobs.folders_here import problem_of
from slurm.jobs.stages import Stage

TRAIN = ["train", "--config", "run.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "--checkpoint", "none", "--output", "e"], "--checkpoint: there is no folder none in"),
        (["export", "--checkpoint", "full", "--output", "full"], "--output full exists and is not empty"),
        ([*TRAIN, "then", "export", "--checkpoint", "rum", "--output", "e"], "the stages before it make run"),
        (["prepare", "--recipe", "recipe.yaml", "--output", "s", "then", *TRAIN], "data: there is no folder shards in"),
    ],
)
def test_a_folder_that_a_stage_cannot_use_is_found_before_the_queue(project, words, said):
    (project.folder / "full/model").mkdir(parents=True)
    (project.folder / "recipe.yaml").write_text("")
    (project.folder / "data_prep").mkdir(exist_ok=True)
    (project.folder / "data_prep/prepare.py").write_text("")
    assert project.run("submit.sh", *words, PACKHAUL_CHECK_SUBMISSION="1") == 2, project.log
    assert said in project.log and "nothing is submitted" in project.log
    assert not project.calls("sbatch")


def test_folders_that_a_stage_before_makes_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare = Stage("prepare", ["--recipe", "r", "--output", "s/mix"])
    train = Stage("train", ["--config", "c", "--output_dir", "out/run"])
    assert not problem_of(train, [prepare], json.dumps({"data": f"{tmp_path}/s/mix"}))
    assert problem_of(train, [prepare], json.dumps({"data": "s/mixed"}))
    assert not problem_of(train, [prepare], "not checked")
    for checkpoint in ("out/run", "out/run/checkpoint-7"):
        assert not problem_of(Stage("export", ["--checkpoint", checkpoint, "--output", "e"]), [prepare, train])
    assert problem_of(Stage("export", ["--checkpoint", "out/run2", "--output", "e"]), [prepare, train])
    unknown = Stage("train", ["--config", "c"])  # where it writes is not found
    assert not problem_of(Stage("export", ["--checkpoint", "x", "--output", "e"]), [unknown])
