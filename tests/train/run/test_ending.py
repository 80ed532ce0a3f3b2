"""A process ends in a bounded time and with its exit code, whatever hangs on its way out."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

PROCESS = """
import atexit, sys, threading, time
from contextlib import ExitStack
from train.run import ending, log

log.set_up()
held = ExitStack()
held.callback(lambda: print("given back", flush=True))
ending.end_here(held)

class Stuck:
    def __del__(self, sleep=time.sleep):
        sleep(600)

def hang(*_):
    time.sleep(600)

ending.by_force.append(lambda: "upload it later: wandb sync DIR")
begun = time.monotonic()
ending.begin(CODE, SECONDS, held)
FAULT
print("done")
sys.exit(CODE)
"""
FAULTS = {
    "main thread": "hang()",
    "other thread": "threading.Thread(target=hang, name='uploader').start()",
    "exit hook": "atexit.register(hang)",
    "executor": "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor(1).submit(hang)",
    "release": "held.callback(hang)",
    "sign": "ending.by_force.append(hang); hang()",
}


def run(fault: str, code: int, seconds: float) -> tuple[subprocess.CompletedProcess[str], float]:
    source = PROCESS.replace("FAULT", fault).replace("CODE", str(code)).replace("SECONDS", str(seconds))
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - begun


@pytest.mark.parametrize("fault", FAULTS)
def test_the_end_is_forced_with_the_same_exit_code(fault):
    done, seconds = run(FAULTS[fault], 2, 4)
    assert done.returncode == 2 and 2 < seconds < 60, done.stderr
    if fault != "sign":
        assert "sft: WARNING: the end of this process takes 4 s, and is forced now; still at work: " in done.stderr
        assert "upload it later: wandb sync DIR" in done.stderr
    if fault == "other thread":
        assert "still at work: uploader." in done.stderr
    if fault != "release":
        assert "given back" in done.stdout


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("rest", ["pass", "stuck = sys.modules['stuck'] = Stuck()"], ids=["nothing", "a destructor"])
def test_an_end_that_nothing_holds_up_is_not_waited_for(code, rest):
    """Not for destructors either, which run when no thread of ours can any more."""
    done, seconds = run(f"{rest}; atexit.register(print, 'hook')", code, 300)
    assert done.returncode == code and seconds < 100 and done.stderr == ""
    assert done.stdout.splitlines() == ["done", "hook", "given back"]


def test_a_thread_that_still_deletes_is_waited_for():
    done, _ = run("threading.Thread(target=lambda: (time.sleep(1), print('deleted'))).start()", 0, 300)
    assert done.returncode == 0 and done.stdout.splitlines() == ["done", "deleted", "given back"]


def test_without_a_begin_the_process_ends_as_ever():
    done, _ = run("ending._codes.clear()", 0, 300)
    assert done.returncode == 0 and "given back" not in done.stdout
