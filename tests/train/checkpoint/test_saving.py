"""train.checkpoint.saving: what is published, when, and what happens when a save fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.saving_runs import assert_equal, preempt, run_here
from train import preflight
from train.checkpoint import capacity, folders, pending_save, saving
from train.run import atomic_files
from train.run.starts import read_starts


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
    got, wanted = (folders.read(d / "checkpoint-8") for d in (run_dir, uninterrupted))
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert got.files[name] == wanted.files[name], name  # as the libraries write it at once, and from a copy
    assert not list(run_dir.glob(".saving-*"))
    assert_recorded(run_dir)


def assert_recorded(run_dir: Path):
    """Both starts: where they went on from, how far they came, how they ended; no part of the final model."""
    first, second = read_starts(run_dir)
    assert (first["from_step"], first["step"], first["ended"]["how"]) == (0, 5, "saved")
    assert first["ended"]["said"] in ("SIGUSR1", "SIGTERM") and first["processes"] == 1
    assert (second["from_step"], second["step"], second["ended"]["how"]) == (5, 9, "complete")
    assert first["began"] < first["first_step"] <= second["state_saved"] < second["began"] < second["first_step"]
    assert second["environment"]["torch"] == torch.__version__ and second["command"]
    assert not [name for name in folders.read(run_dir).files if name.startswith("starts")]


def test_a_checkpoint_has_its_name_only_when_all_is_written(make_run, monkeypatch):
    config, run_dir = make_run("names", max_steps=2)
    seen = []

    def slow_move(source, target):
        time.sleep(0.05)
        seen.append([p.name for p in run_dir.iterdir() if "checkpoint" in p.name])
        return atomic_files.move(source, target)

    monkeypatch.setattr(pending_save, "move", slow_move)
    assert run_here(config) == 0
    assert len(seen) >= 10 and not any(seen)
    assert folders.read(run_dir / "checkpoint-2").step == 2


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_writer(*args, **kwargs):
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


FAULTS = {
    "library": (torch, "save", broken_writer),
    "background": (pending_save, "move", full_disk),
    "folders": (Path, "mkdir", full_disk),
    "marker": (folders, "write_json_atomically", full_disk),
    "space": (shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_leaves_the_old_ones_and_training_goes_on(fault, make_run, uninterrupted, monkeypatch, said):
    config, run_dir = make_run(f"fault-{fault}")
    original = saving.Checkpointer.save

    def save(self, write):
        with pytest.MonkeyPatch.context() as patch:
            if self._trainer.state.global_step == 4:
                patch.setattr(*FAULTS[fault])
            original(self, write)
            self.finish()

    monkeypatch.setattr(saving.Checkpointer, "save", save)
    assert run_here(config) == 0
    output = said()
    assert output.count("WARNING: checkpoint-4 IS NOT SAVED: ") == 1 and "(newest: checkpoint-2)" in output
    expected = {"space": "GiB are free", "library": "file write failed"}.get(fault, "No space left on device")
    assert expected in output
    assert [c.step for c in folders.find_checkpoints(run_dir)] == [2, 6, 8, 9]
    assert not list(run_dir.glob(".saving-*"))
    assert_equal(run_dir, uninterrupted)


def unsavable(*args, **kwargs):
    raise TypeError("cannot pickle a lock")


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_first_save_that_no_space_would_mend_ends_the_run(background, make_run, monkeypatch, said):
    config, run_dir = make_run(f"unsavable-{background}")
    monkeypatch.setattr(torch, "save", unsavable)
    assert run_here(config, "--save_in_background", background) == 2
    output = said()
    assert "error: checkpoint-2, the first, cannot be saved, nor could a later one: TypeError: cannot pickle" in output
    assert "Training goes on" not in output
    assert not list(run_dir.glob(".saving-*")) and not folders.find_checkpoints(run_dir)


def test_a_later_save_that_no_space_would_mend_costs_itself(make_run, at_step, monkeypatch, said):
    config, run_dir = make_run("unsavable-later", max_steps=4)
    at_step(3, lambda: monkeypatch.setattr(torch, "save", unsavable))
    assert run_here(config, "--save_in_background", "false") == 2  # the final model holds the same
    output = said()
    assert "checkpoint-4 IS NOT SAVED: TypeError: cannot pickle a lock. Training goes on" in output
    assert "the final model of step 4 could not be saved: TypeError: cannot pickle a lock. " in output
    assert [c.step for c in folders.find_checkpoints(run_dir)] == [2]


def test_a_full_disk(make_run, uninterrupted, tmp_path, said, monkeypatch):
    """A real one, with place for the first checkpoint only, which fills up after the check before the start."""
    monkeypatch.setattr(preflight, "check_space", lambda *_: iter(()))
    size = sum(record.size for record in folders.read(uninterrupted / "checkpoint-2").files.values())
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.9)}", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("a small tmpfs needs root")
    try:
        config, _ = make_run("full", output_dir=str(disk / "run"), max_steps=5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(capacity, "_SPARE", 0.1)  # so that the check before the save lets it try
            run_here(config)
        output = said()
        assert output.count("IS NOT SAVED") == 2 and f"{disk / 'run'} has 0.00 GiB free" in output
        assert [c.step for c in folders.find_checkpoints(disk / "run")] == [2]
        assert not list((disk / "run").glob(".saving-*"))
        run_here(config, "--max_steps", "7")
        assert "GiB are free in" in said()  # the check before the save
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("device", "available", "held", "problem"),
    [
        ("cpu", 3 * 150, 0, None),
        ("cpu", 3 * 150 - 1, 0, "has 0.00 GiB, 3 process(es) may take"),
        ("cuda", 3 * 200, 0, None),  # pinned buffers take up to twice what they hold
        ("cuda", 3 * 200 - 1, 0, "3 process(es) may take"),
        ("cuda", 0, 128, None),  # the buffers of the last save
        ("cpu", 3 * 15, 90, None),
    ],
)
def test_whether_there_is_memory_for_copies(device, available, held, problem, monkeypatch):
    """For 100 bytes of each of three processes."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(capacity, "available_memory", lambda: available)
    trainer = SimpleNamespace(args=SimpleNamespace(device=torch.device(device)), add_callback=lambda callback: None)
    checkpointer = saving.Checkpointer(trainer, in_background=True, stop=None, extra={}, counters={})
    checkpointer._sizes, checkpointer._memory.size = (300, 100), held
    found = checkpointer._memory_shortage()
    assert found is None if problem is None else problem in found


def test_a_preemption_whose_save_failed_is_an_error(make_run, at_step, monkeypatch, capsys):
    config, run_dir = make_run("unsaved")
    at_step(5, preempt)
    monkeypatch.setattr(pending_save, "move", full_disk)
    assert run_here(config) == 2
    assert "checkpoint-5 could not be saved" in capsys.readouterr().err
    assert not (run_dir / "preempted.json").exists()


def test_ctrl_c_saves_and_nobody_requeues(make_run, uninterrupted, at_step, said):
    config, run_dir = make_run("interrupted")
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run_here(config) == 130
    assert "stopped by Ctrl-C after step 5: the checkpoint is complete" in said()
    assert not (run_dir / "preempted.json").exists() and folders.read(run_dir / "checkpoint-5").step == 5
    at_step(0, lambda: None)
    assert run_here(config) == 0
    assert_equal(run_dir, uninterrupted)


def test_the_newest_checkpoint_survives_a_preemption_when_one_is_kept_and_another_is_best(make_run, at_step):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    config, run_dir = make_run("best", save_total_limit=1, greater_is_better=True, **settings)  # the loss falls
    at_step(5, preempt)
    assert run_here(config) == 0
    state = json.loads((run_dir / "checkpoint-5/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run_dir / "checkpoint-2")
    assert [c.step for c in folders.find_checkpoints(run_dir)] == [2, 5]


def test_every_damaged_file_is_found_and_the_older_checkpoint_used(make_run, uninterrupted, at_step, said, monkeypatch):
    config, run_dir = make_run("flipped")
    at_step(5, preempt)
    assert run_here(config) == 0
    for name in folders.read(run_dir / "checkpoint-5").files:
        file = run_dir / "checkpoint-5" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        found = list(folders.verify(folders.read(run_dir / "checkpoint-5")))
        assert len(found) == 1 and found[0].startswith(f"checkpoint-5: {name} is not what was written")
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    optimizer = run_dir / "checkpoint-5/optimizer.pt"
    optimizer.write_bytes(bytes(optimizer.stat().st_size))
    monkeypatch.undo()
    said()
    assert run_here(config) == 0
    output = said()
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
