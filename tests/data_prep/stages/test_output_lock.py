"""One preparation at a time in an output folder: who holds it, what a killed one leaves, file systems without locks."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from data_prep import lock_holders
from data_prep.stages import output_lock
from data_prep.stages.output_lock import FOLDER, hold
from tests.conftest import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from data_prep.stages import output_lock
if sys.argv[2] == "touch":
    output_lock._has_flock = lambda folder: False
with output_lock.hold(Path(sys.argv[1]), "all", (0, 1)):
    print("held", flush=True)
    time.sleep(600)
"""
WHOLE = ("all", (0, 1))


@pytest.fixture(params=["flock", "touch"])
def kind(request, monkeypatch):
    """With locks of the file system, and without."""
    if request.param == "touch":
        refused = OSError(errno.ENOLCK, "No locks available")

        def flock(*_: object) -> None:
            raise refused

        monkeypatch.setattr("fcntl.flock", flock)
        monkeypatch.setattr(lock_holders, "BEAT", 0.05)
        monkeypatch.setattr(lock_holders, "SILENCE", 0.5)
    return request.param


def test_a_second_one_is_refused_and_told_who_holds_it(kind, tmp_path):
    with (
        hold(tmp_path / "out/.work", *WHOLE),
        pytest.raises(ValueError, match="is being prepared by process") as refused,
        hold(tmp_path / "out/.work", *WHOLE),
    ):
        pass
    message = str(refused.value)
    assert message.startswith(
        f"{tmp_path}/out is being prepared by process {os.getpid()} on {socket.gethostname()}, since 2"
    )
    assert "--stage all" in message and "choose another --output" in message
    assert not (tmp_path / "out").exists()  # nothing else was written


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        (("tokenize", (0, 3)), ("tokenize", (1, 3)), False),
        (("tokenize", (1, 3)), ("tokenize", (1, 3)), True),
        (("tokenize", (1, 3)), WHOLE, True),
        (WHOLE, ("pack", (1, 3)), True),
        (("plan", (0, 1)), ("finish", (0, 1)), True),
    ],
)
def test_tasks_of_an_array_go_together_and_whole_preparations_do_not(one, other, is_refused, kind, tmp_path):
    with hold(tmp_path / "out/.work", *one):
        if is_refused:
            with pytest.raises(ValueError, match="is being prepared"), hold(tmp_path / "out/.work", *other):
                pass
        else:
            with hold(tmp_path / "out/.work", *other):
                assert len(list((tmp_path / "out/.work" / FOLDER).glob("*.lock"))) == 2
    with hold(tmp_path / "out/.work", *other):
        pass


def test_a_killed_process_leaves_no_lock(kind, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out/.work"), kind]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"by process {process.pid} on"), hold(tmp_path / "out/.work", *WHOLE):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "out/.work" / FOLDER).glob("*.lock"))
    with hold(tmp_path / "out/.work", *WHOLE):
        pass


def left_by_another_machine(folder):
    path = folder / FOLDER / "whole.lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"what": "--stage all", "host": "elsewhere", "pid": 1, "born": "1", "since": "today"}))
    return path


def test_without_locks_one_of_another_machine_counts_as_long_as_it_is_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output_lock, "_has_flock", lambda folder: False)
    monkeypatch.setattr(lock_holders, "BEAT", 0.05)
    monkeypatch.setattr(lock_holders, "SILENCE", 0.5)
    path = left_by_another_machine(tmp_path / "out/.work")
    ages = itertools.count(time.time_ns())
    monkeypatch.setattr(lock_holders, "_touched", lambda path: next(ages))
    with pytest.raises(ValueError, match=r"process 1 on elsewhere, since today"), hold(tmp_path / "out/.work", *WHOLE):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(output_lock, "_has_flock", lambda folder: False)
    monkeypatch.setattr(lock_holders, "SILENCE", 0.2)
    monkeypatch.setattr(lock_holders, "BEAT", 0.05)
    with hold(tmp_path / "out/.work", *WHOLE):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "waiting 0 s at most to see whether that still runs" in capsys.readouterr().out


def test_a_number_that_another_process_has_got_is_not_the_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "_has_flock", lambda folder: False)
    path = left_by_another_machine(tmp_path / "out/.work")
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": socket.gethostname(), "pid": os.getpid()}))
    with hold(tmp_path / "out/.work", *WHOLE):
        pass


def test_other_errors_of_the_system_are_not_taken_for_missing_locks(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output"), hold(tmp_path / "out/.work", *WHOLE):
        pass


def test_a_folder_that_another_process_removes_in_between_is_made_again(kind, tmp_path, monkeypatch):
    real, left = output_lock._has_flock, [2]

    def has_flock(folder):
        if left[0]:
            left[0] -= 1
            folder.rmdir()
        return real(folder)

    monkeypatch.setattr(output_lock, "_has_flock", has_flock)
    with hold(tmp_path / "out/.work", "tokenize", (0, 2)):
        assert left == [0]
    assert (tmp_path / "out/.work" / FOLDER).is_dir()  # others of the array may be about to use it


def test_children_of_a_killed_process_are_waited_for(tmp_path):
    """A fork has the lock too, until it ends, which it does soon after its parent."""
    waits = "    time.sleep(600)\n"
    child = "    import os\n    if os.fork() == 0:\n        time.sleep(1)\n        os._exit(0)\n"
    forks = HOLDER.replace(waits, child + waits)
    command = [sys.executable, "-c", forks, str(tmp_path / "out/.work"), "flock"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        with hold(tmp_path / "out/.work", *WHOLE):
            pass


@pytest.mark.parametrize("other", ["whole.lock", "tokenize-0-of-2.lock"])
def test_locks_of_one_machine_alone_do_not_hide_a_holder_on_another(other, tmp_path, monkeypatch):
    """As on Lustre with localflock: the file system gives a lock that another machine's process has too."""
    monkeypatch.setattr(lock_holders, "BEAT", 0.05)
    monkeypatch.setattr(lock_holders, "SILENCE", 0.5)
    path = left_by_another_machine(tmp_path / "out/.work")
    path.rename(path.with_name(other))
    touches = itertools.count(time.time_ns())
    monkeypatch.setattr(lock_holders, "_touched", lambda path: next(touches))
    with pytest.raises(ValueError, match=r"process 1 on elsewhere, since today"), hold(tmp_path / "out/.work", *WHOLE):
        pass
    monkeypatch.setattr(lock_holders, "_touched", lambda path: 1)  # long ago
    with hold(tmp_path / "out/.work", *WHOLE):
        pass
