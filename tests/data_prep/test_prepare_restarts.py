"""A preparation killed, repeated, changed or spread over tasks: the same bytes, and no work done twice."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_prep import prepare, shards
from data_prep.recipe import load_recipe
from data_prep.shards import MANIFEST, read_manifest
from data_prep.stages import tokenize_stage
from data_prep.stages.job import open_job
from tests.benchmarks.bench_memory import children
from tests.conftest import ROOT
from tests.support.preparation import edit_recipe, run
from tests.support.reading import all_bytes


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


class Killed(BaseException):
    """Ends the process's work at once, as a kill would: nothing catches it."""


KILL_AT = ["tokenize", "plan", "pack", "manifest"]


@pytest.mark.parametrize("stage", KILL_AT)
def test_the_same_bytes_after_a_kill_in_each_stage(stage, recipe_file, tmp_path, monkeypatch):
    """A kill between any two writes of the stage: what is on disk then is what a SIGKILL leaves."""
    assert run(recipe_file, tmp_path / "whole") == 0
    names = {
        "tokenize": "alpaca-00002.npz",
        "plan": "plan.json",
        "pack": "train-00001.json",
        "manifest": MANIFEST,
    }

    def killed(path: Path, data: bytes) -> None:
        if path.name == names[stage]:
            raise Killed
        real(path, data)

    real = shards.write_atomically
    with monkeypatch.context() as patched:
        for module in (
            "data_prep.stages.parts",
            "data_prep.stages.plan_stage",
            "data_prep.stages.pack_stage",
            "data_prep.shards",
        ):
            patched.setattr(f"{module}.write_atomically", killed)
        with pytest.raises(Killed):
            run(recipe_file, tmp_path / "killed")
    assert not (tmp_path / "killed" / MANIFEST).exists()
    (tmp_path / "killed/.manifest.json.host.1.tmp").write_text("half")
    assert run(recipe_file, tmp_path / "killed") == 0
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_the_same_bytes_after_a_real_kill_with_two_workers(recipe_file, tmp_path):
    command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(recipe_file)]
    command += ["--output", str(tmp_path / "killed"), "--num-workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("killed/.work/tokenize-*/*.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    others = descendants(process.pid)
    assert len(others) >= 2  # the server, and a worker
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / MANIFEST).exists()
    deadline = time.monotonic() + 120
    while left := [pid for pid in others if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes {left} outlive the one that was killed"
        time.sleep(0.1)
    assert run(recipe_file, tmp_path / "killed", 2) == 0
    assert run(recipe_file, tmp_path / "whole", 1) == 0
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")


def test_a_complete_directory_is_left_alone_and_another_recipe_refused(recipe_file, tmp_path, capsys):
    run(recipe_file, tmp_path / "out")
    before = all_bytes(tmp_path / "out")
    assert run(recipe_file, tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 2
    assert "made from another recipe" in capsys.readouterr().err
    assert all_bytes(tmp_path / "out") == before


def test_recipes_given_up_after_packing_leave_nothing_behind(recipe_file, tmp_path):
    """A packed, B packed with more and other shards, then A again: what is there is A's, to the byte."""
    one, text = tmp_path / "one", recipe_file.read_text()
    assert run(recipe_file, tmp_path / "whole") == 0
    for changes in ({}, {"rows_per_shard": 2, "seed": 1}):
        recipe, output = load_recipe(edit_recipe(recipe_file, **changes)), one
        prepare.prepare(recipe, output, stages=("tokenize", "plan", "pack"))
    recipe_file.write_text(text)
    assert run(recipe_file, one) == 0
    assert all_bytes(one) == all_bytes(tmp_path / "whole")


def test_another_end_token_in_the_tokenizers_configuration_is_another_job(recipe_file, tmp_path, tiny_tokenizer):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_tokenizer.name_or_path, folder)
    edit_recipe(recipe_file, tokenizer=str(folder), chat_template="alpaca")
    jobs = []
    for end in ("<|im_end|>", "<pad>"):
        configuration = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**configuration, "eos_token": end}))
        jobs.append(open_job(load_recipe(recipe_file), tmp_path / "out"))
    assert jobs[0].plan_dir != jobs[1].plan_dir and jobs[0].parts[0].folder != jobs[1].parts[0].folder


def test_input_that_changes_while_it_is_read_is_refused(recipe_file, tmp_path, monkeypatch, capsys):
    """The same number of rows, so that no slice notices."""

    def tokenize(part, how):
        real(part, how)
        os.utime(tmp_path / "qa.jsonl", ns=(1, 1))

    real = tokenize_stage.tokenize_part
    monkeypatch.setattr("data_prep.stages.tokenize_stage.tokenize_part", tokenize)
    assert run(recipe_file, tmp_path / "out") == 2
    assert "source 'qa': its input changed while it was read" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/.work/tokenize-*/qa-*.json"))


def test_a_changed_mixture_reuses_the_tokenized_parts(recipe_file, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.stages.plan_stage.plan", stop)
        with pytest.raises(Killed):
            run(recipe_file, tmp_path / "out")
    monkeypatch.setattr("data_prep.stages.tokenize_stage.tokenize_part", stop)
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 0


def test_the_stages_as_tasks_of_a_job_array_give_the_same_bytes(recipe_file, tmp_path, capsys):
    def stage(name, index=0, number=1):
        flags = [
            "--recipe",
            str(recipe_file),
            "--output",
            str(tmp_path / "tasks"),
            "--num-workers",
            "1",
            "--stage",
            name,
        ]
        return prepare.main([*flags, "--task-index", str(index), "--num-tasks", str(number)])

    assert run(recipe_file, tmp_path / "whole") == 0
    assert stage("tokenize", 2, 3) == stage("tokenize", 0, 3) == 0
    assert stage("plan") == 2
    assert "parts are not tokenized (the first numbers: [1, 4, 7]" in capsys.readouterr().err
    assert stage("tokenize", 1, 3) == stage("plan") == 0
    shown = capsys.readouterr().out  # the mixture is there before anything is packed
    assert all(name in shown.split() for name in ("asked", "got", "uses")) and "packing 0." in shown
    assert stage("pack", 1, 2) == 0
    assert stage("finish") == 2 and "run `--stage pack` first" in capsys.readouterr().err
    assert stage("pack", 0, 2) == stage("finish") == 0
    assert all_bytes(tmp_path / "tasks") == all_bytes(tmp_path / "whole")
    assert stage("tokenize", 3, 3) == 2 and "found 3 of 3" in capsys.readouterr().err
    assert stage("plan", 0, 2) == 2


def test_a_task_run_again_alone_repairs_what_it_left(recipe_file, tmp_path):
    flags = ["--recipe", str(recipe_file), "--output", str(tmp_path / "out"), "--num-workers", "1"]
    assert prepare.main([*flags, "--stage", "tokenize"]) == 0
    for marker in tmp_path.glob("out/.work/tokenize-*/qa-00002.json"):
        marker.unlink()
    assert prepare.main([*flags, "--stage", "plan"]) == 2
    assert prepare.main([*flags, "--stage", "tokenize"]) == prepare.main(flags) == 0


def test_tasks_share_the_copies_of_inputs_and_leave_none(recipe_file, tmp_path, monkeypatch):
    monkeypatch.delenv("PACKHAUL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    lines = (tmp_path / "qa.jsonl").read_text(encoding="utf-8").splitlines()[5:]
    rows = [json.dumps(json.loads(line), ensure_ascii=False) for line in lines]
    (tmp_path / "korean.jsonl").write_bytes("\n".join(rows).encode("cp949"))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[:40]).encode()))
    sources = [
        {"name": "detected", "path": [str(tmp_path / "korean.jsonl"), str(tmp_path / "packed.jsonl.gz")]},
        {"name": "stated", "path": str(tmp_path / "korean.jsonl"), "encoding": "cp949", "form": "question_answer"},
    ]
    edit_recipe(recipe_file, sources=sources, deduplicate=False)
    flags = ["--recipe", str(recipe_file), "--output", str(tmp_path / "out"), "--num-workers", "1"]
    assert prepare.main([*flags, "--stage", "tokenize", "--task-index", "1", "--num-tasks", "2"]) == 0
    copies = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/.work/inputs/*.jsonl*")}
    assert sum(not path.name.endswith(".lock") for path in copies) == 2
    assert prepare.main([*flags, "--stage", "tokenize", "--task-index", "0", "--num-tasks", "2"]) == 0
    assert copies == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/.work/inputs/*.jsonl*")}
    assert prepare.main(flags) == 0
    assert not (tmp_path / "out/.work").exists() and not (tmp_path / "user").exists()
    manifest = read_manifest(tmp_path / "out")
    assert [s["encodings"] for s in manifest["sources"]] == [{"cp949": 1, "utf-8": 1}, {"cp949": 1}]


def test_a_complete_directory_is_known_without_reading_its_inputs(recipe_file, tmp_path, monkeypatch, capsys):
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    edit_recipe(recipe_file, sources=[{k: v for k, v in sources[0].items() if k != "form"}, sources[1]])
    run(recipe_file, tmp_path / "out")
    (tmp_path / "out/.work").mkdir()  # as a kill after the manifest leaves it
    monkeypatch.setattr("data_prep.stages.job.slice_source", None)
    monkeypatch.setattr("data_prep.stages.job.read_slice", None)
    assert run(recipe_file, tmp_path / "out") == 0 and "nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "out/.work").exists()
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 2
    assert "made from another recipe\n  recipe: seed: 42, now 1\n" in capsys.readouterr().err
    edit_recipe(recipe_file, seed=42)
    (tmp_path / "qa.jsonl").write_text("{}\n")
    assert run(recipe_file, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "made from other input files\n" in error and "qa.jsonl: size: " in error and ", now 3\n" in error
