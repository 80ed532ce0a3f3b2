"""Faults around a run: each with its message, none with a wrong result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.saving_runs import assert_equal, preempt, run_here
from train.checkpoint import folders, size_estimates
from train.checkpoint.grace_period import grace_period_problem


def test_a_shard_deleted_while_training_changes_nothing_and_is_named_at_the_next_start(
    make_run,
    uninterrupted,
    at_step,
    tmp_path,
    capsys,
    monkeypatch,
):
    config, run_dir = make_run("deleted")
    data = json.loads((uninterrupted / "run.json").read_text())["data"]
    shards = tmp_path / "shards"
    subprocess.run(["cp", "-r", data, str(shards)], check=True)
    gone = next((shards / "train").glob("*.arrow"))
    at_step(3, gone.unlink)
    assert run_here(config, "--data", str(shards)) == 0
    assert_equal(run_dir, uninterrupted)  # the rows are mapped: the system keeps the file until the run ends
    assert run_here(config, "--data", str(shards)) == 2
    assert gone.name in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_every_damaged_file_of_the_shards_is_named_at_the_start(damage, make_run, uninterrupted, tmp_path, capsys):
    config, _ = make_run(f"data-{damage}")
    shards = Path(shutil.copytree(json.loads((uninterrupted / "run.json").read_text())["data"], tmp_path / "shards"))
    unread = ("report.*", "dropped/*", "documents/*")  # training does not read them
    files = [p for p in sorted(shards.rglob("*")) if p.is_file() and not any(p.match(name) for name in unread)]
    assert {p.suffix for p in files} == {".arrow", ".json", ".jinja"}
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        kept, flipped = content[:middle], bytes([content[middle] ^ 1])
        file.write_bytes(kept + flipped + content[middle + 1 :] if damage == "flipped" else kept)
        assert run_here(config, "--data", str(shards)) == 2, file
        assert str(file) in capsys.readouterr().err
        file.write_bytes(content)
    assert run_here(config, "--data", str(shards), "--max_steps", "1") == 0


def test_a_clock_that_jumps_changes_nothing(make_run, uninterrupted, at_step, monkeypatch):
    config, run_dir = make_run("clock", save_total_limit=2)
    now = time.time
    at_step(5, lambda: (monkeypatch.setattr(time, "time", lambda: now() - 86_400), preempt()))
    assert run_here(config) == 0
    monkeypatch.undo()
    for step, age in ((4, -86_400), (5, 86_400)):  # the newest looks oldest
        for file in (run_dir / f"checkpoint-{step}").rglob("*"):
            os.utime(file, (now() - age, now() - age))
    newest = folders.newest_complete(run_dir, print)
    assert newest and newest.step == 5
    assert run_here(config) == 0
    assert_equal(run_dir, uninterrupted)
    assert [c.step for c in folders.find_checkpoints(run_dir)] == [8, 9]


def test_a_save_that_does_not_fit_before_the_end_is_said(monkeypatch):
    monkeypatch.setenv("PACKHAUL_SIGNAL_SECONDS", "60")
    assert grace_period_problem(10, 40) is None
    problem = grace_period_problem(20.0, 100.0)
    assert problem and "ends up to 20 s after it and a save takes 100 s, the signal comes 60 s before" in problem
    assert "set PACKHAUL_SIGNAL_SECONDS to 180 or more" in problem
    monkeypatch.delenv("PACKHAUL_SIGNAL_SECONDS")
    assert grace_period_problem(20, 100) is None


def of_launch(deepspeed: bool = False, state_dict_type: str | None = None, rank: int = 0) -> SimpleNamespace:
    """A trainer with a million bf16 weights in a world of four."""
    plugin = state_dict_type and SimpleNamespace(state_dict_type=SimpleNamespace(name=state_dict_type))
    return SimpleNamespace(
        model=torch.nn.Linear(1000, 1000, bias=False, dtype=torch.bfloat16),
        args=SimpleNamespace(optim="adamw_torch", world_size=4, process_index=rank),
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )


@pytest.mark.parametrize(
    ("launch", "largest", "own"),
    [
        ({}, 20e6, 5e6),  # twice 2 + 4 + 4 bytes
        ({"deepspeed": True}, 2e6 + 20e6 / 4, 5e6),  # all weights, and its part of the states
        ({"state_dict_type": "SHARDED_STATE_DICT"}, 5e6, 5e6),
        ({"state_dict_type": "FULL_STATE_DICT"}, 20e6, 20e6),
        ({"state_dict_type": "FULL_STATE_DICT", "rank": 1}, 20e6, 0),
    ],
)
def test_what_a_process_writes_depends_on_what_is_sharded(launch, largest, own):
    trainer = of_launch(**launch)
    assert (size_estimates.largest_part(trainer), size_estimates.own_part(trainer)) == (largest, own)


def test_experts_of_other_processes_count_as_weights():
    trainer = of_launch(deepspeed=True)
    trainer.model.weight.ds_autoep_uc_meta = {"logical_shape": [4, 1000, 1000]}  # a process holds one expert of four
    assert (size_estimates.largest_part(trainer), size_estimates.own_part(trainer)) == (8e6 + 80e6 / 4, 20e6)


def test_saves_too_slow_for_the_grace_period_are_reported_once_and_at_the_start(make_run, monkeypatch, said):
    monkeypatch.setenv("PACKHAUL_SIGNAL_SECONDS", "0")
    config, _ = make_run("grace", max_steps=3)
    assert run_here(config) == 0
    output = said()
    assert output.count("WARNING: a preemption would lose steps") == 1
    assert output.index("WARNING: a preemption") < output.index("checkpoint-2: training waited")
