"""Who holds a lock: a file that says it and is touched every few seconds, and whether a holder found there still runs.

Locks of the file system (flock) hold between the processes of one node only, on some mounts of Lustre, BeeGFS and NFS.
So holders are looked at in any case: a process of this machine in /proc, an earlier attempt of this SLURM job by its
number, one of another machine by the touches of its file, for a bounded time. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT = 5.0  # seconds between two touches
SILENCE = 30.0  # seconds without a touch after which a holder of another machine is gone
LONG_AGO = 300.0  # seconds after its last touch, by the file system's clock: it is not waited for
_ENDED = ("Z", "X")  # states of a process of which only its number is left


def me(**more: Any) -> dict[str, Any]:
    """What this process writes about itself."""
    return {
        **more,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "job": _job(),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def read(path: Path) -> dict[str, Any]:
    """What the file says; nothing while it is written."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def described(holder: dict[str, Any]) -> str:
    """A holder in words."""
    if "pid" not in holder:
        return "a process that does not say who it is"
    job = holder.get("job")
    named = f"SLURM job {job.rpartition('/')[2]}, attempt {holder.get('restart', 0)}, " if job else ""
    return f"{named}process {holder['pid']} on {holder.get('host')}, since {holder.get('since')}"


def is_alive(path: Path, say: Callable[[str], None]) -> bool:
    """Whether the holder still runs; a holder of another machine is watched for up to SILENCE seconds.

    Args:
        path: the holder's file.
        say: gets a line when that takes time.
    """
    known = is_known_alive(read(path))
    if known is not None:
        return known
    before, deadline = _touched(path), time.monotonic() + SILENCE
    if before is None or _age(path, before) > LONG_AGO:
        return False
    say(f"{path} is of {described(read(path))}: waiting {SILENCE:.0f} s at most to see whether that still runs")
    while time.monotonic() < deadline:
        time.sleep(min(BEAT, SILENCE) / 5)
        if (now := _touched(path)) != before:
            known = is_known_alive(read(path))  # it may have been written only now
            return now is not None and known is not False
    return False


def is_known_alive(holder: dict[str, Any]) -> bool | None:
    """Whether a holder still runs, as far as that is known at once; None if it is not."""
    if is_earlier_attempt(holder):
        return False
    if holder.get("host") == socket.gethostname() and holder.get("machine") in (None, _machine()):
        return holder.get("born") == born(int(holder.get("pid", 0)))
    return None


def is_earlier_attempt(holder: dict[str, Any]) -> bool:
    """Whether it is of this SLURM job, before SLURM started it again: SLURM has ended that attempt."""
    mine = me()
    return bool(mine["job"]) and holder.get("job") == mine["job"] and holder.get("restart", 0) < mine["restart"]


def born(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where none of this number runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in _ENDED else fields[19]


class Beat(threading.Thread):
    """Touches a holder's file until it is stopped.

    Args:
        lost: called when the file is gone.
    """

    def __init__(self, path: Path, lost: Callable[[], None] = lambda: None):
        super().__init__(name="lock", daemon=True)
        self._path, self._lost, self._ended = path, lost, threading.Event()

    def run(self) -> None:
        """Never raises: a file system that does not answer is no reason to end."""
        while not self._ended.wait(BEAT):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self._lost()
            except OSError:
                continue

    def stop(self) -> None:
        """Let go."""
        self._ended.set()


def _job() -> str | None:
    """The SLURM job, with its cluster: another cluster has jobs of the same numbers."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{job}" if job else None


def _machine() -> str | None:
    """What tells the process numbers of this machine from those of another of the same name, such as a container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return None


def _touched(path: Path) -> int | None:
    """When it was touched, in nanoseconds, by its own file system's clock. Opened, as a network file system may answer
    from memory otherwise."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _age(path: Path, touched: int) -> float:
    """Seconds since a touch, by the file system's clock."""
    probe = path.with_name(f".{socket.gethostname()}.{os.getpid()}.now")
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - touched) / 1e9
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)
