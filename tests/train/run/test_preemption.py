"""Ctrl-C: once it is noted, twice it stops at once, and before the first step there is nothing to save."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import os, signal, time
from train.run import preemption
signals = preemption.Signals()
signals.install()
{steps}
print("went on after", signals.first(), flush=True)
"""
CTRL_C = "os.kill(os.getpid(), signal.SIGINT)"
LATER = "preemption._REPEATED = -1.0"  # as if the next one came a while after the first
AT_ONCE = "sft: stopped at once by Ctrl-C: the same command goes on from the newest complete checkpoint\n"


def test_workers_that_load_data_leave_it_to_their_parent():
    """They are forks, and get what the terminal sends as well."""
    steps = f"if os.fork() == 0:\n    {CTRL_C}\n    os._exit(0)\nassert os.wait()[1] == 0"
    command = [sys.executable, "-c", CODE.format(steps=steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on after None\n", "")


@pytest.mark.parametrize(
    ("steps", "code", "out", "err"),
    [
        ([CTRL_C], 130, "", "sft: stopped by Ctrl-C before the first step: there is nothing to save\n"),
        (["signals.stepping = True", CTRL_C], 0, "went on after SIGINT\n", "sft: Ctrl-C: this step is finished and"),
        # A launcher passes it on at once: it counts once.
        (["signals.stepping = True", CTRL_C, CTRL_C], 0, "went on after SIGINT\n", "sft: Ctrl-C: this step is"),
        (["signals.stepping = True", CTRL_C, LATER, CTRL_C], 130, "", AT_ONCE),
        (["signals.stepping = True", "os.environ['RANK'] = '1'", CTRL_C], 0, "went on after SIGINT\n", ""),
        (["signals.stepping = True", "os.kill(os.getpid(), signal.SIGTERM)"], 0, "went on after SIGTERM\n", ""),
    ],
)
def test_what_a_signal_does(steps, code, out, err):
    command = [sys.executable, "-c", CODE.format(steps="\n".join(steps))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert err in done.stderr and "Traceback" not in done.stderr and bool(done.stderr) == bool(err)
