"""The end of a whole process of train.sft whose trackers hang: bounded, with its exit code, and with what to upload."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.support.saving_runs import single_config
from tests.support.training import environment, make_shards, wait_until
from tests.support.wandb_server import WandbServer
from train.checkpoint import folders
from train.run import ending

RUN = """
import os, runpy, signal, sys, time
import wandb
from train.run.preemption_callback import PreemptionCallback

def hang(*_, **__):
    time.sleep(900)

def on_step_begin(self, args, state, control, **kwargs):
    while state.global_step == 2 and wandb.run is None:
        time.sleep(0.1)
    if state.global_step == 2:
        print("online", flush=True)
        time.sleep(3)  # until the server has changed
    if state.global_step == 3:
        at_step_3()

def at_step_3():
    pass

PreemptionCallback.on_step_begin = on_step_begin
FAULT
sys.argv = ["train.sft", *sys.argv[1:]]
runpy.run_module("train.sft", run_name="__main__")
"""
FINISH = "wandb.finish = hang"
TRACKER = "from train.loop import tracker_ends, wandb_run\n"
TRACKER += "tracker_ends.put_off = lambda trainer: tracker_ends._ends.append(('Tracker', hang))"
FAULTS = {
    "server answers 500": "",
    "server hangs": "",
    "finish hangs": FINISH,
    "everything hangs": f"{FINISH}; wandb.teardown = hang\n{TRACKER}; wandb_run.kill_service = hang",
}
STEPS = 6
GENEROUS = 60.0  # seconds over the limit, for a machine where others work


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    folder = tmp_path_factory.mktemp("ends")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30})
    options = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama"))}
    options |= {"max_steps": STEPS, "report_to": "wandb", "output_dir": str(folder / "run")}
    return single_config(folder / "run.yaml", **options)


def start(config, log, url, fault, *flags):
    out = log.open("w")
    values = {"MODE": "online", "API_KEY": "a" * 40, "BASE_URL": url, "SILENT": "true"}
    env = environment(**{f"WANDB_{name}": value for name, value in values.items()})
    command = [sys.executable, "-c", RUN.replace("FAULT", fault), "--config", str(config), *flags]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)


def seconds_after(words, process, log):
    """From the line with these words to the end of the process."""
    wait_until(lambda: words in log.read_text(), process, log)
    begun = time.monotonic()
    process.wait(900)
    return time.monotonic() - begun


@pytest.mark.parametrize("fault", FAULTS)
def test_a_finished_run_ends_soon_after_its_last_line(fault, config, tmp_path):
    log, run_dir = tmp_path / "log", tmp_path / "run"
    with WandbServer().serving() as server:
        process = start(config, log, server.url, FAULTS[fault], "--output_dir", str(run_dir))
        wait_until(lambda: "online" in log.read_text().splitlines(), process, log)
        server.mode = {"server answers 500": "500", "server hangs": "hang"}.get(fault, "ok")
        seconds = seconds_after("done after", process, log)
    said = log.read_text()
    print(fault, seconds, said[-1500:])
    assert process.returncode == 0 and seconds < ending.LIMIT + GENEROUS, said[-3000:]
    assert folders.read(run_dir).step == STEPS
    (folder,) = {path.parent for path in (run_dir / "wandb").glob("run-*/*.wandb")}
    assert f"wandb sync {folder}" in said


def test_a_preempted_run_hurries(config, tmp_path):
    log, run_dir = tmp_path / "log", tmp_path / "run"
    fault = f"{FINISH}\nat_step_3 = lambda: os.kill(os.getpid(), signal.SIGUSR1)"
    with WandbServer().serving() as server:
        process = start(config, log, server.url, fault, "--output_dir", str(run_dir))
        seconds = seconds_after("preempted after step", process, log)
    said = log.read_text()
    print(seconds, said[-1500:])
    assert process.returncode == 0 and seconds < ending.HURRIED + GENEROUS, said[-3000:]
    assert (run_dir / "preempted.json").exists() and "wandb sync" in said


def test_an_error_keeps_its_exit_code(config, tmp_path):
    log = tmp_path / "log"
    fault = f"{FINISH}\ndef at_step_3(): raise KeyError('no such tensor')"
    with WandbServer().serving() as server:
        process = start(config, log, server.url, fault, "--output_dir", str(tmp_path / "run"))
        assert process.wait(900) == 1
    said = log.read_text()
    assert said.count("KeyError: 'no such tensor'") == 1 and "wandb sync" in said
