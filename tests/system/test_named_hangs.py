"""A hang names the rank that all wait for, its host, phase and step, and ends the run; a slow rank is named too."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest

from tests.support.training import history, make_shards, run_config
from train.loop.pace import PARTS

STEP, START = 8, 25  # seconds that are given to a step, a save and a batch; and to the start where that hangs
SILENT = "it no longer answers (stopped, dead, blocked outside Python, or its node is lost)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("hangs"), tiny_tokenizer.name_or_path, {"short": [1] * 60})


def config_of(accelerate: str, shards: Path, model: Path, folder: Path, **more) -> Path:
    """Of a run of six steps on two processes, into `folder / "run"`."""
    return run_config(
        folder / "run.yaml",
        data=str(shards),
        model_name_or_path=str(model),
        output_dir=str(folder / "run"),
        max_steps=6,
        expected_world_size=2,
        expected_distributed_type="DEEPSPEED" if "zero" in accelerate else "MULTI_CPU",
        **more,
    )


STUCK = r" since .* s; it is at __main__\.<lambda> \(world_runs\.py:\d+\), called from train\.loop\."
STOPPED = rf"( \([\w ]+\))? since .* s; {re.escape(SILENT)}"
CASES = {  # launch file, fault, limit of the start: what is said
    "stopped in a step": ("cpu_zero2", [1, 3, "stop"], 70, f"in step 3{STOPPED}"),
    "stopped in a save": ("cpu_single", [1, 1, "stop", "save"], 70, f"in the save after step 2{STOPPED}"),
    "stopped in the start": ("cpu_single", [1, 1, "stop", "start"], START, f"in the start{STOPPED}"),
    "stuck in data loading": ("cpu_single", [0, 4, "hang", "data"], 70, rf"in step 3 \(data\){STUCK}metrics\.waiting"),
    "stuck in a step": ("cpu_zero2", [1, 3, "hang"], 70, rf"in step 3 \(forward\){STUCK}trainer"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rank_that_hangs_is_named(case, worlds, shards, tiny_model_dir, tmp_path):
    accelerate, fault, start, words = CASES[case]
    limits = {"start": start, "step": STEP, "save": STEP, "evaluation": STEP}
    more = {"save_strategy": "steps", "save_steps": 2, "ddp_timeout": 120, "hang_seconds": limits}
    config = config_of(accelerate, shards, tiny_model_dir("llama"), tmp_path, **more)
    (tmp_path / "job").mkdir()
    log, environment = tmp_path / "log", {"PACKHAUL_LOG_DIR": str(tmp_path / "job")}
    begun = time.time()
    codes = worlds.run(accelerate, config, log, fault=fault, environment=environment)
    said = log.read_text()
    assert set(codes) == {1}, said
    rank, host = fault[0], socket.gethostname()
    lines = [line for line in said.splitlines() if line.startswith(f"sft: error: rank {rank} on {host} hangs: ")]
    assert len(lines) == 1 and re.search(words, lines[0]), said
    limit = START if "start" in fault else STEP
    check_the_file(tmp_path / "job", rank, lines[0], begun, limit)
    if fault[2] == "hang":
        assert f"sft: error: rank {rank} on {host}: its threads:" in said and "in faulty" in said
    elif "start" not in fault:
        assert re.search(
            r"the ranks wait in \w+, number \d+ of all ranks: called by rank\(s\) 0; no records of rank", said
        )


def check_the_file(job: Path, rank: int, line: str, begun: float, limit: float) -> None:
    hung = json.loads((job / "hung.json").read_text())
    assert line == f"sft: error: {hung['message']}"
    assert (hung["rank"], hung["host"]) == (rank, socket.gethostname())
    assert hung["phase"] == re.search("(start|step|save)", hung["message"].split("hangs: ")[1])[1]
    assert begun < hung["since"] and limit < hung["time"] - hung["since"] < limit + 30


def test_a_slow_rank_is_named(worlds, shards, tiny_model_dir, tmp_path):
    config = config_of("cpu_zero2", shards, tiny_model_dir("llama"), tmp_path, logging_steps=3)
    worlds.train("cpu_zero2", config, tmp_path / "log", slow=[1, 1.0])
    entry = [entry for entry in history(tmp_path / "run") if "loss" in entry][-1]  # the first steps set much up
    assert (entry["slowest_rank"], entry["slowest_host"]) == (1, socket.gethostname())
    parts = {part: entry[f"slowest_{part}_seconds"] for part in PARTS}
    assert parts["forward"] > 1.0 > parts["waiting"]
    work = sum(parts.values()) - parts["waiting"]
    others = work / entry["slowdown"]
    assert work - others == pytest.approx(1.0, abs=0.5)  # what it slept; both share the machine
