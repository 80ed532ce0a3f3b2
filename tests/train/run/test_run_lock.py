"""One job in a run directory, on this machine and on others, whatever the file system's own locks are worth."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_prep import lock_holders
from tests.conftest import ROOT
from train.run import log, run_lock
from train.run.run_lock import lock

HOLDER = """
import fcntl, sys, time
from pathlib import Path
from train.run import run_lock
if sys.argv[2] == "worthless":
    fcntl.flock = lambda *_: None
try:
    held = run_lock.lock(Path(sys.argv[1]))
except ValueError as error:
    sys.exit(f"refused: {error}")
print("held", flush=True)
time.sleep(float(sys.argv[3]))
held.close()
"""


@pytest.fixture(params=["sound", "worthless", "absent"])
def flock(request, monkeypatch):
    """Locks of the file system that hold, that hold on one machine only (here: never), and that are not there."""

    def absent(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param != "sound":
        monkeypatch.setattr("fcntl.flock", {"worthless": lambda *_: None, "absent": absent}[request.param])
    return request.param


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A lock that is watched for half a second, outside of any job."""
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lock_holders, "BEAT", 0.05)
    monkeypatch.setattr(lock_holders, "SILENCE", 0.5)
    log.set_up()


def start(run_dir: Path, kind: str, seconds: float = 600) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(run_dir), kind, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def elsewhere(run_dir: Path, **changes: object) -> Path:
    """The file of a holder on another machine."""
    path = run_dir / ".lock-holder-1"
    holder = {"host": "elsewhere", "machine": "m", "pid": 7, "born": "1", "job": None, "restart": 0, "since": "today"}
    path.write_text(json.dumps({**holder, **changes}))
    return path


class Touching(threading.Thread):
    """Another machine's holder, which lives as long as this is open."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ended = path, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            os.utime(self.path)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def test_a_second_one_is_refused_and_told_who_holds_it(flock, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    with lock(tmp_path):
        with pytest.raises(ValueError, match="is in use by another job") as refused:
            lock(tmp_path)
        who = f"(SLURM job 123, attempt 0, process {os.getpid()} on {socket.gethostname()}, since 2"
        assert who in str(refused.value)
    with lock(tmp_path):
        assert [path.name for path in run_lock._holders(tmp_path)] == [".lock-holder-2"]


def test_a_killed_process_of_this_machine_is_taken_over_at_once(flock, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock_holders, "SILENCE", 3600.0)
    process = start(tmp_path, "worthless" if flock != "sound" else "sound")
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"):
        lock(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(tmp_path):
        said = capsys.readouterr().out
        assert f"was held by process {process.pid} on " in said and "no longer runs: taken over" in said


def test_a_live_lock_of_another_machine_refuses_though_flock_succeeds(flock, tmp_path):
    path = elsewhere(tmp_path, job="c/99", restart=2)
    with (
        Touching(path),
        pytest.raises(ValueError, match="SLURM job 99, attempt 2, process 7 on elsewhere, since today"),
    ):
        lock(tmp_path)
    assert [found.name for found in run_lock._holders(tmp_path)] == [path.name]


def test_a_silent_lock_of_another_machine_is_taken_over_after_a_while(flock, tmp_path, capsys):
    elsewhere(tmp_path)
    with lock(tmp_path) as held:
        assert held._holder.name == ".lock-holder-2" and not (tmp_path / ".lock-holder-1").exists()
    assert "process 7 on elsewhere, since today, which no longer runs: taken over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path_age", "released", "job"),
    [(3600, False, None), (0, True, None), (0, False, "c/5")],
    ids=["long ago", "released", "an earlier attempt of this job"],
)
def test_what_is_known_to_be_over_is_not_waited_for(path_age, released, job, tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "SILENCE", 3600.0)
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    path = elsewhere(tmp_path, job=job, restart=1, **({"released": True} if released else {}))
    os.utime(path, (time.time() - path_age, time.time() - path_age))
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"restart": 2}, {"job": "other/5"}, {"job": None}], ids=str)
def test_only_an_earlier_attempt_of_the_same_job_is_known_to_be_over(changes, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    path = elsewhere(tmp_path, **{"job": "c/5", "restart": 1, **changes})
    with Touching(path), pytest.raises(ValueError, match="is in use"):
        lock(tmp_path)


def test_a_container_of_the_same_name_is_another_machine(tmp_path):
    """Its process numbers are its own."""
    path = elsewhere(tmp_path, host=socket.gethostname())
    with Touching(path), pytest.raises(ValueError, match="is in use"):
        lock(tmp_path)


@pytest.mark.parametrize("kind", ["sound", "worthless"])
@pytest.mark.parametrize("left", ["nothing", "a dead one's"])
def test_of_starts_at_once_exactly_one_wins(kind, left, tmp_path):
    if left != "nothing":
        os.utime(elsewhere(tmp_path), (1, 1))
    processes = [start(tmp_path, kind, 8) for _ in range(4)]
    ends = [process.communicate() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1], ends
    assert sum("refused: " in said and "is in use by another job" in said for _, said in ends) == 3


def test_the_touches_go_on_while_this_process_is_busy(tmp_path):
    with lock(tmp_path) as held:
        before, end = held._holder.stat().st_mtime_ns, time.monotonic() + 60
        while held._holder.stat().st_mtime_ns == before and time.monotonic() < end:
            sum(range(10_000))
        assert held._holder.stat().st_mtime_ns != before


def test_a_lock_that_another_job_has_taken_over_ends_the_process(tmp_path, monkeypatch, capsys):
    ended, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(run_lock.os, "_exit", leave)
    with lock(tmp_path):
        elsewhere(tmp_path).rename(tmp_path / ".lock-holder-2")
        assert ended.wait(60) and codes[0] == 2
    assert "was taken over by another job (process 7 on elsewhere" in capsys.readouterr().err


def test_a_run_directory_that_is_removed_ends_nothing(tmp_path):
    with lock(tmp_path) as held:
        held._holder.unlink()
        time.sleep(0.3)


def test_children_of_a_killed_process_are_waited_for(tmp_path):
    """A worker that loads data has the flock too, until it ends."""
    child = "import os\nif os.fork() == 0:\n    time.sleep(1)\n    os._exit(0)\n"
    forks = HOLDER.replace("time.sleep(float", child + "time.sleep(float")
    command = [sys.executable, "-c", forks, str(tmp_path), "sound", "600"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        with lock(tmp_path):
            pass
