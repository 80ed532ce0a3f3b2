"""Faults around a run: each with its message, none with a wrong result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from tests.saving_runs import run_here
from tests.test_saving import assert_equal, at_step, make_run, preempt, uninterrupted  # noqa: F401  # fixtures
from tests.training import environment, make_shards, run_config
from train import checkpoint, save_parts, watchdog
from train.preemption import lead_problem


def test_a_shard_deleted_while_training_changes_nothing_and_is_named_at_the_next_start(
    make_run,  # noqa: F811
    uninterrupted,  # noqa: F811
    at_step,  # noqa: F811
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
def test_every_damaged_file_of_the_shards_is_named_at_the_start(damage, make_run, uninterrupted, tmp_path, capsys):  # noqa: F811
    config, _ = make_run(f"data-{damage}")
    shards = Path(shutil.copytree(json.loads((uninterrupted / "run.json").read_text())["data"], tmp_path / "shards"))
    files = [
        p for p in sorted(shards.rglob("*")) if p.is_file() and not p.match("report.*") and not p.match("dropped/*")
    ]
    assert {p.suffix for p in files} == {".arrow", ".json", ".jinja"}
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(
            content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :]) * (damage == "flipped")
        )
        assert run_here(config, "--data", str(shards)) == 2, file
        assert str(file) in capsys.readouterr().err
        file.write_bytes(content)
    assert run_here(config, "--data", str(shards), "--max_steps", "1") == 0


def test_a_clock_that_jumps_changes_nothing(make_run, uninterrupted, at_step, monkeypatch):  # noqa: F811
    config, run_dir = make_run("clock", save_total_limit=2)
    now = time.time
    at_step(5, lambda: (monkeypatch.setattr(time, "time", lambda: now() - 86_400), preempt()))
    assert run_here(config) == 0
    monkeypatch.undo()
    for step, age in ((4, -86_400), (5, 86_400)):  # the newest looks oldest
        for file in (run_dir / f"checkpoint-{step}").rglob("*"):
            os.utime(file, (now() - age, now() - age))
    newest = checkpoint.newest_complete(run_dir, print)
    assert newest and newest.step == 5
    assert run_here(config) == 0
    assert_equal(run_dir, uninterrupted)
    assert [c.step for c in checkpoint.find_checkpoints(run_dir)] == [8, 9]


def test_a_save_that_does_not_fit_before_the_end_is_said(monkeypatch):
    monkeypatch.setenv("PACKHAUL_SIGNAL_SECONDS", "60")
    assert lead_problem(10, 40) is None
    problem = lead_problem(20.0, 100.0)
    assert problem and "a step takes up to 20 s and a save 100 s, the signal comes 60 s before" in problem
    assert "set PACKHAUL_SIGNAL_SECONDS to 180 or more" in problem
    monkeypatch.delenv("PACKHAUL_SIGNAL_SECONDS")
    assert lead_problem(20, 100) is None


def test_the_first_process_writes_all_weights_and_its_part_of_the_states():
    model = torch.nn.Linear(1000, 1000, bias=False, dtype=torch.bfloat16)
    args = SimpleNamespace(optim="adamw_torch", world_size=4)
    assert save_parts.largest_part(model, args, is_sharded=False) == 20e6  # twice 2 + 4 + 4 bytes
    assert save_parts.largest_part(model, args, is_sharded=True) == 2e6 + 20e6 / 4


def test_saves_too_slow_for_the_lead_are_said_once_and_at_the_start(make_run, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("PACKHAUL_SIGNAL_SECONDS", "0")
    config, _ = make_run("lead", max_steps=3)
    assert run_here(config) == 0
    output = capsys.readouterr().out
    assert output.count("WARNING: a preemption would lose steps") == 1
    assert output.index("WARNING: a preemption") < output.index("checkpoint-2: training waited")


def test_a_process_that_waits_says_where(capfd):
    watch = watchdog.Watchdog(0.2, 3, 60)
    watch.start()
    watch.beat(7)
    time.sleep(0.6)
    watch.stop()
    watch.join()
    said = capfd.readouterr().err
    assert said.count("process 3 on ") == 1 and "(last finished: step 7)" in said
    assert "test_a_process_that_waits_says_where" in said  # the stack of this thread


@pytest.fixture(scope="module")
def lost(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """A world in which a process dies, and one in which a process hangs; their logs and how long the second took."""
    folder = tmp_path_factory.mktemp("lost")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30})
    attempts = []
    for fault in ("die", "hang"):
        config = run_config(
            folder / f"{fault}.yaml",
            data=str(shards),
            model_name_or_path=str(tiny_model_dir("llama")),
            output_dir=str(folder / fault),
            max_steps=5,
            ddp_timeout=16,
        )
        log = str(folder / f"{fault}.log")
        flags = ["--config", str(config)]
        launch = {"accelerate": "cpu_zero2", "processes": 2, "flags": flags, "log": log}
        attempts.append({**launch, "fault": [1, 3, fault], "code": 1})
    (folder / "plan.json").write_text(json.dumps(attempts))
    command = [sys.executable, "-m", "tests.world_runs", str(folder / "plan.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout.decode()[-5000:]
    return folder


def test_a_process_that_dies_ends_the_others_with_the_reason(lost):
    log = (lost / "die.log").read_text()
    assert "sft: error: another process has ended: " in log or "Timeout (0:00:20)!" in log


def test_a_process_that_hangs_is_waited_for_no_longer_than_ddp_timeout(lost):
    log = (lost / "hang.log").read_text()
    assert "sft: error: a process has not answered within ddp_timeout: " in log or "Timeout (0:00:20)!" in log
    assert "WARNING: process 1 on " in log and "in training_step" in log  # the one that hangs, and where
