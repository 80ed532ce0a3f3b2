"""W&B online against a local server, and what training does when that server is gone, hangs or fails."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time

import psutil
import pytest

from tests.support.in_process_trainer import make_trainer
from tests.support.training import make_shards
from tests.support.wandb_offline import read_run
from tests.support.wandb_server import WandbServer
from train.loop import wandb_run
from train.run import run_record

RUN_ID = "abcd1234"
STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 24, "long": [4] * 4}
    return make_shards(tmp_path_factory.mktemp("wandb"), tiny_tokenizer.name_or_path, answers, seq_len=128)


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A server, and an environment that leads to it with short timeouts."""
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    values = {"API_KEY": "a" * 40, "MODE": "online", "TAGS": "one,two", "NOTES": "why", "SILENT": "true"}
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr(wandb_run, "TIMEOUTS", {"init_timeout": 3.0, "finish_timeout": 6.0})
    monkeypatch.setattr(wandb_run, "MARGIN", 300.0)  # only spent where other work keeps the machine busy
    with WandbServer().serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        wandb_run.end(0)


@pytest.fixture
def train(shards, tiny_model_dir, tmp_path):
    """Trains with W&B, as `train.sft` does; the trainer and the seconds that it took. `during(trainer, step)` runs
    after each step."""

    def run(run_dir="run", during=lambda trainer, step: None, **options):
        from transformers import TrainerCallback

        class During(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                during(trainer, state.global_step)

        record = {"data": str(shards), "manifest_sha256": "f" * 64, "wandb_run_id": RUN_ID}
        (tmp_path / run_dir).mkdir(exist_ok=True)
        run_record.use_wandb_id(record, tmp_path / run_dir)
        resume = options.pop("resume", None)
        options = {"max_steps": STEPS, "report_to": "wandb", "run_name": "mine"} | options
        trainer = make_trainer(shards, tiny_model_dir("llama"), tmp_path / run_dir, callbacks=[During()], **options)
        wandb_run.use_safe_wandb(trainer, record)
        start = time.monotonic()
        trainer.train(resume_from_checkpoint=resume)
        (callback,) = wandb_run._runs
        wandb_run.end(0)
        callback._worker.join()  # what a run gave up on must not go on in the next test
        return trainer, time.monotonic() - start

    return run


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logged_steps(rows) -> list[int]:
    return [row["train/global_step"] for row in rows if "train/loss" in row]


def test_a_resumed_run_is_one_run_with_config_tags_notes_and_report(online, train, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    train(max_steps=3, **options)
    train(resume=str(tmp_path / "run/checkpoint-3"), **options)
    assert list(online.runs) == [RUN_ID]
    run = online.runs[RUN_ID]
    assert sorted(run["tags"]) == ["one", "two"] and run["notes"] == "why" and run["displayName"] == "mine"
    assert json.loads(run["config"])["packhaul"]["value"]["manifest_sha256"] == "f" * 64
    lines = online.history[RUN_ID]
    assert sorted(lines) == list(range(len(lines)))  # the second start went on where the first ended
    assert logged_steps(lines[i] for i in sorted(lines)) == [1, 2, 3, 4, 5, 6]
    assert {"train/loss_long", "train/tokens_per_second_per_gpu", "train/data_wait_share"} <= set().union(
        *lines.values()
    )
    assert "CreateArtifact" in online.operations


@pytest.mark.parametrize("fault", ["refuses", "hangs", "answers 500"])
def test_no_server_at_the_start_means_offline(fault, online, train, tmp_path, monkeypatch, capsys):
    online.mode = {"refuses": "ok", "hangs": "hang", "answers 500": "500"}[fault]
    if fault == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    trainer, seconds = train()
    assert trainer.state.global_step == STEPS and seconds < 300
    printed = capsys.readouterr().err
    assert "W&B cannot be reached" in printed and "wandb sync" in printed
    (file,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    run_id, config, rows = read_run(file)
    assert run_id == RUN_ID and "packhaul" in config and logged_steps(rows) == list(range(1, STEPS + 1))


# What is lost, and when W&B's own limits do not hold: its process repeats a request and does not come to the end of the
# run, or does not run at all.
LOST = {
    "hang": lambda online: setattr(online, "mode", "hang"),
    "500": lambda online: setattr(online, "mode", "500"),
    "process stopped": lambda online: [process.suspend() for process in wandb_processes()],
}


def wandb_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "wandb" in child.name() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("fault", LOST)
def test_a_server_lost_in_the_middle_slows_no_step(fault, online, train, tmp_path, capsys, monkeypatch):
    """Nor does anything wait long for it at the end, and what was logged can be uploaded later."""
    import wandb

    monkeypatch.setattr(wandb_run, "MARGIN", 14.0)

    ends = []

    def lose(trainer, step):
        ends.append(time.monotonic())
        if step == 2:
            wait_for(lambda: wandb.run)
            LOST[fault](online)

    trainer, seconds = train(during=lose)
    assert trainer.state.global_step == STEPS
    assert max(b - a for a, b in itertools.pairwise(ends[2:])) < 20 and seconds < 200  # without an end it takes more
    (file,) = tmp_path.glob("run/wandb/run-*/*.wandb")
    printed = capsys.readouterr().err
    assert "W&B has not taken everything within 20 s" in printed and f"wandb sync {file.parent}" in printed
    assert not wandb_processes() and wandb.run is None
    if fault != "process stopped":
        assert logged_steps(read_run(file)[2]) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("fault", ["hang", "500"])
def test_a_file_that_the_server_does_not_take_is_named(fault, online, train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wandb_run, "MARGIN", 54.0)
    online.mode, online.broken = fault, "CreateArtifact"
    _, seconds = train()
    assert seconds < 250
    (file,) = tmp_path.glob("run/wandb/run-*/*.wandb")
    printed = capsys.readouterr().err
    assert f"wandb sync {file.parent}" in printed
    assert logged_steps(read_run(file)[2]) == list(range(1, STEPS + 1))


def test_a_run_that_ends_before_its_start_is_answered_is_kept_offline(online, train, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_run, "TIMEOUTS", {"init_timeout": 300.0, "finish_timeout": 6.0})
    monkeypatch.setattr(wandb_run, "MARGIN", 54.0)
    online.mode = "hang"
    _, seconds = train()
    assert seconds < 250
    (file,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert logged_steps(read_run(file)[2]) == list(range(1, STEPS + 1))


def test_the_patience_is_shared_by_all_waits(monkeypatch):
    patience, never = wandb_run.Patience(0.2), threading.Event()
    monkeypatch.setattr(wandb_run, "LEAST", 0.01)
    patience.keep_back = 0.1
    assert not patience.wait(never) and patience.left <= 0.1
    patience.keep_back = 0.0
    assert not patience.wait(never) and patience.left <= 0
    never.set()
    assert patience.wait(never)


@pytest.mark.parametrize(("given", "seconds"), [(None, 6.0), ("600", 600.0), ("0", math.inf)])
def test_the_environment_says_how_long_the_end_may_take(given, seconds, monkeypatch):
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", given)
    assert wandb_run.finish_timeout() == seconds


def test_a_dead_wandb_process_does_not_end_training(online, train, capsys):
    import wandb

    def kill(trainer, step):
        if step == 2:
            wait_for(lambda: wandb.run)
            for process in wandb_processes():
                process.kill()

    trainer, _ = train(during=kill)
    assert trainer.state.global_step == STEPS
    printed = capsys.readouterr().err
    assert "W&B failed" in printed or "W&B cannot be reached" in printed  # by whether its start was over
