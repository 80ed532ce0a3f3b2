"""How a job's script runs a command, speaks and writes, when all does not go well."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from slurm.jobs import __main__ as program
from slurm.jobs import answers, chain, launching, world
from slurm.jobs.attempt import Attempt
from slurm.jobs.launching import ended
from slurm.jobs.words import Refusal, make_folder
from tests.support.slurm_stand_ins import ROOT


def test_a_command_that_does_not_end_is_ended_with_its_children(tmp_path):
    command = ["bash", "-c", 'sleep 300 & echo $! > "$0"; sleep 300', str(tmp_path / "child")]
    assert answers.finished(command, timeout=2)[0] == 124
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_commands_answer_may_hold_bytes_that_are_no_text():
    code, out, _ = answers.finished(["printf", r"JobState=RUNNING Comment=\377"])
    assert (code, os.fsencode(out)) == (0, b"JobState=RUNNING Comment=\xff")
    assert answers.job_state(out, 0) == answers.RUNS


def test_a_signal_for_the_job_does_not_end_what_only_asks():
    assert answers.finished(["bash", "-c", "kill -USR1 $$; kill -TERM $$; echo goes on"]) == (0, "goes on\n", "")


def test_a_command_that_is_not_there():
    code, out, errors = answers.finished(["none-of-this-name"])
    assert (code, out) == (127, "") and "none-of-this-name" in errors


def test_an_exit_code_is_that_of_a_shell():
    assert ended(subprocess.Popen(["bash", "-c", "kill -KILL $$"])) == 137
    assert ended(subprocess.Popen(["bash", "-c", "exit 4"])) == 4


def test_a_full_disk_does_not_end_a_job():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", "from slurm.jobs.words import say; say('a line')"]
        assert subprocess.run(command, stdout=full, cwd=ROOT).returncode == 0


def test_a_folder_that_cannot_be_made_is_a_refusal(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="file/run cannot be made: Not a directory: name a folder of your own"):
        make_folder(str(tmp_path / "file/run"))


def test_node_names_that_slurm_does_not_tell(monkeypatch):
    monkeypatch.setattr(answers, "ask", lambda *command: (1, "", "no such host"))
    with pytest.raises(Refusal, match=r"scontrol show hostnames gpu\[1-2\]: no such host"):
        answers.host_names("gpu[1-2]")


def test_ctrl_c_shows_no_traceback(monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setitem(program.PROGRAMS, "submit", interrupted)
    assert program.main(["submit"]) == 130


def test_a_chain_that_is_submitted_again_begins_now(tmp_path):
    """What an earlier chain has finished in this folder is not its end."""
    for name, age in ((".chain-start", 200), ("complete.json", 100)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    first = SimpleNamespace(in_chain=True, chain_index=1, restarts=0, chain_before="")
    assert not chain.is_over(str(tmp_path), first)


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED"])
def test_a_chain_ends_where_a_person_has_cancelled_a_job_that_never_started(tmp_path, monkeypatch, state):
    monkeypatch.setattr(answers, "ask", lambda *command: (0, f"JobId=7 JobState={state} Reason=None", ""))
    later = SimpleNamespace(in_chain=True, chain_index=2, restarts=0, chain_before="7")
    if state == "FAILED":
        assert not chain.is_over(str(tmp_path), later)
        return
    with pytest.raises(Refusal, match="was cancelled"):
        chain.is_over(str(tmp_path), later)
    with pytest.raises(Refusal):  # and for all that follow
        chain.is_over(str(tmp_path), SimpleNamespace(**{**vars(later), "chain_before": ""}))


@pytest.mark.parametrize(("restarts", "is_broken"), [(0, False), (1, True)])
def test_only_a_chain_that_begins_forgets_a_failure(tmp_path, restarts, is_broken):
    (tmp_path / ".chain-failed").touch()
    first = SimpleNamespace(in_chain=True, chain_index=1, restarts=restarts, chain_before="")
    if is_broken:  # SLURM has started its first job again
        with pytest.raises(Refusal, match="an earlier job of this chain has failed"):
            chain.is_over(str(tmp_path), first)
    else:
        assert not chain.is_over(str(tmp_path), first)


@pytest.mark.parametrize("is_preempted", [True, False])
def test_a_chain_is_not_over_while_a_training_is_preempted(tmp_path, is_preempted):
    (tmp_path / "complete.json").touch()
    if is_preempted:
        (tmp_path / "preempted.json").touch()
    later = SimpleNamespace(in_chain=True, chain_index=2, restarts=0, chain_before="")
    assert chain.is_over(str(tmp_path), later) == (not is_preempted)


@pytest.mark.parametrize(("first_node", "passed"), [("gpu07", 1), ("gpu12", 0)])
def test_a_port_is_tried_where_it_will_be_used_and_nowhere_else(monkeypatch, first_node, passed):
    held = iter([True, False])
    monkeypatch.setattr(world, "_is_held", lambda port: next(held))
    job = SimpleNamespace(id="31234", here="gpu07")
    assert world.free_port(job, first_node) == 15000 + 31234 % 15000 + passed


# Plays srun with launchers that have started and processes that are still starting: it ends at the third signal.
DEAF = r"""
n=0
trap 'n=$((n+1)); [ $n -lt 3 ] || exit 7' USR1
: >"$PACKHAUL_LOG_DIR/node0.started"
for second in {1..60}; do sleep 1 & wait; done
"""


def test_a_signal_that_has_come_is_sent_on_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_AGAIN", 0.3)
    signals = launching.Signals()
    signals.first = "USR1"
    steps = launching.Steps(SimpleNamespace(), signals, 1, False)
    variables = {"PACKHAUL_LOG_DIR": str(tmp_path)}
    env = {**os.environ, **variables}
    monkeypatch.setattr(steps, "_start", lambda *_: subprocess.Popen(["bash", "-c", DEAF], env=env))
    assert steps.train(["gpu07"], variables, [], lambda: False) == 7


def test_a_node_that_is_silent_is_waited_for(monkeypatch):
    states = iter(["RUNNING", "NODE_FAIL"])

    def ask(*command, timeout=60):
        if "job" in command:
            return 0, f"JobId=7 JobState={next(states)} Reason=None", ""
        said = {"srun": (124, "", ""), "sinfo": (0, "gpu07|allocated\n", "")}
        return said.get(command[0], (0, "SlurmdTimeout = 1 sec\n", ""))

    monkeypatch.setattr(answers, "ask", ask)
    attempt = Attempt.__new__(Attempt)
    attempt.here = SimpleNamespace(number=lambda name: 0)
    attempt.job, attempt.code, attempt.lost = SimpleNamespace(id="7", restarts=0), 1, []
    attempt._await_node_failure(["gpu07", "gpu12"])
    assert attempt.slurm == answers.GAVE_UP and not attempt.lost
