"""What a run is made with."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from train.run import environment


def test_versions_and_device():
    found = environment.described()
    assert found["torch"] == torch.__version__ and found["transformers"] and found["python"] in sys.version
    assert found["device"]


def test_the_command_is_that_of_the_launcher_else_its_own(monkeypatch):
    launcher = ["python", "/env/bin/accelerate", "launch", "--config_file", "a b.yaml", "-m", "train.sft"]
    for words in (
        launcher,
        ["python", "-m", "train.launch"],
        ["python", "/env/bin/packhaul", "train", "--launch", "x"],
    ):
        monkeypatch.setattr(environment, "_parents", lambda words=words: [["bash", "-c", "accelerate launch"], words])
        assert environment.command().startswith(f"{words[0]} ") and environment.command().split()[1] == words[1]
    assert "--launch x" in environment.command()
    monkeypatch.setattr(environment, "_parents", lambda: [["bash", "train.sft"], ["packhaul-other", "train"]])
    monkeypatch.setattr(environment, "_own_words", lambda: ["python", "-m", "train.sft", "--config", "r.yaml"])
    assert environment.command() == "python -m train.sft --config r.yaml"


def test_in_a_job_it_is_that_of_the_submission(tmp_path, monkeypatch):
    monkeypatch.setenv("PACKHAUL_SUBMISSION", str(tmp_path))
    (tmp_path / "submission.json").write_text(
        json.dumps({"command": ["slurm/submit.sh", "train", "--config", "가.yaml"]})
    )
    assert environment.command() == "slurm/submit.sh train --config '가.yaml'"
    (tmp_path / "submission.json").write_text("{")
    assert "submit" not in environment.command()


def test_no_secret_is_in_it(monkeypatch):
    words = ["--hub_token", "abc", "--seed", "7", "--api_key=def", "--x", "hf_" + "a" * 30, "--hub_token", "--y"]
    monkeypatch.setattr(environment, "_submitted", lambda: words)
    said = environment.command()
    assert "--seed 7" in said and "--y" in said and not [secret for secret in ("abc", "def", "hf_") if secret in said]


def test_the_words_of_a_parent_are_read():
    code = "from train.run.environment import _parents; print(_parents()[0][-1])"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    done = subprocess.run([sys.executable, "-c", outer, "마지막"], capture_output=True, text=True)
    assert done.stdout == "마지막\n", done.stderr
