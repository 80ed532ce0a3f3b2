"""A real launch of two processes: what one of them alone finds is shown, what both find is shown once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.preflight_files import write_model, write_shards
from tests.support.training import TIMEOUT, environment, run_config

MISSING = """
import os
if os.environ.get('RANK', '') {ranks}:
    import train.preflight
    train.preflight.check = lambda *_, **__: ["model: /scratch/model is not on this node"]
"""


@pytest.mark.parametrize(("ranks", "speaker"), [("== '1'", f"rank 1 on {socket.gethostname()}: "), (">= '0'", "")])
@pytest.mark.parametrize("in_job", [True, False], ids=["in a job", "on a workstation"])
def test_a_refusal_is_said_once_by_whoever_finds_it(ranks, speaker, in_job, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(MISSING.format(ranks=ranks))
    data, model = write_shards(tmp_path / "shards"), write_model(tmp_path / "model")
    options = {"data": str(data), "model_name_or_path": str(model), "output_dir": str(tmp_path / "run")}
    command = [sys.executable, "-m", "train.launch", "--config_file", "configs/accelerate/cpu_zero2.yaml"]
    command += [
        "--main_process_port",
        "0",
        "-m",
        "train.sft",
        "--config",
        str(run_config(tmp_path / "x.yaml", **options)),
    ]
    (tmp_path / "logs").mkdir()
    job = {"PACKHAUL_LOG_DIR": str(tmp_path / "logs")} if in_job else {}
    env = environment(PYTHONPATH=f"{tmp_path}:{ROOT}", **job)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    line = f"sft: error: {speaker}1 problem(s) found before the start:\n- model: /scratch/model is not on this node\n"
    assert done.returncode == 2 and done.stderr.count("/scratch/model") == 1 and line in done.stderr, done.stderr
    if in_job:
        end = json.loads((tmp_path / "logs" / "launch-node0.json").read_text())
        assert end["exit_code"] == 2 and end["rank"] in ((1,) if speaker else (0, 1))
        written = json.loads((tmp_path / "logs" / f"error-rank{end['rank']}.json").read_text())
        assert (written["exit_code"], written["rank"], written["consequence"]) == (2, end["rank"], False)
