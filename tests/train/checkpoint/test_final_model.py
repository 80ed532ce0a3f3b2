"""The final model on a full disk: in a job it is waited for, else the state is kept and the end is orderly."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from tests.support.saving_runs import assert_equal, run_here
from train.checkpoint import final_model, folders
from train.loop.trainer import PackedSFTTrainer


@pytest.fixture
def full_disk(monkeypatch):
    """Factory: writing the final model fails this number of times, half-way; an action runs at each."""
    original = final_model.folders.publish

    def arrange(times, action=lambda: None):
        left = [times]

        def publish(folder, **more):
            if not folder.name.startswith("all") and left[0]:
                left[0] -= 1
                action()
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(folder, **more)

        monkeypatch.setattr(final_model.folders, "publish", publish)
        monkeypatch.setattr(final_model, "BETWEEN_TRIES", 0.01)

    return arrange


def test_outside_a_job_it_ends_with_what_to_do_and_goes_on(make_run, uninterrupted, full_disk, said, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config, run_dir = make_run("final-full")
    full_disk(1)
    assert run_here(config) == 2
    output = said()
    assert "error: the final model of step 9 could not be saved: [Errno 28] No space left on device" in output
    assert "checkpoint-9 holds the state: make space and run the same command again" in output
    assert not (run_dir / "complete.json").exists() and not list(run_dir.glob("*.safetensors"))
    assert run_here(config) == 0
    assert_equal(run_dir, uninterrupted)


def test_in_a_job_it_is_tried_again(make_run, uninterrupted, full_disk, said, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config, run_dir = make_run("final-waits")
    full_disk(2)
    assert run_here(config) == 0
    assert said().count("WARNING: the final model IS NOT SAVED: [Errno 28]") == 2
    assert_equal(run_dir, uninterrupted)


def test_in_a_job_a_signal_ends_the_waiting(make_run, full_disk, said, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config, run_dir = make_run("final-signal")
    full_disk(99, action=lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert run_here(config) == 2
    assert "could not be saved" in said() and folders.find_checkpoints(run_dir)[-1].step == 9


def test_in_a_job_an_error_that_no_space_would_mend_ends_it_at_once(make_run, said, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config, run_dir = make_run("final-never", max_steps=2)

    def refuse(*args, **kwargs):
        raise ValueError("a setting cannot be saved")

    monkeypatch.setattr(PackedSFTTrainer, "save_model", refuse)
    assert run_here(config, "--save_strategy", "no") == 2
    output = said()
    assert "could not be saved: ValueError: a setting cannot be saved. " in output
    assert "there is no checkpoint: change what it names and run the same command again" in output
    assert "Trying again" not in output and not folders.find_checkpoints(run_dir)
