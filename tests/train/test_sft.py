"""train.sft: what it refuses between joining its world and loading a model, and how it ends."""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext

import pytest

from tests.support.in_process import as_a_fresh_process
from tests.support.preflight_files import write_model, write_shards
from train import sft
from train.loop import wandb_run
from train.run import preemption, spoken
from train.sft import main


def test_the_end_of_a_run_ends_that_of_wandb_with_the_same_code(tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr(wandb_run, "end", lambda code, hurried: codes.append(code))
    with as_a_fresh_process():
        assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert codes == [2]


@pytest.mark.parametrize(
    ("visible", "flags", "words"),
    [
        (2, [], "expected one GPU for each process, this process sees 2"),
        (1, ["--expected_world_size", "4"], "expected_world_size is 4"),
    ],
)
def test_refused(visible, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: visible))
    shards, model = write_shards(tmp_path / "shards"), write_model(tmp_path / "model")
    base = ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run")]
    with as_a_fresh_process():
        assert main([*base, "--use_cpu", "--bf16", "false", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class WandbRun:
    """Stands in for a callback with a W&B run."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def end(self, code: int, hurried: bool) -> None:
        self.codes.append(code)

    def missing(self) -> None:
        pass


def test_the_wandb_run_ends_with_the_exit_code(monkeypatch, capsys):
    """Otherwise W&B ends the run itself when the process exits, which can take hours."""
    run = WandbRun()
    monkeypatch.setattr(wandb_run, "_runs", [run])
    monkeypatch.setattr(preemption.Signals, "install", lambda self: None)
    with as_a_fresh_process():
        assert main(["--learning_rat", "1"]) == 2
    assert run.codes == [2]
    assert "unknown option 'learning_rat'" in capsys.readouterr().err


def test_every_end_with_an_error_is_written_down_for_the_job(tmp_path, monkeypatch, capsys):
    """Of a rank that is not the first as well, which says it itself, as no other does."""
    monkeypatch.setenv("PACKHAUL_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(spoken, "PATIENCE", 0.1)
    with as_a_fresh_process():
        assert main(["--learning_rat", "1"]) == 2
    assert f"sft: error: rank 1 on {socket.gethostname()}: the run configuration cannot" in capsys.readouterr().err
    written = json.loads((tmp_path / "error-rank1.json").read_text())
    assert written["exit_code"] == 2 and "unknown option 'learning_rat'" in written["message"]


@pytest.mark.parametrize(
    ("error", "code", "consequence"),
    [
        (RuntimeError("Connection closed by peer [10.0.0.2]:33759"), 1, True),
        (RuntimeError("CUDA out of memory"), None, False),
        (OSError("no such model"), None, False),
    ],
)
def test_an_error_of_the_libraries_is_written_down(error, code, consequence, tmp_path, monkeypatch):
    def load_run_config(argv):
        raise error

    monkeypatch.setenv("PACKHAUL_LOG_DIR", str(tmp_path))
    monkeypatch.setattr(sft, "load_run_config", load_run_config)
    with as_a_fresh_process(), nullcontext() if code else pytest.raises(type(error)):
        assert main([]) == code
    written = json.loads((tmp_path / "error-rank0.json").read_text())
    assert (written["exit_code"], written["consequence"]) == (1, consequence)
    assert str(error) in written["message"]
    if not consequence:
        assert written["message"].splitlines()[0] == f"{type(error).__name__}: {error}"
        assert "Traceback" in written["message"]
