"""train.saving: what is published, when, and what happens when a save fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.saving_runs import run_here, single_config
from tests.training import history, make_shards
from train import checkpoint, durable, save_parts, saving

STEPS = 9


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """Factory of run configs: dropout, so that a wrong random state shows; steps logged and saved out of time."""
    folder = tmp_path_factory.mktemp("saving")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30, "long": [5] * 6}, eval_fraction=0.1)

    def make(name: str, **options):
        settings = {
            "data": str(shards),
            "model_name_or_path": str(tiny_model_dir("llama", attention_dropout=0.2)),
            "output_dir": str(folder / name),
            "max_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 3,
        }
        return single_config(folder / f"{name}.yaml", **{**settings, **options}), folder / name

    return make


@pytest.fixture(scope="module")
def uninterrupted(make_run):
    config, run_dir = make_run("whole")
    assert run_here(config) == 0
    return run_dir


def assert_equal(run_dir, twin):
    """The same log, but for timings, and the same weights, bit for bit."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "mean_token_accuracy", "entropy")
    for got, wanted in zip(history(run_dir)[:-1], history(twin)[:-1], strict=True):
        assert {k: got.get(k) for k in keys} == {k: wanted.get(k) for k in keys}
    got, wanted = (load_file(d / "model.safetensors") for d in (run_dir, twin))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.fixture
def at_step(monkeypatch):
    """Factory: do something in a step."""

    def arrange(step: int, action):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                action()

        monkeypatch.setattr(saving.SavingCallback, "on_step_begin", on_step_begin)

    return arrange


def preempt() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_preempted_run_resumes_bit_for_bit_also_between_two_lines_of_the_log(
    background, make_run, uninterrupted, at_step, monkeypatch
):
    config, run_dir = make_run(f"preempted-{background}")
    at_step(5, preempt)
    assert run_here(config, "--save_in_background", background) == 0
    assert json.loads((run_dir / "preempted.json").read_text())["step"] == 5
    monkeypatch.undo()
    assert run_here(config, "--save_in_background", background) == 0
    assert_equal(run_dir, uninterrupted)
    got, wanted = (checkpoint.read(d / "checkpoint-8") for d in (run_dir, uninterrupted))
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert got.files[name] == wanted.files[name], name  # as the libraries write it at once, and from a copy
    assert not list(run_dir.glob(".saving-*"))


def test_a_checkpoint_has_its_name_only_when_all_is_written(make_run, monkeypatch):
    config, run_dir = make_run("names", max_steps=2)
    seen = []

    def slow_move(source, target):
        time.sleep(0.05)
        seen.append([p.name for p in run_dir.iterdir() if "checkpoint" in p.name])
        return durable.move(source, target)

    monkeypatch.setattr(save_parts, "move", slow_move)
    assert run_here(config) == 0
    assert len(seen) >= 10 and not any(seen)
    assert checkpoint.read(run_dir / "checkpoint-2").step == 2


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_writer(*args, **kwargs):
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


FAULTS = {
    "library": (torch, "save", broken_writer),
    "background": (save_parts, "move", full_disk),
    "folders": (Path, "mkdir", full_disk),
    "marker": (checkpoint, "write_json_atomically", full_disk),
    "space": (shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_leaves_the_old_ones_and_training_goes_on(
    fault, make_run, uninterrupted, monkeypatch, capsys
):
    config, run_dir = make_run(f"fault-{fault}")
    original = saving.CheckpointSaving._save_checkpoint

    def save(self, model, trial):
        with pytest.MonkeyPatch.context() as patch:
            if self.state.global_step == 4:
                patch.setattr(*FAULTS[fault])
            original(self, model, trial)
            self.finish_save()

    monkeypatch.setattr(saving.CheckpointSaving, "_save_checkpoint", save)
    assert run_here(config) == 0
    output = capsys.readouterr().out
    assert output.count("WARNING: checkpoint-4 IS NOT SAVED: ") == 1 and "(newest: checkpoint-2)" in output
    expected = {"space": "GiB are free", "library": "file write failed"}.get(fault, "No space left on device")
    assert expected in output
    assert [c.step for c in checkpoint.find_checkpoints(run_dir)] == [2, 6, 8, 9]
    assert not list(run_dir.glob(".saving-*"))
    assert_equal(run_dir, uninterrupted)


def test_a_full_disk(make_run, uninterrupted, tmp_path, capsys):
    """A real one, with place for the first checkpoint only; the final model goes elsewhere."""
    size = sum(record.size for record in checkpoint.read(uninterrupted / "checkpoint-2").files.values())
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.9)}", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("a small tmpfs needs root")
    try:
        config, _ = make_run("full", output_dir=str(disk / "run"), max_steps=5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "_SPARE", 0.1)  # so that the check before the save lets it try
            run_here(config)
        output = capsys.readouterr().out
        assert output.count("IS NOT SAVED") == 2 and f"{disk / 'run'} has 0.00 GiB free" in output
        assert [c.step for c in checkpoint.find_checkpoints(disk / "run")] == [2]
        assert not list((disk / "run").glob(".saving-*"))
        run_here(config, "--max_steps", "7")
        assert "GiB are free in" in capsys.readouterr().out  # the check before the save
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_preemption_whose_save_failed_is_an_error(make_run, at_step, monkeypatch, capsys):
    config, run_dir = make_run("unsaved")
    at_step(5, preempt)
    monkeypatch.setattr(save_parts, "move", full_disk)
    assert run_here(config) == 2
    assert "checkpoint-5 could not be saved" in capsys.readouterr().err
    assert not (run_dir / "preempted.json").exists()


def test_the_newest_checkpoint_survives_a_preemption_when_one_is_kept_and_another_is_best(make_run, at_step):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    config, run_dir = make_run("best", save_total_limit=1, greater_is_better=True, **settings)  # the loss falls
    at_step(5, preempt)
    assert run_here(config) == 0
    state = json.loads((run_dir / "checkpoint-5/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run_dir / "checkpoint-2")
    assert [c.step for c in checkpoint.find_checkpoints(run_dir)] == [2, 5]


def test_every_damaged_file_is_found_and_the_older_checkpoint_used(
    make_run, uninterrupted, at_step, capsys, monkeypatch
):
    config, run_dir = make_run("flipped")
    at_step(5, preempt)
    assert run_here(config) == 0
    for name in checkpoint.read(run_dir / "checkpoint-5").files:
        file = run_dir / "checkpoint-5" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        found = list(checkpoint.verify(checkpoint.read(run_dir / "checkpoint-5")))
        assert len(found) == 1 and found[0].startswith(f"checkpoint-5: {name} is not what was written")
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    optimizer = run_dir / "checkpoint-5/optimizer.pt"
    optimizer.write_bytes(bytes(optimizer.stat().st_size))
    monkeypatch.undo()
    capsys.readouterr()
    assert run_here(config) == 0
    output = capsys.readouterr().out
    assert "WARNING: checkpoint-5 IS DAMAGED: checkpoint-5: optimizer.pt is not what was written" in output
    assert f"resuming from {run_dir / 'checkpoint-4'} (step 4)" in output
    assert (run_dir / "damaged-checkpoint-5").is_dir()
    assert_equal(run_dir, uninterrupted)


def test_a_read_only_run_directory_is_said_at_the_start(make_run, capsys, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]).returncode:
        pytest.skip("a read-only file system needs root")
    try:
        config, _ = make_run("readonly", output_dir=str(disk / "run"))
        assert run_here(config) == 2
        assert "cannot be written" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
