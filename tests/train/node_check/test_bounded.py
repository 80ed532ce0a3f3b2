"""Work with a limit of time."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from train.node_check import bounded
from train.node_check.bounded import Background, Ended, run, run_all, within

PYTHON = [sys.executable, "-IS", "-c"]


def test_how_a_process_ends():
    done = run([*PYTHON, "import sys; print('out' * 50_000); print('a\\nlast', file=sys.stderr); sys.exit(3)"], 60)
    assert done.code == 3 and done.out == "out" * 50_000 + "\n" and done.last_words == "last"
    assert run([*PYTHON, "print('only')"], 60).last_words == "only"
    assert run([*PYTHON, ""], 60).last_words == "it says nothing"
    cuda = "Traceback:\n  raise x\ntorch.AcceleratorError: CUDA error: ECC\nCompile with TORCH_USE_CUDA_DSA\n"
    assert Ended(1, "a line", cuda).last_words == "torch.AcceleratorError: CUDA error: ECC"


def test_one_that_hangs_is_killed_and_costs_no_other():
    hang = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
    asked = []
    commands = {0: [*PYTHON, "print('well')"], 1: [*PYTHON, hang + "time.sleep(99)"]}
    done = run_all(commands, 3, lambda: asked.append(1))
    assert (done[0].code, done[1].code) == (0, None) and asked
    assert not psutil.pid_exists(int(done[1].out))


def test_one_that_cannot_be_killed_is_left_behind(monkeypatch):
    """A process that the kernel holds does not end when it is killed."""
    pids = []

    def not_killed(self):
        pids.append(self.pid)

    monkeypatch.setattr(bounded, "_KILLED", 0.1)
    monkeypatch.setattr(bounded.subprocess.Popen, "kill", not_killed)
    began = time.monotonic()
    assert run([*PYTHON, "import time; time.sleep(60)"], 0.5).code is None
    assert time.monotonic() - began < 30
    psutil.Process(pids[0]).kill()


def test_a_command_that_is_not_there_ends_those_begun():
    with pytest.raises(FileNotFoundError):
        run_all({0: [*PYTHON, "import time; time.sleep(60)"], 1: ["no-such-command"]}, 60)
    # A zombie, such as another test's ended world, has no command line any more.
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in alive if "sleep(60)" in str(child.cmdline())]


def test_calls():
    assert within(60, lambda: 7) == 7
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: time.sleep(5))
    failing = Background(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
