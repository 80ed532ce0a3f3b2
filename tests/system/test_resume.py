"""Killed and run again: bit for bit what an uninterrupted run gives. Signals: all processes save after one step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from data_prep.shards import manifest_sha256
from tests.conftest import ROOT
from tests.support.training import TIMEOUT, history, kill, launch, make_shards, run_config, wait_until
from tests.support.wandb_offline import read_run
from train.checkpoint import folders
from train.run import run_lock

STEPS = 20
COMPARED = ("loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "eval_loss", "eval_long_loss")


@pytest.fixture(scope="module")
def make_config(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """Dropout, so that a wrong random state shows; several epochs, so that a wrong order does; cosine, for the rate."""
    folder = tmp_path_factory.mktemp("resume")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 60, "long": [5] * 10}, eval_fraction=0.1)

    def make(name: str):
        config = run_config(
            folder / f"{name}.yaml",
            data=str(shards),
            model_name_or_path=str(tiny_model_dir("llama", attention_dropout=0.2)),
            output_dir=str(folder / name),
            max_steps=STEPS,
            gradient_accumulation_steps=2,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            save_strategy="steps",
            save_steps=4,
            eval_strategy="steps",
            eval_steps=3,
            report_to="wandb",
        )
        return config, folder / name, folder / f"{name}.log"

    return make


@pytest.fixture(scope="module")
def uninterrupted(make_config, worlds):
    config, run_dir, log = make_config("whole")
    assert "2 process(es), DEEPSPEED" in worlds.train("cpu_zero2", config, log)
    return run_dir


def assert_equal(run_dir, uninterrupted):
    for got, wanted in zip(history(run_dir)[:-1], history(uninterrupted)[:-1], strict=True):  # the last one is timings
        assert got["step"] == wanted["step"]
        assert {k: got.get(k) for k in COMPARED} == {k: wanted.get(k) for k in COMPARED}, got["step"]
    got, wanted = (load_file(d / "model.safetensors") for d in (run_dir, uninterrupted))
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_sigkill_of_all_processes_then_the_same_command(make_config, uninterrupted, worlds):
    config, run_dir, log = make_config("killed")
    process = launch("cpu_zero2", config, log)
    wait_until(lambda: log.read_text().count("sft: step ") >= 6, process, log)
    kill(process)
    newest = folders.newest_complete(run_dir, print)
    assert newest and 4 <= newest.step < STEPS
    half_written = run_dir / f"checkpoint-{newest.step + 3}"
    first_id = json.loads((run_dir / "run.json").read_text())["wandb_run_id"]
    shutil.copytree(newest.path, half_written, dirs_exist_ok=True)
    (half_written / "complete.json").unlink()
    (half_written / "trainer_state.json").write_text("{")
    output = worlds.train("cpu_zero2", config, log)
    assert f"A NEWER STATE IS NOT USABLE: {half_written.name}: no complete.json (the save was cut off" in output
    assert f"resuming from {newest.path} (step {newest.step})" in output
    assert not half_written.exists()
    assert json.loads((run_dir / "run.json").read_text())["wandb_run_id"] == first_id
    assert output.count("sft: step ") == STEPS - newest.step
    assert_equal(run_dir, uninterrupted)


def assert_one_wandb_run(run_dir):
    """Both starts logged into the same W&B run, which says what the run was made from."""
    starts = [read_run(path) for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]
    record = json.loads((run_dir / "run.json").read_text())
    assert [found for found, _, _ in starts] == [record["wandb_run_id"]] * 2
    rows = {row["train/global_step"]: row for _, _, logged in starts for row in logged if "train/loss" in row}
    assert sorted(rows) == list(range(1, STEPS + 1))
    for entry in history(run_dir):
        if "loss" in entry:
            assert rows[entry["step"]]["train/loss"] == entry["loss"]
    assert any("eval/long_loss" in row for row in starts[1][2])
    config = starts[1][1]
    assert config["packhaul"]["manifest_sha256"] == record["manifest_sha256"] == manifest_sha256(record["data"])
    assert config["packhaul"]["git_commit"] == record["git_commit"]
    assert config["learning_rate"] == 1e-3


def test_ctrl_c_saves_on_all_and_ends_with_130(make_config, uninterrupted, worlds):
    """As a terminal sends it: to the launcher and to every process, W&B's included."""
    config, run_dir, log = make_config("interrupted")
    process = launch("cpu_zero2", config, log, own=True)
    wait_until(lambda: log.read_text().count("sft: step ") >= 2, process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(TIMEOUT) == 130, log.read_text()[-3000:]
    said = log.read_text()
    step = folders.newest_complete(run_dir, print).step
    assert f"stopped by Ctrl-C after step {step}: the checkpoint is complete, run the same command again" in said
    assert "Traceback" not in said and said.count("Ctrl-C: this step is finished and saved") == 1
    assert 2 <= step < STEPS and not (run_dir / "preempted.json").exists() and not (run_dir / "complete.json").exists()
    assert f"(step {step})" in worlds.train("cpu_zero2", config, log)
    assert_equal(run_dir, uninterrupted)


def test_a_signal_to_one_process_saves_on_all(make_config, uninterrupted, worlds):
    config, run_dir, log = make_config("signalled")
    worlds.train("cpu_zero2", config, log, stop_at=3)
    step = json.loads((run_dir / "preempted.json").read_text())["step"]
    assert 2 <= step < STEPS and json.loads((run_dir / f"checkpoint-{step}/complete.json").read_text())["step"] == step
    assert not (run_dir / "complete.json").exists()
    output = worlds.train("cpu_zero2", config, log)
    assert f"(step {step})" in output and not (run_dir / "preempted.json").exists()
    assert_equal(run_dir, uninterrupted)
    assert_one_wandb_run(run_dir)


def test_other_shards_in_a_used_run_directory_are_refused(make_config, uninterrupted, worlds, tmp_path, tiny_tokenizer):
    config, _, _ = make_config("whole")
    other = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [2] * 60, "long": [5] * 10}, eval_fraction=0.1)
    assert set(worlds.run("cpu_zero2", config, tmp_path / "log", "--data", str(other))) == {2}
    assert "holds a run on other shards" in (tmp_path / "log").read_text()


def test_a_second_job_into_the_same_run_directory_is_refused(tmp_path):
    held = run_lock.lock(tmp_path)
    code = f"from pathlib import Path; from train.run.run_lock import lock; lock(Path({str(tmp_path)!r}))"
    second = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 1 and f"is in use by another job (process {os.getpid()} on " in second.stderr
    held.close()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
